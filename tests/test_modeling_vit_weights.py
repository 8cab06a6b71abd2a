"""The ViT's weights: begun by their rules, saved and loaded bit for bit, shared between its models."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from hf_attn import (
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from tests.tiny import randomise, tiny_vit

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

KINDS = {
    "original": {},
    "dinov2": {"num_register_tokens": 4, "layer_scale_init": 0.5},
    "sbb": {"class_token": False, "num_register_tokens": 1, "pooling": "attention", "query_key_norm": True},
    "big_vision": {"class_token": False, "pooling": "mean", "position_embedding": "sinusoids"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, weight in a.state_dict().items():
        assert weight.dtype == theirs[name].dtype, name
        assert torch.equal(weight, theirs[name]), name


def logits(model: AttnViTForImageClassification) -> torch.Tensor:
    with torch.no_grad():
        return model(PICTURES).logits


# --- saving and loading ----------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_saved_and_loaded_bit_for_bit(tmp_path, kind, dtype):
    model = tiny_vit(**KINDS[kind]).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is AttnViTForImageClassification
    assert not loaded.training
    assert_same_weights(loaded, model)
    assert_close(logits(loaded), logits(model))
    asked = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in asked.parameters()} == {torch.float32}


@kinds
def test_what_is_stored_is_what_the_model_has(tmp_path, kind):
    model = tiny_vit(**KINDS[kind])
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in stored.items())


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}, "auto"], ids=str)
def test_loaded_onto_devices(tmp_path, device_map):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, device_map=device_map)
    assert all(p.device.type == "cpu" for p in loaded.parameters())  # built without memory, then filled
    assert_same_weights(loaded, model)


def test_saved_in_shards_it_is_the_same(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(AutoModelForImageClassification.from_pretrained(tmp_path), model)


def test_a_copy_shares_nothing():
    model = tiny_vit()
    copied = copy.deepcopy(model)
    assert_same_weights(copied, model)
    assert_close(logits(copied), logits(model))
    copied(PICTURES, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_weights_survive_torch_save(tmp_path):
    model, other = tiny_vit(), tiny_vit(seed=1)
    assert not torch.equal(logits(other), logits(model))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert_same_weights(other, model)
    assert_close(logits(other), logits(model))


def test_a_model_without_memory_takes_a_state_dict():
    model = tiny_vit()
    with torch.device("meta"):
        empty = AttnViTForImageClassification(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_close(logits(empty.eval()), logits(model))


# --- from one of its models to another -------------------------------------------------------------------------------


@kinds
def test_the_base_model_of_a_classifier_has_no_untrained_weight(tmp_path, kind):
    model = tiny_vit(**KINDS[kind])
    model.save_pretrained(tmp_path / "classifier")
    base, report = AutoModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert type(base) is AttnViTModel
    assert not report["missing_keys"]
    assert_same_weights(base, model.model)
    with torch.no_grad():  # its pooled output is what the classifier reads, not an untrained layer's
        assert_close(model.classifier(base(PICTURES).pooler_output), logits(model))
    base.save_pretrained(tmp_path / "base")
    again, report = AutoModelForImageClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert_same_weights(again.model, base)


def test_masked_image_modelling_hands_its_weights_to_a_classifier(tmp_path):
    model = randomise(AttnViTForMaskedImageModeling(tiny_vit().config))
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForMaskedImageModeling.from_pretrained(tmp_path), model)
    classifier, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    theirs = model.model.state_dict()
    theirs.pop("embeddings.mask_token")
    assert all(torch.equal(weight, theirs[name]) for name, weight in classifier.model.state_dict().items())


@kinds
def test_a_classifier_hands_its_weights_to_a_backbone(tmp_path, kind):
    model = tiny_vit(**KINDS[kind])
    model.save_pretrained(tmp_path)
    backbone, report = AttnViTBackbone.from_pretrained(tmp_path, out_indices=[1, 2], output_loading_info=True)
    assert not report["missing_keys"]
    theirs = model.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in backbone.state_dict().items())
    assert type(AutoBackbone.from_config(model.config)) is AttnViTBackbone


def test_another_number_of_classes_keeps_all_but_the_classifier(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AttnViTForImageClassification.from_pretrained(tmp_path, num_labels=5)
    loaded, report = AttnViTForImageClassification.from_pretrained(
        tmp_path, num_labels=5, image_size=48, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    assert mismatched == {"classifier.weight", "classifier.bias"}  # not the positions, which are resampled
    assert torch.equal(
        loaded.model.layers[1].feed_forward.up_proj.weight, model.model.layers[1].feed_forward.up_proj.weight
    )
    assert loaded.model.embeddings.positions.shape == (6, 6, 16)
    assert not loaded.classifier.weight.any()


# --- the beginning ---------------------------------------------------------------------------------------------------

LARGE = {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 64,
    "patch_size": 8,
    "num_labels": 50,
    "layer_scale_init": 0.25,
    "num_register_tokens": 8,
    "pooling": "attention",
    "query_key_norm": True,
}


def begins_by_its_rule(name: str, module: nn.Module, weight: torch.Tensor) -> bool:
    """Glorot for linear layers, N(0, 0.02) for patches and positions, zeros for class token and classifier."""
    last = name.rpartition(".")[2]
    if name.startswith("classifier") or last in ("bias", "class_token"):
        return bool((weight == 0).all())
    if isinstance(module, nn.LayerNorm):
        return bool((weight == 1).all())
    if "scale" in name:
        return bool((weight == 0.25).all())
    if isinstance(module, nn.Conv2d):
        return abs(weight.std().item() / 0.02 - 1) < 0.1
    if last in ("positions", "class_position", "mask_token"):
        return abs(weight.std().item() / 0.02 - 1) < 0.25
    if last == "register_tokens":
        return 0 < weight.std().item() < 1e-5
    if last == "query":
        return abs(weight.std().item() * math.sqrt(128) - 1) < 0.25
    bound = math.sqrt(6 / sum(weight.shape))
    return 0.95 * bound < weight.abs().max() <= bound and abs(weight.std() * math.sqrt(3) / bound - 1) < 0.1


def assert_begun(model: nn.Module, begun: set[str] | None = None) -> None:
    for name, parameter in model.named_parameters():
        if begun is None or name in begun:
            assert begins_by_its_rule(name, model.get_submodule(name.rpartition(".")[0]), parameter), name


@pytest.mark.parametrize(
    "model_class", [AttnViTForImageClassification, AttnViTForMaskedImageModeling, AttnViTBackbone]
)
def test_every_weight_begins_by_its_rule(model_class):
    assert_begun(model_class(AttnViTConfig(**LARGE)))


@pytest.mark.parametrize(
    ("position_embedding", "std"), [("learned", 0.02), ("sinusoids", 48**-0.5), ("none", 48**-0.5)]
)
def test_patches_begin_no_larger_than_learned_positions_and_else_as_lecun_says(position_embedding, std):
    config = AttnViTConfig(**{**LARGE, "position_embedding": position_embedding, "patch_size": 4})
    weight = AttnViTModel(config).embeddings.patch_embedding.weight
    assert abs(weight.std().item() / std - 1) < 0.1


MISSING = {
    "a_layer": lambda name: name.startswith("model.layers.0."),
    "tokens": lambda name: name.endswith(("class_token", "register_tokens", "class_position")),
    "positions": lambda name: name.endswith("embeddings.positions"),
    "patches": lambda name: "patch_embedding" in name,
    "biases": lambda name: name.endswith("bias"),
    "scales": lambda name: "scale" in name,
    "norms": lambda name: "norm" in name,
    "pooling": lambda name: "attention_pooling" in name,
    "classifier": lambda name: name.startswith("classifier"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_weights_missing_from_a_checkpoint_begin_by_their_rule_and_the_others_are_loaded(tmp_path, missing):
    # a model is built without memory before it is loaded: what nobody fills in would be whatever lay there before
    model = randomise(AttnViTForImageClassification(AttnViTConfig(**LARGE)))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not MISSING[missing](name)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(5)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.manual_seed(5)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_begun(loaded, weights.keys() - kept.keys())
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in kept.items())
    assert_same_weights(again, loaded)


def test_the_seed_decides_the_beginning():
    config = tiny_vit().config

    def begin(seed: int) -> AttnViTForImageClassification:
        torch.manual_seed(seed)
        return AttnViTForImageClassification(config)

    assert_same_weights(begin(3), begin(3))
    assert not torch.equal(begin(3).model.embeddings.positions, begin(4).model.embeddings.positions)
