"""`from_pretrained` reads another library's checkpoint, whole or in parts, or says what is wrong with it."""

import json

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification, ViTModel

import hf_attn
from hf_attn import (
    AttnDetrForObjectDetection,
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTModel,
)
from hf_attn.interchange.loading import WHOLE, DamagedError
from hf_attn.registration import AutoTranslator
from tests.opus import save_marian
from tests.tiny import randomise, tiny_detr

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SHAPE |= {"image_size": 32, "patch_size": 8}
NAMES = {0: "cat", 1: "dog", 2: "owl"}


@pytest.fixture
def theirs():
    network = ViTForImageClassification(ViTConfig(**SHAPE, id2label=NAMES)).eval()
    randomise(network, std=0.1)
    return network


@pytest.fixture
def directory(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_numbers_and_the_labels_are_theirs(theirs, directory):
    ours, report = AttnViTForImageClassification.from_pretrained(directory, output_loading_info=True)
    assert_close(ours(pixels()).logits, theirs(pixels()).logits, rtol=0, atol=1e-5)
    assert ours.config.id2label == NAMES and not ours.training
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert ours.config._name_or_path == str(directory)


@torch.no_grad()
def test_parts_of_it_are_read_too(theirs, directory):
    body = AttnViTModel.from_pretrained(directory)
    assert_close(body(pixels()).last_hidden_state, theirs.vit(pixels()).last_hidden_state, rtol=0, atol=1e-5)
    backbone = AttnViTBackbone.from_pretrained(directory, out_indices=[1, 3])
    assert [tuple(each.shape) for each in backbone(pixels()).feature_maps] == [(2, 32, 4, 4)] * 2


@torch.no_grad()
def test_shards_and_another_type_are_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = AttnViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(ours(pixels().double()).logits, theirs.double()(pixels().double()).logits, rtol=0, atol=1e-10)
    (tmp_path / "model-00002-of-00007.safetensors").unlink(missing_ok=True)
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(OSError, match=r"lacks \d of its \d files of weights, model-0000"):
        AttnViTForImageClassification.from_pretrained(tmp_path)


def test_saved_again_it_is_one_of_ours(directory, tmp_path):
    ours = AttnViTForImageClassification.from_pretrained(directory)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "attn_vit"
    again = AttnViTForImageClassification.from_pretrained(tmp_path / "ours").state_dict()
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(weight, again[name]) for name, weight in ours.state_dict().items())


def test_fields_in_the_call_count_more_than_the_checkpoint_s(directory):
    changes = {"image_size": 48, "drop_path_rate": 0.1, "attn_implementation": "eager"}
    ours = AttnViTForImageClassification.from_pretrained(directory, **changes)
    assert ours.model.embeddings.positions.shape == (6, 6, 32)
    assert (ours.config.drop_path_rate, ours.config._attn_implementation) == (0.1, "eager")
    config = AttnViTConfig(**SHAPE, id2label=NAMES, layer_norm_eps=1e-4)
    assert AttnViTForImageClassification.from_pretrained(directory, config=config).model.final_norm.eps == 1e-4
    with pytest.raises(ValueError, match="config is a ViTConfig and must be a AttnViTConfig"):
        AttnViTForImageClassification.from_pretrained(directory, config=ViTConfig(**SHAPE))


def test_another_head_is_asked_for_and_said(directory, theirs, caplog, monkeypatch):
    with pytest.raises(ValueError, match=r"classifier.weight \(3, 32\) instead of \(5, 32\); for a head that begins"):
        AttnViTForImageClassification.from_pretrained(directory, num_labels=5)
    monkeypatch.setattr("hf_attn.interchange.loading.logger.propagate", True)
    ours = AttnViTForImageClassification.from_pretrained(directory, num_labels=5, ignore_mismatched_sizes=True)
    assert "classifier.bias, classifier.weight begin anew" in caplog.text
    assert not ours.classifier.weight.any()
    ViTModel(theirs.config, add_pooling_layer=False).save_pretrained(directory)
    with pytest.raises(ValueError, match=r"lacks 2 tensors: classifier.bias, classifier.weight; for a head that"):
        AttnViTForImageClassification.from_pretrained(directory)


def test_what_does_not_fit_is_named(directory, tmp_path):
    file = directory / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("vit.encoder.layer.1.layernorm_before.bias")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"a ViT of transformers\): it lacks 1 tensor: model.layers.1.attention_norm"):
        AttnViTForImageClassification.from_pretrained(directory)
    save_file({**weights, "vit.encoder.layer.1.gate.bias": norm}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensor that no such model has: vit.encoder.layer.1.gate.bias"):
        AttnViTForImageClassification.from_pretrained(directory)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        AttnViTForImageClassification.from_pretrained(directory)


def test_a_model_of_another_kind_is_refused(directory, tmp_path):
    with pytest.raises(ValueError, match=r"is a model of type 'vit'; what can be read here is of type 'attn_detr'"):
        AttnDetrForObjectDetection.from_pretrained(directory)
    with pytest.raises(ValueError, match=r"'attn_detr', 'detr'; use AttnViTForImageClassification$"):
        AttnDetrForObjectDetection.from_pretrained(directory)
    tiny_detr().save_pretrained(tmp_path / "detr")
    with pytest.raises(ValueError, match=r"is a model of type 'attn_detr'; .*; use AttnDetrForObjectDetection$"):
        AttnViTModel.from_pretrained(tmp_path / "detr")
    assert all(getattr(hf_attn, name).config_class.__name__ == config for config, name in WHOLE.items())
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**sizes, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"is a model of type 'bert'; .* 'attn_vit', 'vit'"):
        AttnViTModel.from_pretrained(tmp_path / "bert")


@torch.no_grad()
def test_pickled_weights_are_read_where_that_is_asked_for(theirs, directory):
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"pickled ones.*give use_safetensors=False.*hf-attn import .*theirs DIRECTORY"):
        AttnViTForImageClassification.from_pretrained(directory)
    ours = AttnViTForImageClassification.from_pretrained(directory, use_safetensors=False)
    assert_close(ours(pixels()).logits, theirs(pixels()).logits, rtol=0, atol=1e-5)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match=r"has no weights: neither model.safetensors nor pytorch_model.bin"):
        AttnViTForImageClassification.from_pretrained(directory)


def test_a_single_file_is_no_directory(directory):
    file = directory / "model.safetensors"
    with pytest.raises(
        ValueError, match=rf"{file} is a file, .* `hf-attn import {file} DIRECTORY` makes one of a file"
    ):
        AttnViTModel.from_pretrained(file)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_of_settings_is_named_and_config_json_not_taken_for_it(content, tmp_path):
    save_marian(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(content)
    for model_class in (hf_attn.AttnTranslatorForConditionalGeneration, AutoTranslator):
        with pytest.raises(DamagedError, match=rf"{file} is damaged \(.*; copy or download it again, or remove it"):
            model_class.from_pretrained(tmp_path)
    file.unlink()
    model = hf_attn.AttnTranslatorForConditionalGeneration.from_pretrained(tmp_path)
    assert model.generation_config.forced_eos_token_id == 0


@pytest.mark.parametrize(("name", "value"), [("d_model", "16"), ("decoder_start_token_id", None)])
def test_a_value_of_another_type_is_said_with_the_checkpoint(name, value, tmp_path):
    save_marian(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    for model_class in (hf_attn.AttnTranslatorForConditionalGeneration, AutoTranslator):
        with pytest.raises(DamagedError, match=rf"^{tmp_path} \(a Marian translator of transformers\): .*'{name}'"):
            model_class.from_pretrained(tmp_path)


def test_a_damaged_index_is_named(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    file = tmp_path / "model.safetensors.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": {"a": 1}}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"{file} is damaged \(.*\); copy or download it again"):
            AttnViTModel.from_pretrained(tmp_path)


def test_without_a_network_a_name_is_looked_up_once(monkeypatch):
    tried = []

    def unreachable(repo, file, **kwargs):
        tried.append(file)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", unreachable)
    for model_class in (AttnViTModel, AutoTranslator):
        tried.clear()
        with pytest.raises(OSError, match="couldn't connect"):
            model_class.from_pretrained("nobody/nothing")
        assert tried == ["config.json"]
