"""Beam search against exhaustive search, against transformers' own, and against itself in other company."""

from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close
from transformers import EosTokenCriteria, GenerationMixin, StoppingCriteria, StoppingCriteriaList

from hf_attn import AttnTranslatorForConditionalGeneration, generation_steps, generation_translator
from hf_attn.generation_beam_search import NOTHING, BeamSearch
from hf_attn.generation_translator import paper_generation_config
from tests.generation import (
    END,
    PAD,
    START,
    all_translations,
    log_probabilities,
    penalty,
    sources,
    translations_of,
    translator,
)

PAPER = {"num_beams": 4, "gnmt_alpha": 0.6, "max_new_tokens_over_source": 9}
PENALTIES = [
    {"gnmt_alpha": 0.6},
    {"gnmt_alpha": 0.0},
    {"gnmt_alpha": 1.5},
    {"gnmt_alpha": -0.7},
    {"length_penalty": 1.0},
    {"length_penalty": 0.0},
    {"length_penalty": 2.0},
    {"length_penalty": -1.0},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("entries", PENALTIES, ids=str)
def test_a_wide_enough_beam_finds_what_exhaustive_search_finds(entries, seed):
    model = translator(seed, vocab_size=5)
    source = sources(4, seed=seed, vocab_size=5)
    translations = all_translations(vocab_size=5, limit=4)
    scores = log_probabilities(model, source, translations) / torch.tensor(
        [penalty(len(words), **{"gnmt_alpha": None, **entries}) for words in translations]
    )
    ranking = scores.argsort(descending=True)

    n = len(translations)
    out = model.generate(
        source, num_beams=n, num_return_sequences=n, max_new_tokens=4, return_dict_in_generate=True, **entries
    )
    assert translations_of(out) == [list(translations[i]) for i in ranking]
    assert_close(out.sequences_scores, scores[ranking])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_scores_agree_with_transformers_beam_search_where_both_are_exhaustive(length_penalty):
    class Stock(AttnTranslatorForConditionalGeneration):
        _beam_search = GenerationMixin._beam_search

    ours = translator(vocab_size=5)
    stock = Stock(ours.config).double().eval()
    stock.load_state_dict(ours.state_dict())
    arguments = {
        "num_beams": 60,
        "num_return_sequences": 60,
        "max_new_tokens": 3,
        "length_penalty": length_penalty,
        "early_stopping": "never",
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    source = sources(4, 3, vocab_size=5)
    out, expected = ours.generate(source, **arguments), stock.generate(source, **arguments)
    assert out.sequences.tolist() == expected.sequences.tolist()
    assert_close(out.sequences_scores, expected.sequences_scores, check_dtype=False)
    assert_close(
        ours.compute_transition_scores(out.sequences, out.scores, out.beam_indices),
        stock.compute_transition_scores(expected.sequences, expected.scores, expected.beam_indices),
        check_dtype=False,  # theirs are float32 whatever the model is
    )


@pytest.mark.parametrize("entries", PENALTIES, ids=str)
def test_scores_are_the_models_own_log_probability_over_the_penalty(entries):
    model = translator(end_bias=2.0)
    batch = sources(9, 4, 1)
    out = model.generate(
        batch, num_beams=5, num_return_sequences=5, return_dict_in_generate=True, output_scores=True, **entries
    )
    translations = translations_of(out)
    assert len(set(map(len, translations))) > 1
    lengths = torch.tensor([penalty(len(words), **{"gnmt_alpha": None, **entries}) for words in translations])
    teacher_forced = torch.cat(
        [log_probabilities(model, batch[i : i + 1], translations[5 * i : 5 * i + 5]) for i in range(3)]
    )
    assert_close(out.sequences_scores, teacher_forced / lengths)
    transitions = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    assert_close(transitions.sum(1) / lengths, out.sequences_scores)
    assert (out.sequences_scores.view(3, 5).diff() <= 0).all()


@pytest.mark.parametrize("entries", [*PENALTIES, {"early_stopping": True, "gnmt_alpha": 1.5}], ids=str)
def test_one_beam_is_greedy_search(entries):
    model = translator(end_bias=2.0)
    batch = sources(9, 4, 1, 6)
    beam = model.generate(batch, num_beams=1, custom_generate=type(model)._beam_search, **entries)
    assert beam.tolist() == model.generate(batch).tolist()


@pytest.mark.parametrize("entries", PENALTIES, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_to_stop_early_changes_nothing(entries, n, monkeypatch):
    model = translator(end_bias=2.0)
    arguments = {"num_beams": 3, "num_return_sequences": n, "max_new_tokens": 12, "return_dict_in_generate": True}
    batch = sources(9, 4, 1, 6, 7, 3)
    early = model.generate(batch, output_logits=True, **arguments, **entries)
    monkeypatch.setattr(BeamSearch, "_is_settled", lambda search: search.scores.amax(dim=1) == NOTHING)
    late = model.generate(batch, output_logits=True, **arguments, **entries)
    assert early.sequences.tolist() == late.sequences.tolist()
    assert_close(early.sequences_scores, late.sequences_scores)
    assert len(early.logits) <= len(late.logits) == 12


@pytest.mark.parametrize(("limit", "winner"), [(21, [END]), (22, [3] * 22)])
def test_a_bad_start_may_win_in_the_long_run(limit, winner):
    """A sentence that ends at once with probability 0.9, or else goes on for ever: ln 0.9 / 1 against ln 0.1 / length,
    which is greater from 22 words on (a beam that is at 2 words seems far behind)."""
    start, going_on = torch.tensor([[0.0, 0.0, 0.9, 0.1], [0.0, 0.0, 0.0, 1.0]]).log()
    config = paper_generation_config(num_beams=2, num_return_sequences=1, gnmt_alpha=None, length_penalty=1.0)
    config._eos_token_tensor = torch.tensor([END])
    criteria = StoppingCriteriaList([EosTokenCriteria(END)])
    search = BeamSearch(torch.full((2, 1), START), torch.tensor([limit]), criteria, config)
    while not search.is_over:
        log_probs = start if not search.steps else going_on
        search.advance(log_probs.expand(2, -1))
    assert search.results(PAD)["sequences"].tolist() == [[START, *winner]]


def test_early_stopping_true_stops_at_as_many_hypotheses_as_beams():
    model = translator(end_bias=3.0)
    arguments = {"num_beams": 3, "max_new_tokens": 40, "gnmt_alpha": 2.0, "return_dict_in_generate": True}
    first = model.generate(sources(6), early_stopping=True, num_return_sequences=3, output_logits=True, **arguments)
    best = model.generate(sources(6), num_return_sequences=3, output_logits=True, **arguments)
    assert all(words[-1] == END for words in translations_of(first))
    assert len(first.logits) < len(best.logits)
    assert (first.sequences_scores <= best.sequences_scores).all()


@pytest.mark.parametrize("entries", [{"gnmt_alpha": 0.6}, {"length_penalty": 2.0}, {"early_stopping": True}], ids=str)
def test_a_sentence_in_a_batch_is_translated_as_if_alone(entries):
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5, 7, 3)
    arguments = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens_over_source": 4, **entries}
    together = model.generate(batch, return_dict_in_generate=True, **arguments)
    ends = set()
    for i, row in enumerate(batch):
        alone = model.generate(row[row != PAD][None], return_dict_in_generate=True, **arguments)
        assert translations_of(together)[3 * i : 3 * i + 3] == translations_of(alone)
        assert_close(together.sequences_scores[3 * i : 3 * i + 3], alone.sequences_scores)
        ends.add(alone.sequences.shape[1])
    assert len(ends) > 3  # they do not all finish at the same step


def test_more_padding_and_another_order_change_nothing():
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5, 7, 3)
    arguments = PAPER
    expected = model.generate(batch, **arguments)
    padded = torch.nn.functional.pad(batch, (0, 5), value=PAD)
    assert model.generate(padded, **arguments).tolist() == expected.tolist()
    order = (batch != PAD).sum(1).argsort()
    assert model.generate(batch[order], **arguments).tolist() == expected[order].tolist()


def test_cached_is_uncached():
    model = translator(end_bias=1.0)
    arguments = {**PAPER, "num_return_sequences": 2, "return_dict_in_generate": True}
    batch = sources(2, 11, 1, 5)
    cached, uncached = (model.generate(batch, use_cache=cache, **arguments) for cache in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    assert_close(cached.sequences_scores, uncached.sequences_scores)


def test_memory_keys_need_no_reordering(monkeypatch):
    model = translator(end_bias=1.0)
    arguments = {**PAPER, "num_return_sequences": 2, "return_dict_in_generate": True}
    batch = sources(2, 11, 1, 5)
    monkeypatch.setattr(type(model), "decoder_twin", lambda model: None)
    left_alone = model.generate(batch, **arguments)
    monkeypatch.setattr(generation_steps.ForwardSteps, "pick", lambda steps, rows, _: steps._pick(rows // steps.alike))
    monkeypatch.setattr(generation_translator, "can_change_rows", lambda cache: False)
    reordered = model.generate(batch, **arguments)
    assert torch.equal(left_alone.sequences, reordered.sequences)
    assert_close(left_alone.sequences_scores, reordered.sequences_scores)


@pytest.mark.parametrize("entries", [*PENALTIES, {"early_stopping": True}], ids=str)
def test_sentences_that_are_done_are_dropped_and_nothing_changes(entries):
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5, 7, 3, 4)
    arguments = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens_over_source": 4, **entries}
    rows: list[int] = []
    hook = model.model.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out.last_hidden_state)))
    dropped = model.generate(batch, return_dict_in_generate=True, **arguments)
    hook.remove()
    assert rows[:2] == [7, 21]  # at the first step, a sentence's beams are still one
    assert sorted(rows[1:], reverse=True) == rows[1:] and rows[-1] < 21
    kept = model.generate(batch, return_dict_in_generate=True, output_scores=True, **arguments)
    assert {len(scores) for scores in kept.scores} == {21}
    assert dropped.sequences.tolist() == kept.sequences.tolist()
    assert dropped.beam_indices.tolist() == kept.beam_indices.tolist()
    assert_close(dropped.sequences_scores, kept.sequences_scores)


def test_rows_stay_where_others_count_on_them():
    class Rows(StoppingCriteria):
        counts: ClassVar[list[int]] = []

        def __call__(self, input_ids, scores, **kwargs):
            self.counts.append(len(input_ids))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5)
    expected = model.generate(batch, num_beams=3, max_new_tokens_over_source=4)
    watched = model.generate(batch, num_beams=3, max_new_tokens_over_source=4, stopping_criteria=[Rows()])
    assert watched.tolist() == expected.tolist()
    assert set(Rows.counts) == {4 * 2 * 3}


def test_several_ends_of_a_sentence():
    model = translator()
    model.logits_bias.data[[END, 7, 9]] += 2.0
    model.generation_config.eos_token_id = [END, 7, 9]
    out = model.generate(
        sources(4, 6, 3), num_beams=4, num_return_sequences=4, gnmt_alpha=0.6, return_dict_in_generate=True
    )
    translations = translations_of(out)
    assert not any(end in words[:-1] for words in translations for end in (END, 7, 9))
    assert len({words[-1] for words in translations} & {END, 7, 9}) > 1


def test_bfloat16():
    model = translator(end_bias=1.0).bfloat16()
    out = model.generate(sources(4, 6), num_beams=4, max_new_tokens=8, return_dict_in_generate=True)
    assert out.sequences_scores.dtype == torch.float32
    assert out.sequences_scores.isfinite().all()


def test_a_static_cache_does_as_well():
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5)
    static = model.generate(batch, num_beams=3, cache_implementation="static", max_new_tokens=9)
    assert static.tolist() == model.generate(batch, num_beams=3, max_new_tokens=9).tolist()


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beam"])
@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores_are_as_in_transformers(beams, normalize):
    model = translator(end_bias=1.0)
    out = model.generate(sources(4, 2), return_dict_in_generate=True, output_scores=True, **beams)
    arguments = (out.sequences, out.scores, out.get("beam_indices"), normalize)
    scores = model.compute_transition_scores(*arguments)
    assert_close(scores, GenerationMixin.compute_transition_scores(model, *arguments))


def test_transition_scores_where_source_and_target_have_their_own_vocabularies():
    model = translator(decoder_vocab_size=23, share_embeddings=False)
    out = model.generate(
        sources(4, 2), num_beams=3, max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    lengths = torch.tensor([len(words) for words in translations_of(out)])
    scores = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    assert_close(scores.sum(1) / lengths, out.sequences_scores)


def test_places_without_a_hypothesis_hold_padding():
    model = translator(vocab_size=5)
    out = model.generate(
        sources(3, vocab_size=5),
        num_beams=8,
        num_return_sequences=8,
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert sorted(out.sequences[:5, 1].tolist()) == [0, 1, 2, 3, 4]
    assert out.sequences[5:].tolist() == [[START, PAD]] * 3
    assert out.sequences_scores.isfinite().tolist() == [True] * 5 + [False] * 3
    assert out.beam_indices[5:].tolist() == [[-1]] * 3


def test_what_is_asked_for_of_every_step_comes_back():
    model = translator()
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    out = model.generate(
        sources(4, 2), num_beams=3, max_new_tokens=5, return_dict_in_generate=True, **dict.fromkeys(wanted, True)
    )
    assert {len(out[name]) for name in ("scores", "logits", "decoder_attentions", "cross_attentions")} == {5}
    assert out.scores[0].shape == out.logits[0].shape == (2 * 3, 41)
    assert out.cross_attentions[0][0].shape == (2 * 3, 2, 1, 4)
    assert len(out.decoder_hidden_states[0]) == 3
    assert out.encoder_attentions[0].shape == (2, 2, 4, 4)
    assert_close(out.scores[4].exp().sum(1), torch.ones(6, dtype=torch.float64))
    plain = model.generate(sources(4, 2), num_beams=3, max_new_tokens=5, return_dict_in_generate=True)
    assert plain.scores is None and plain.sequences_scores.shape == (2,)


def test_beam_sampling_draws_words_as_often_as_the_model_says():
    model = translator(vocab_size=7)
    source = sources(4, vocab_size=7)
    with torch.no_grad():
        logits = model(source, decoder_input_ids=torch.tensor([[START]])).logits[0, 0]
    torch.manual_seed(0)
    n = 4000
    drawn = model.generate(
        source.expand(n, -1),
        num_beams=1,
        do_sample=True,
        top_k=0,
        max_new_tokens=1,
        custom_generate=type(model)._beam_search,
    )[:, 1]
    expected = logits.softmax(0)
    error = (drawn.bincount(minlength=7) / n - expected).abs()
    assert (error < 4 * (expected * (1 - expected) / n).sqrt()).all()


def test_beam_sampling_is_reproducible_and_scored_by_the_model():
    model = translator(end_bias=1.0)
    arguments = {"num_beams": 4, "do_sample": True, "top_k": 0, "gnmt_alpha": 0.6, "return_dict_in_generate": True}
    batch = sources(6, 3)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(batch, **arguments))
    assert runs[0].sequences.tolist() == runs[1].sequences.tolist() != runs[2].sequences.tolist()
    words = translations_of(runs[0])
    expected = [log_probabilities(model, row[row != PAD][None], [w]) for row, w in zip(batch, words, strict=True)]
    lengths = torch.tensor([penalty(len(w), 0.6) for w in words])
    assert_close(runs[0].sequences_scores, torch.cat(expected) / lengths)
