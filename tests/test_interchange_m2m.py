"""M2M100's and NLLB-200's checkpoints give the same logits, and the same translations into the language asked for."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import M2M100Config, M2M100ForConditionalGeneration

from hf_attn import AttnTranslatorForConditionalGeneration as Translator
from hf_attn.positions import sinusoids
from tests.foreign_translators import SHAPE, logits_of, padded_sources
from tests.tiny import randomise

BOS, PAD, END, GERMAN = 0, 1, 2, 57
sources = partial(padded_sources, words=range(3, 57), end=END, pad=PAD)
logits = partial(logits_of, target=[END, GERMAN, 9, 4, 30, 7])


@torch.no_grad()
def m2m(seed: int = 0, **overrides) -> M2M100ForConditionalGeneration:
    model = M2M100ForConditionalGeneration(M2M100Config(**{**SHAPE, "attention_dropout": 0.0, **overrides}))
    randomise(model, seed, std=0.4).eval()
    for layer in model.model.decoder.layers:
        layer.encoder_attn.out_proj.weight.mul_(4)
    model.model.decoder.layer_norm.bias.mul_(0.1)
    model.generation_config.update(no_repeat_ngram_size=2, num_beams=4, max_length=20)
    return model


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": False}, {"scale_embedding": False, "d_model": 20}, {"activation_function": "gelu"}],
    ids=str,
)
def test_logits_are_equal(overrides, tmp_path):
    theirs = m2m(**overrides)
    theirs.save_pretrained(tmp_path)
    ours = Translator.from_pretrained(tmp_path).eval()
    assert (ours.config.position_layout, ours.config.first_position) == ("fairseq", 2)
    batch = sources(8)
    assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_two_hundred_sources_are_translated_alike(beams, tmp_path):
    theirs = m2m(2)
    theirs.save_pretrained(tmp_path)
    ours = Translator.from_pretrained(tmp_path).eval()
    batch = sources(200)
    expected, found = (
        model.generate(**batch, num_beams=beams, forced_bos_token_id=GERMAN) for model in (theirs, ours)
    )
    assert (expected[:, 1] == GERMAN).all() and len(expected.unique(dim=0)) > 100
    assert torch.equal(found, expected)


def test_the_mixture_of_experts_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "nllb-moe"}')
    with pytest.raises(ValueError, match="nllb-moe"):
        Translator.from_pretrained(tmp_path)


@torch.no_grad()
def test_long_texts_differ_by_the_rounding_of_transformers_sinusoids_and_by_nothing_else(tmp_path):
    theirs = m2m(max_position_embeddings=1200)
    theirs.save_pretrained(tmp_path)
    theirs, ours = theirs.double(), Translator.from_pretrained(tmp_path, dtype=torch.float64).eval()
    words = torch.randint(3, 57, (1, 1100), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    before = (logits(ours, batch) - logits(theirs, batch)).abs().max()
    for stack in (theirs.model.encoder, theirs.model.decoder):
        table = stack.embed_positions.weights
        exact = sinusoids(torch.arange(len(table)), table.shape[1], "fairseq").double()
        off = (table - exact)[PAD + 1 :].abs().amax(1)  # at the place of padding they have zeros
        assert off[:100].max() < 1e-5 < 3e-5 < off[1000:].max() < 1e-4
        table[PAD + 1 :] = exact[PAD + 1 :]
    after = (logits(ours, batch) - logits(theirs, batch)).abs().max()
    assert after < 1e-10 < 1e-6 < before < 1e-4
