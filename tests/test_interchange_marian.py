"""MarianMTModel's checkpoints, as on the Hub, give the same logits and the same translations here."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer, GenerationConfig, MarianConfig, MarianMTModel

from hf_attn import AttnTranslatorForConditionalGeneration as Translator
from hf_attn import AttnTranslatorModel
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.interchange.marian import AS_IN_TRANSFORMERS, export_transformers
from tests.foreign_translators import SHAPE as SMALL
from tests.foreign_translators import logits_of, padded_sources
from tests.opus import save_marian
from tests.tiny import randomise, tiny_translator

PAD = 60
SHAPE = {
    **SMALL,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "scale_embedding": True,
    "activation_function": "swish",
}
sources = partial(padded_sources, words=range(2, 59), end=0, pad=PAD)
logits = partial(logits_of, target=[PAD, 5, 9, 2, 30, 7])
VARIANTS = {
    "opus-mt": {},
    "tc-big": {"activation_function": "relu", "d_model": 20},
    "own tables": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 71, "pad_token_id": 59},
    "own output layer": {"tie_word_embeddings": False},
    "all apart": {
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 61,
        "tie_word_embeddings": False,
        "scale_embedding": False,
    },
}
SEARCH = {
    "bad_words_ids": [[PAD]],
    "forced_eos_token_id": 0,
    "max_length": 24,
    "num_beams": 4,
    "no_repeat_ngram_size": 2,
}


def marian(seed: int = 0, **overrides) -> MarianMTModel:
    config = MarianConfig(**{**SHAPE, **overrides})
    model = randomise(MarianMTModel(config), seed).eval()
    for stack in (model.model.encoder, model.model.decoder):  # which randomising has changed as well
        stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
    generator = torch.Generator().manual_seed(seed)
    model.final_logits_bias.copy_(0.5 * torch.randn(model.final_logits_bias.shape, generator=generator))
    return model


@torch.no_grad()
def talkative(seed: int) -> MarianMTModel:
    """What it says depends on the source, and ends at different lengths, unlike what most random models say."""
    model = marian(seed)
    model.model.shared.weight.mul_(3)
    model.final_logits_bias.mul_(0.2)
    model.final_logits_bias[0, 0] += 4
    for layer in model.model.decoder.layers:
        layer.encoder_attn.q_proj.weight.mul_(4)
        layer.encoder_attn.out_proj.weight.mul_(8)
        layer.final_layer_norm.bias.mul_(0.1)
    return model


def save(model: MarianMTModel, directory: Path, **generation) -> Path:
    model.generation_config = GenerationConfig(
        **{"decoder_start_token_id": PAD, "pad_token_id": model.config.pad_token_id, "eos_token_id": 0, **generation}
    )
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_equal(variant, tmp_path):
    theirs = marian(**VARIANTS[variant])
    ours = Translator.from_pretrained(save(theirs, tmp_path)).eval()
    batch = sources(8)
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)
    assert (ours.config.position_layout, ours.config.norm_position) == ("halves", "post")


@pytest.mark.parametrize(
    ("beams", "early_stopping"),
    [
        (1, False),
        (4, False),
        pytest.param(4, "never", marks=pytest.mark.slow),
        pytest.param(4, True, marks=pytest.mark.slow),
    ],
)
def test_two_hundred_sources_are_translated_alike(beams, early_stopping, tmp_path):
    theirs = talkative(1)
    theirs.final_logits_bias[0, 0] -= 2
    save(theirs, tmp_path, **{**SEARCH, "num_beams": beams, "early_stopping": early_stopping})
    ours = Translator.from_pretrained(tmp_path).eval()
    batch = sources(200)
    expected, found = theirs.generate(**batch), ours.generate(**batch)
    assert len(expected.unique(dim=0)) > 150 and len((expected != PAD).sum(1).unique()) > 5
    assert torch.equal(found, expected)


def test_generation_settings_come_from_an_old_config_too(tmp_path):
    save(marian(), tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["forced_eos_token_id"]
    said = {**SEARCH, "num_return_sequences": 2, "suppress_tokens": [5], "encoder_no_repeat_ngram_size": 3}
    (tmp_path / "config.json").write_text(json.dumps({**config, **said, "num_hidden_layers": 2, "id2label": {}}))
    found = Translator.from_pretrained(tmp_path).generation_config.to_dict()
    expected = MarianMTModel.from_pretrained(tmp_path).generation_config.to_dict()
    expected["_from_model_config"] = None
    assert found == {**expected, **AS_IN_TRANSFORMERS} and said.items() < found.items()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Translator.from_pretrained(tmp_path).generation_config.forced_eos_token_id == 0  # as until version 4


def old_weights(model: MarianMTModel) -> dict[str, torch.Tensor]:
    """As files of 2020 have them: every table under every name, the sinusoids too."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert {"model.shared.weight", "lm_head.weight", "model.decoder.embed_positions.weight"} < weights.keys()
    return weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_sinusoids_are_sinusoids(dtype, tmp_path):
    theirs = marian().to(dtype)
    save_file(old_weights(theirs), save(theirs, tmp_path) / "model.safetensors", metadata={"format": "pt"})
    assert Translator.from_pretrained(tmp_path).dtype == dtype


def test_tied_copies_and_sinusoids_are_checked_and_left_out(tmp_path):
    theirs = marian()
    file = save(theirs, tmp_path) / "model.safetensors"
    save_file(old_weights(theirs), file, metadata={"format": "pt"})
    batch = sources(4)
    ours = Translator.from_pretrained(tmp_path).eval()
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)
    file.unlink()
    torch.save(old_weights(theirs), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="pickled"):
        Translator.from_pretrained(tmp_path)
    ours = Translator.from_pretrained(tmp_path, use_safetensors=False).eval()
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm_head.weight", "lm_head.weight: it is another than model.shared.weight"),
        ("model.encoder.embed_positions.weight", "these are no sinusoids"),
    ],
)
def test_what_would_be_lost_is_refused(name, message, tmp_path):
    theirs = marian()
    save_file(
        {**(weights := old_weights(theirs)), name: weights[name] + 0.1}, save(theirs, tmp_path) / "model.safetensors"
    )
    with pytest.raises(ValueError, match=message):
        Translator.from_pretrained(tmp_path)


def test_missing_and_unknown_tensors_are_named(tmp_path):
    file = save(marian(), tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["model.encoder.layernorm_embedding.weight"] = weights.pop("model.decoder.layers.2.fc1.weight")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"1 tensor that no such model has: model.encoder.layernorm_embedding.weight"):
        Translator.from_pretrained(tmp_path)
    del weights["model.encoder.layernorm_embedding.weight"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"lacks 1 tensor: model.decoder.layers.2.feed_forward.up_proj.weight"):
        Translator.from_pretrained(tmp_path)


def test_encoder_and_decoder_of_other_widths_are_refused(tmp_path):
    save(marian(decoder_ffn_dim=32), tmp_path)
    with pytest.raises(ValueError, match="encoder_ffn_dim is 24 and decoder_ffn_dim 32; in this model they are one"):
        Translator.from_pretrained(tmp_path)


def test_sharded_half_precision_base_model_and_overrides(tmp_path):
    theirs = marian()
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    batch = sources(4)
    ours = Translator.from_pretrained(tmp_path, dropout=0.3).eval()
    assert ours.config.dropout == 0.3
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)
    base = AttnTranslatorModel.from_pretrained(tmp_path).eval()
    assert torch.equal(base.encoder.layers[0].feed_forward.up_proj.weight, theirs.model.encoder.layers[0].fc1.weight)
    assert Translator.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_a_marian_again(variant, tmp_path):
    theirs = marian(**VARIANTS[variant])
    ours = Translator.from_pretrained(save(theirs, tmp_path / "theirs", **SEARCH)).eval()
    export_transformers(ours, tmp_path / "back")
    back, report = MarianMTModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    batch = sources(4)
    assert torch.equal(logits(back.eval(), batch), logits(theirs, batch))
    assert back.generation_config.num_beams == 4 and back.generation_config.bad_words_ids == [[PAD]]


def test_half_precision_stays_what_it_is(tmp_path):
    export_transformers(tiny_translator(position_layout="halves").half(), tmp_path / "half")
    assert MarianMTModel.from_pretrained(tmp_path / "half").dtype == torch.float16


def test_what_no_marian_can_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="norm_position is 'pre', but 'post' in every Marian translator"):
        export_transformers(tiny_translator(norm_position="pre", position_layout="halves"), tmp_path)


def test_the_command_brings_the_tokenizer_along(tmp_path):
    save_marian(tmp_path / "theirs")
    made = import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert made.beside == ["OpusTokenizer"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (
        tokenizer("Der Hund")["input_ids"]
        == AutoTokenizer.from_pretrained(tmp_path / "theirs")("Der Hund")["input_ids"]
    )
    save(marian(), tmp_path / "alone")
    assert import_checkpoint(tmp_path / "alone", tmp_path / "without").beside == []


@pytest.mark.parametrize("file", ["source.spm", "target.spm", "vocab.json"])
def test_a_tokenizer_that_is_not_whole_is_not_left_behind(file, tmp_path):
    save_marian(tmp_path / "theirs")
    (tmp_path / "theirs" / file).unlink()
    with pytest.raises(ValueError, match=rf"theirs has a tokenizer_config\.json, but .* there is no {file}; copy"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [{"d_model": 512, "activation_function": "swish"}, {"d_model": 1024}])
def test_full_size(size, tmp_path):
    """opus-mt-en-de and opus-mt-tc-big-en-de, all but the vocabulary."""
    width, layers = size["d_model"], 6
    shape = {"encoder_layers": layers, "decoder_layers": layers, "vocab_size": 4001, "pad_token_id": 4000}
    heads = {f"{stack}_attention_heads": width // 64 for stack in ("encoder", "decoder")}
    widths = {f"{stack}_ffn_dim": 4 * width for stack in ("encoder", "decoder")}
    config = MarianConfig(**{**SHAPE, **shape, **heads, **widths, **size, "decoder_start_token_id": 4000})
    theirs = MarianMTModel(config).eval()
    for name, parameter in theirs.named_parameters():  # as large as trained ones are
        if "embed_positions" not in name:
            parameter.data = torch.randn_like(parameter) * (
                0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            )
        if "norm.weight" in name:
            parameter.data += 1
    theirs.save_pretrained(tmp_path)
    batch = sources(4)
    ours = Translator.from_pretrained(tmp_path).eval()
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)
