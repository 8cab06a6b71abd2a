"""`generate()` by its own decoding against the same by the model's forward: the same words."""

import pytest
import torch
from torch.testing import assert_close
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_attn import generation_translator
from hf_attn.generation_beam_search import top_k
from hf_attn.inference import int8_works
from hf_attn.inference_translator import BLOCK, Decoding, ReadyDecoder
from tests.generation import sources, translator

BATCH = sources(2, 11, 1, 5, 7, 3)
CALLS = {
    "greedy": {},
    "beam search": {"num_beams": 3},
    "n-best": {"num_beams": 4, "num_return_sequences": 3},
    "one length for all": {"max_new_tokens": 6},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "OPUS-MT's rules": {"num_beams": 3, "bad_words_ids": [[1]], "forced_eos_token_id": 2, "max_new_tokens": 9},
    "no word twice": {"no_repeat_ngram_size": 1, "min_new_tokens": 3},
    "beams, no word twice": {"num_beams": 2, "no_repeat_ngram_size": 1},
    "words given": {"target_prefixes": [[5, 6], [], [7], [8, 9, 10], [], [4]]},
    "beams, words given": {"num_beams": 3, "target_prefixes": [[5, 6], [], [7], [8, 9, 10], [], [4]]},
    "a prompt": {"decoder_input_ids": torch.tensor([[0, 7, 8]]).repeat(6, 1)},
    "beams, a prompt": {"num_beams": 3, "decoder_input_ids": torch.tensor([[0, 7, 8]]).repeat(6, 1)},
    "more words than a block": {"max_new_tokens": 2 * BLOCK + 3, "min_new_tokens": 2 * BLOCK},
}


def plainly(model, monkeypatch, *args, **kwargs):
    """The same by `forward`."""
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "decoder_twin", lambda model: None)
        return model.generate(*args, **kwargs)


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """One entry for each decoding of its own."""
    made: list[int] = []
    own = generation_translator.own_decoding

    def counting(*args):
        decoding = own(*args)
        made.extend([1] * (decoding is not None))
        return decoding

    monkeypatch.setattr(generation_translator, "own_decoding", counting)
    return made


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize("config", [{}, {"norm_position": "pre", "share_embeddings": False}], ids=["post", "pre"])
@pytest.mark.parametrize("name", CALLS)
def test_own_decoding_finds_the_words_that_forward_finds(name, config, is_prepared, monkeypatch, decodings):
    model = translator(end_bias=0.0 if "scores" in name else 1.5, **config)
    expected = plainly(model, monkeypatch, BATCH, **CALLS[name])
    assert not decodings
    if is_prepared:
        model.prepare_for_inference()
    found = model.generate(BATCH, **CALLS[name])
    assert decodings == [1]
    if "return_dict_in_generate" not in CALLS[name]:
        assert found.tolist() == expected.tolist()
        return
    assert found.sequences.tolist() == expected.sequences.tolist()
    for step in ("scores", "logits"):
        assert_close([one.float() for one in found[step]], list(expected[step]))


FORWARD = {
    "attention": {"return_dict_in_generate": True, "output_attentions": True},
    "hidden states": {"return_dict_in_generate": True, "output_hidden_states": True},
    "no cache": {"use_cache": False},
    "a cache of the caller's": {"cache": EncoderDecoderCache(DynamicCache(), DynamicCache())},
    "sampling": {"do_sample": True},
    "a mask of what is said": {
        "decoder_input_ids": torch.tensor([[0, 7]]),
        "decoder_attention_mask": torch.ones(1, 2),
    },
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_is_asked_for_what_it_alone_gives(name, decodings):
    translator().generate(BATCH[:1], **FORWARD[name])
    assert not decodings


def test_hooks_and_training_see_the_layers(decodings):
    model, seen = translator(), []
    model.model.decoder.layers[0].register_forward_hook(lambda *args: seen.append(1))
    model.generate(BATCH[:1])
    assert seen and not decodings


class KeepsRows(LogitsProcessor):
    """Knows its rows by their places."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, input_ids, scores):
        self.rows.append(len(scores))
        return scores


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_stay_for_rules_that_may_know_them_and_leave_for_others(beams, monkeypatch):
    model, rule, rows = translator(end_bias=1.5), KeepsRows(), []
    step = Decoding.step
    monkeypatch.setattr(Decoding, "step", lambda decoding, ids: rows.append(len(ids)) or step(decoding, ids))
    left = model.generate(BATCH, num_beams=beams)
    assert rows[0] == 6 and rows[-1] < 6 * beams
    stayed = model.generate(BATCH, num_beams=beams, logits_processor=LogitsProcessorList([rule]))
    assert set(rule.rows) == {6 * beams}
    assert stayed.tolist() == left.tolist()


def test_the_memory_is_kept_once_per_sentence():
    model = translator()
    with torch.no_grad():
        memory = model.model.encoder(BATCH).last_hidden_state
        decoder = ReadyDecoder(model, *twin_arguments(model))
        decoding = Decoding(decoder, memory, (BATCH != 1).long())
        decoding.step(torch.zeros(6, dtype=torch.long))
        decoding.pick(torch.arange(6).repeat_interleave(5))
        decoding.step(torch.arange(30) + 3)
    assert {len(key) for key, _ in decoding.memory} == {6}
    assert {words.block.shape[2] for words in decoding.words} == {30}


def twin_arguments(model):
    from hf_attn.inference import LooseLinear

    return LooseLinear, model.dtype


@pytest.mark.skipif(not int8_works(), reason="no quantized operators")
@pytest.mark.parametrize("beams", [1, 3])
def test_translations_in_eight_bits_do_not_depend_on_their_neighbours(beams):
    model = translator(end_bias=1.5).float().prepare_for_inference(torch.int8)
    together = model.generate(BATCH, num_beams=beams)
    for row, source in enumerate(BATCH):
        alone = model.generate(source[None, source != 1], num_beams=beams)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert set(together[row, len(alone) :].tolist()) <= {1}


@pytest.mark.parametrize(("n", "k"), [(37, 3), (1600, 2), (1601, 8), (10_000, 8), (10_000, 24), (64, 64)])
def test_the_greatest_of_blocks_are_the_greatest_of_all(n, k):
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    x[2] = torch.arange(n)
    x[3] = -torch.arange(n)
    values, places = top_k(x, k)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(x.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())
