"""Weights: begun as the paper's community begins them, tied as configured, saved and loaded bit for bit."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSeq2SeqLM, GenerationMixin

from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration, AttnTranslatorModel
from tests.tiny import tiny_translator

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]])
TARGET = torch.tensor([[0, 9, 10], [0, 11, 12]])
EMBEDDINGS = "model.encoder.embed_tokens.weight"

KINDS = {  # the ways in which the tables of words can be shared
    "three_way": {},
    "bias": {"logits_bias": True, "norm_position": "pre"},
    "output_apart": {"tie_word_embeddings": False},
    "source_apart": {"share_embeddings": False, "decoder_vocab_size": 30},
    "all_apart": {"share_embeddings": False, "tie_word_embeddings": False, "decoder_vocab_size": 30},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def tables(model: AttnTranslatorForConditionalGeneration) -> list[torch.nn.Parameter]:
    """Source words, target words, output layer."""
    return [model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight, model.lm_head.weight]


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, weight in a.state_dict().items():
        assert weight.dtype == theirs[name].dtype, name
        assert torch.equal(weight, theirs[name]), name


def logits(model: AttnTranslatorForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=SOURCE, decoder_input_ids=TARGET).logits


# --- tying -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "separate"),
    [("three_way", 1), ("bias", 1), ("output_apart", 2), ("source_apart", 2), ("all_apart", 3)],
)
def test_tables_are_shared_as_configured(kind, separate):
    model = tiny_translator(**KINDS[kind])
    source, target, output = tables(model)
    assert (target is source) == model.config.share_embeddings
    assert (output is target) == model.config.tie_word_embeddings
    assert len({id(table) for table in tables(model)}) == separate
    assert sum("embed_tokens" in name or "lm_head" in name for name, _ in model.named_parameters()) == separate


def test_a_step_moves_all_three_tables_together():
    model = tiny_translator().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = tables(model)[0].detach().clone()
    model(input_ids=SOURCE, labels=TARGET).loss.backward()
    optimizer.step()
    assert not torch.equal(tables(model)[0], before)
    assert all(torch.equal(table, tables(model)[0]) for table in tables(model))


def test_generation_mixin_is_a_direct_base():
    assert GenerationMixin in AttnTranslatorForConditionalGeneration.__bases__


# --- saving and loading ----------------------------------------------------------------------------------------------


@kinds
def test_saved_and_loaded_bit_for_bit(tmp_path, kind):
    model = tiny_translator(**KINDS[kind])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is AttnTranslatorForConditionalGeneration
    assert not loaded.training
    assert_same_weights(loaded, model)
    assert len({id(table) for table in tables(loaded)}) == len({id(table) for table in tables(model)})
    assert torch.equal(logits(loaded), logits(model))


def test_a_shared_table_is_stored_once(tmp_path):
    tiny_translator().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if "embed_tokens" in name or "lm_head" in name] == [EMBEDDINGS]


@kinds
def test_the_base_model_loads_from_the_translator_and_back(tmp_path, kind):
    model = tiny_translator(**KINDS[kind])
    model.save_pretrained(tmp_path / "translator")
    base = AutoModel.from_pretrained(tmp_path / "translator")
    assert type(base) is AttnTranslatorModel
    assert_same_weights(base, model.model)
    base.save_pretrained(tmp_path / "base")
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "base"), model.model)
    if kind == "three_way":  # nothing but the base model's weights
        assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base"), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_precision_of_the_checkpoint_is_kept_unless_another_is_asked_for(tmp_path, dtype):
    model = tiny_translator(logits_bias=True).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    asked = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in asked.parameters()} == {torch.float32}
    assert_same_weights(asked.to(dtype), model)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_loaded_onto_devices(tmp_path, device_map):
    model = tiny_translator()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map=device_map)
    assert all(table is tables(loaded)[0] for table in tables(loaded))
    assert_close(logits(loaded.cpu()), logits(model))


def test_saved_in_shards_it_is_the_same(tmp_path):
    model = tiny_translator()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)


def test_a_copy_shares_nothing_and_is_tied_within():
    model = tiny_translator()
    copied = copy.deepcopy(model)
    assert_same_weights(copied, model)
    assert torch.equal(logits(copied), logits(model))
    assert all(table is tables(copied)[0] for table in tables(copied))
    assert tables(copied)[0] is not tables(model)[0]
    copied(input_ids=SOURCE, labels=TARGET).loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_weights_survive_torch_save(tmp_path):
    model, other = tiny_translator(), tiny_translator(seed=1)
    assert not torch.equal(logits(other), logits(model))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(logits(other), logits(model))


# --- resizing --------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("size", [50, 33])
def test_resized_the_old_words_stay(tmp_path, kind, size):
    model = tiny_translator(**KINDS[kind])
    before = copy.deepcopy(model)
    kept = min(size, 41)
    model.resize_token_embeddings(size, mean_resizing=False)
    shared = model.config.share_embeddings
    assert model.config.vocab_size == size
    assert model.config.decoder_vocab_size == (size if shared else 30)
    assert [len(table) for table in tables(model)] == ([size] * 3 if shared else [size, 30, 30])
    assert model.lm_head.out_features == len(model.lm_head.weight)
    for new, old in zip(tables(model), tables(before), strict=True):
        assert torch.equal(new[: min(kept, len(old))], old[: len(new)][:kept])
    assert (model.model.decoder.embed_tokens.weight is tables(model)[0]) == shared
    assert_close(logits(model)[..., :30], logits(before)[..., :30])
    if model.logits_bias is not None:
        assert torch.equal(model.logits_bias[:kept], before.logits_bias[:kept])
        assert (model.logits_bias[41:] == 0).all()
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)


def test_the_base_model_resized_can_be_saved_and_loaded(tmp_path):
    model = tiny_translator().model
    model.resize_token_embeddings(50, mean_resizing=False)
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModel.from_pretrained(tmp_path), model)


def test_resized_to_the_same_size_or_none_the_parameters_are_the_same_objects():
    model = tiny_translator(logits_bias=True)
    before = dict(model.named_parameters())
    model.resize_token_embeddings()
    model.resize_token_embeddings(41)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_new_words_can_be_learnt():
    model = tiny_translator(logits_bias=True)
    model.resize_token_embeddings(44, mean_resizing=False)
    model.train()(input_ids=torch.tensor([[43, 2]]), labels=torch.tensor([[42, 2]])).loss.backward()
    assert model.logits_bias.grad[42] != 0
    assert (tables(model)[0].grad[[42, 43]] != 0).any(dim=1).all()


# --- the beginning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh() -> AttnTranslatorForConditionalGeneration:
    torch.manual_seed(0)
    return AttnTranslatorForConditionalGeneration(
        AttnTranslatorConfig(
            vocab_size=2000,
            hidden_size=128,
            encoder_layers=1,
            decoder_layers=1,
            intermediate_size=256,
            logits_bias=True,
            tie_word_embeddings=False,
        )
    )


def begins_by_its_rule(name: str, module: torch.nn.Module, weight: torch.Tensor) -> bool:
    """Glorot for linear layers, N(0, 1/d) for words, norms as the identity, biases at zero."""
    if name.endswith("bias"):
        return bool((weight == 0).all())
    if isinstance(module, torch.nn.LayerNorm):
        return bool((weight == 1).all())
    if isinstance(module, torch.nn.Embedding):
        words = torch.cat([weight[: module.padding_idx], weight[module.padding_idx + 1 :]])
        variance = (words.var() * weight.shape[1]).item()
        return bool((weight[module.padding_idx] == 0).all()) and 0.9 < variance < 1.1
    bound = math.sqrt(6 / sum(weight.shape))
    return 0.95 * bound < weight.abs().max() <= bound and abs(weight.std() * math.sqrt(3) / bound - 1) < 0.1


def test_every_weight_begins_by_its_rule(fresh):
    for name, parameter in fresh.named_parameters():
        module = fresh.get_submodule(name.rpartition(".")[0])
        assert begins_by_its_rule(name, module, parameter), name


def test_scaled_words_are_as_large_as_the_sinusoids(fresh):
    words = fresh.get_input_embeddings()(torch.arange(4, 2000)) * math.sqrt(128)
    assert words.std().item() == pytest.approx(1.0, abs=0.02)


def save_without(directory: Path, missing: Callable[[str], bool]) -> AttnTranslatorForConditionalGeneration:
    """A randomised model, stored but for some of its weights."""
    model = tiny_translator(vocab_size=400, logits_bias=True, hidden_size=64, share_embeddings=False)
    model.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not missing(name)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return model


MISSING = {
    "a_layer": lambda name: name.startswith("model.decoder.layers.1."),
    "words": lambda name: name == EMBEDDINGS,
    "biases": lambda name: name.endswith("bias"),
    "projections": lambda name: name.endswith("_proj.weight"),
    "norms": lambda name: ".norm." in name,
}


@pytest.mark.parametrize("missing", MISSING)
def test_weights_missing_from_a_checkpoint_begin_by_their_rule_and_the_others_are_loaded(tmp_path, missing):
    # a model is built without memory before it is loaded: what nobody fills in would be whatever lay there before
    model = save_without(tmp_path, MISSING[missing])
    torch.manual_seed(5)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.manual_seed(5)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        module = loaded.get_submodule(name.rpartition(".")[0])
        if MISSING[missing](name):
            assert begins_by_its_rule(name, module, parameter), name
        else:
            assert torch.equal(parameter, model.get_parameter(name)), name
    assert_same_weights(again, loaded)
    assert all(p.device.type == "cpu" for p in loaded.parameters())


def test_a_vocabulary_size_assigned_to_the_configuration_holds_for_both_languages(tmp_path):
    config = AttnTranslatorConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, logits_bias=True)
    config.vocab_size = 50
    model = AutoModelForSeq2SeqLM.from_config(config)
    assert [len(table) for table in tables(model)] == [50, 50, 50]
    assert (model.lm_head.out_features, len(model.logits_bias)) == (50, 50)
    model.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)


def test_the_seed_decides_the_beginning():
    config = tiny_translator().config

    def begin(seed: int) -> AttnTranslatorForConditionalGeneration:
        torch.manual_seed(seed)
        return AttnTranslatorForConditionalGeneration(config)

    assert_same_weights(begin(3), begin(3))
    assert not torch.equal(tables(begin(3))[0], tables(begin(4))[0])
