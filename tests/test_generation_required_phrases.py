"""Required phrases: in every translation, at no more cost than need be, and no business of other sentences."""

import itertools
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import StoppingCriteria

from hf_attn.generation_required_phrases import RequiredPhrases, turns
from tests.generation import (
    END,
    PAD,
    all_translations,
    log_probabilities,
    penalty,
    sources,
    translations_of,
    translator,
)

words = st.lists(st.integers(0, 2), max_size=12)
phrase = st.lists(st.integers(0, 2), min_size=1, max_size=4)


def contains(translation: list[int], phrase: list[int]) -> bool:
    return any(translation[i : i + len(phrase)] == phrase for i in range(len(translation)))


@given(st.lists(st.lists(phrase, max_size=3), min_size=1, max_size=3).filter(any), words)
def test_met_and_progress_are_what_one_reads(phrases, translation):
    required = RequiredPhrases(phrases)
    sequences = torch.tensor(translation, dtype=torch.long).expand(len(phrases), 1, -1)
    met, progress = required.met(sequences)[:, 0].tolist(), required.progress(sequences)[:, 0].tolist()
    for i, p in ((i, p) for i, sentence in enumerate(phrases) for p in range(len(sentence))):
        phrase = phrases[i][p]
        assert met[i][p] == contains(translation, phrase)
        begun = [n for n in range(1, len(phrase)) if len(translation) >= n and translation[-n:] == phrase[:n]]
        assert progress[i][p] == max(begun, default=0)
    assert required.count_met(sequences)[:, 0].tolist() == [
        sum(contains(translation, phrase) for phrase in sentence) for sentence in phrases
    ]


@given(st.lists(phrase, min_size=1, max_size=4), words)
def test_going_on_with_a_phrase_always_meets_one_more_token(phrases, translation):
    required = RequiredPhrases([phrases])
    for _ in range(sum(map(len, phrases))):
        sequence = torch.tensor(translation, dtype=torch.long)[None, None]
        before = required.tokens_met(sequence).item()
        after = [
            required.tokens_met(torch.tensor([[[*translation, token]]])).item()
            for token in required.next_tokens(sequence).flatten().tolist()
            if token >= 0
        ]
        if not after:
            assert required.met(sequence).all()
            break
        assert max(after) > before
        translation = [*translation, required.next_tokens(sequence).flatten().tolist()[0]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_banks_take_turns(banks):
    order = turns(torch.tensor([banks]))[0].argsort(stable=True).tolist()
    left = [[i for i, bank in enumerate(banks) if bank == b] for b in sorted(set(banks), reverse=True)]
    assert order == [i for taken in itertools.zip_longest(*left) for i in taken if i is not None]


def test_after_a_false_start_a_phrase_begins_where_it_can():
    required = RequiredPhrases([[[5, 5, 6]]])
    assert required.progress(torch.tensor([[[5, 5, 5]]])).tolist() == [[[2]]]
    assert required.met(torch.tensor([[[5, 5, 5, 6]]])).tolist() == [[[True]]]


PHRASES = [[[3, 4]], [[3], [4, 0]], [[4, 4, 3]], [[3, 4], [4, 3]], [[0, 0, 3, 4]], [[3, 4, 0], [3, 3]]]


@pytest.mark.parametrize("phrases", PHRASES, ids=str)
@pytest.mark.parametrize("entries", [{"gnmt_alpha": 0.6}, {"length_penalty": 0.0}], ids=str)
def test_a_wide_enough_beam_finds_the_best_of_all_translations_with_the_phrases(phrases, entries):
    model = translator(vocab_size=5, end_bias=1.0)
    source = sources(4, vocab_size=5)

    def met(words) -> int:
        return sum(contains(list(words), phrase) for phrase in phrases)

    translations = [
        words for words in all_translations(vocab_size=5, limit=4) if words[-1] != END or met(words) == len(phrases)
    ]
    lengths = torch.tensor([penalty(len(words), **{"gnmt_alpha": None, **entries}) for words in translations])
    scores = (log_probabilities(model, source, translations) / lengths).tolist()
    ranking = sorted(range(len(translations)), key=lambda i: (-met(translations[i]), -scores[i]))

    n = len(translations)
    out = model.generate(
        source,
        num_beams=n,
        num_return_sequences=n,
        max_new_tokens=4,
        required_phrases=[phrases],
        return_dict_in_generate=True,
        **entries,
    )
    assert translations_of(out) == [list(translations[i]) for i in ranking]
    assert_close(out.sequences_scores, torch.tensor([scores[i] for i in ranking], dtype=torch.float64))

    free = model.generate(source, num_beams=n, max_new_tokens=4, return_dict_in_generate=True, **entries)
    assert out.sequences_scores[0] <= free.sequences_scores[0]


@pytest.mark.parametrize("num_beams", [2, 4, 10])
@pytest.mark.parametrize("seed", range(3))
def test_all_phrases_are_there_with_few_beams_and_many_phrases(seed, num_beams):
    model = translator(seed, end_bias=2.0)
    phrases = [[[5, 6], [6, 7], [20]], [[9, 9, 9, 8]], [], [[30, 31, 32], [33], [31, 32, 34], [30]]]
    out = model.generate(
        sources(4, 9, 6, 3, seed=seed),
        num_beams=num_beams,
        required_phrases=phrases,
        num_return_sequences=2,
        return_dict_in_generate=True,
        max_new_tokens=30,
        gnmt_alpha=0.6,
    )
    for i, translation in enumerate(translations_of(out)):
        assert all(contains(translation, phrase) for phrase in phrases[i // 2]), (i, translation)
        assert translation[-1] == END or len(translation) == 30


def test_phrases_that_just_fit_are_met():
    phrases = [[5, 6, 7], [8], [9, 10]]
    out = translator().generate(
        sources(4), num_beams=2, max_new_tokens=6, required_phrases=[phrases], return_dict_in_generate=True
    )
    assert all(contains(translations_of(out)[0], phrase) for phrase in phrases)


def test_sentences_without_phrases_are_translated_as_without():
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5)
    arguments = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 15, "return_dict_in_generate": True}
    free = model.generate(batch, **arguments)
    mixed = model.generate(batch, required_phrases=[[[5, 6]], [], [[7], [8]], []], **arguments)
    mixed_words, free_words = translations_of(mixed), translations_of(free)
    for i in (2, 3, 6, 7):
        assert mixed_words[i] == free_words[i]
    assert_close(mixed.sequences_scores[[2, 3, 6, 7]], free.sequences_scores[[2, 3, 6, 7]])
    assert contains(mixed_words[0], [5, 6]) and not contains(free_words[0], [5, 6])


def test_sentences_with_phrases_are_translated_as_if_alone():
    model = translator(end_bias=1.0)
    batch = sources(2, 11, 1, 5)
    phrases = [[[5, 6]], [[7, 8, 9], [7]], [], [[12], [13, 12]]]
    arguments = {"num_beams": 4, "gnmt_alpha": 0.6, "max_new_tokens": 15, "return_dict_in_generate": True}
    together = model.generate(batch, required_phrases=phrases, **arguments)
    for i, row in enumerate(batch):
        alone = model.generate(row[row != PAD][None], required_phrases=[phrases[i]], **arguments)
        assert translations_of(alone)[0] == translations_of(together)[i]
        assert_close(alone.sequences_scores[0], together.sequences_scores[i])


def test_phrases_and_beginnings_and_bad_words_and_sampling_go_together():
    model = translator(end_bias=2.0)
    torch.manual_seed(0)
    for sampling in ({}, {"do_sample": True, "top_k": 0}):
        out = model.generate(
            sources(4, 9),
            num_beams=6,
            required_phrases=[[[5, 6]], [[7], [3, 8]]],
            target_prefixes=[[9, 5], [3]],
            bad_words_ids=[[6, 7], [5, 5]],
            max_new_tokens=15,
            return_dict_in_generate=True,
            **sampling,
        )
        first, second = translations_of(out)
        assert first[:2] == [9, 5] and contains(first, [5, 6])
        assert second[0] == 3 and contains(second, [7]) and contains(second, [3, 8])
        assert not any(contains(translation, bad) for translation in (first, second) for bad in ([6, 7], [5, 5]))


def test_what_another_criterion_ends_without_its_phrases_is_the_last_choice():
    class AfterOneWord(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == favourite

    model = translator()
    favourite = model.generate(sources(4), max_new_tokens=1)[0, 1].item()
    arguments = {"num_beams": 4, "max_new_tokens": 9, "length_penalty": 0.0, "return_dict_in_generate": True}
    free = model.generate(sources(4), stopping_criteria=[AfterOneWord()], **arguments)
    assert translations_of(free) == [[favourite]]
    bound = model.generate(
        sources(4), stopping_criteria=[AfterOneWord()], required_phrases=[[[5, 6], [7, 8]]], **arguments
    )
    assert all(contains(translations_of(bound)[0], phrase) for phrase in ([5, 6], [7, 8]))


def test_what_does_not_fit_is_said(caplog):
    phrases = [[], [[5, 6], [7, 8], [9, 10]]]
    with caplog.at_level(logging.WARNING, logger="hf_attn.generation_translator"):
        out = translator().generate(
            sources(4, 4), num_beams=4, max_new_tokens=5, required_phrases=phrases, return_dict_in_generate=True
        )
    best = translations_of(out)[1]
    assert sum(contains(best, phrase) for phrase in phrases[1]) == 2
    assert len(caplog.records) == 1
    assert "sentence 1 contains 2 of its 3 required phrases" in caplog.text
    assert "within 5 new tokens" in caplog.text


def test_phrases_that_all_sentences_lack_are_none_at_all():
    model = translator()
    assert model.generate(sources(4, 2), required_phrases=[[], []], max_new_tokens=3).tolist() == (
        model.generate(sources(4, 2), max_new_tokens=3).tolist()
    )


@pytest.mark.parametrize(
    ("phrases", "arguments", "message"),
    [
        ([[[5]]], {}, r"has 1 entries for 2 sentences"),
        ([[[5]], [[]]], {}, r"required_phrases\[1\] has an empty phrase"),
        ([[[5, 6, 7, 8]], []], {"max_new_tokens": 3}, r"\[0\] has 4 tokens in a row, but sentence 0 may have 3 new"),
        ([[], [[41]]], {}, r"required_phrases\[1\] has token id 41, outside the vocabulary; ids are from 0 to 40"),
        ([[], [[-1]]], {}, r"token id -1, outside the vocabulary"),
        ([[[5, END]], []], {}, r"required_phrases\[0\] has token id 2, which is the end of a sentence"),
        ([[[PAD]], []], {}, r"token id 1, which is padding"),
        ([[[5]], []], {"num_beams": 1}, r"num_beams is 1; set num_beams to 4"),
        ([[5], [6]], {}, r"one entry per sentence, like \[\[\[5, 6\], \[7\]\]"),
        ([["an"], []], {}, r"of token ids"),
    ],
)
def test_phrases_that_cannot_be_are_refused(phrases, arguments, message):
    with pytest.raises(ValueError, match=message):
        translator().generate(sources(4, 2), required_phrases=phrases, **{"num_beams": 4, **arguments})
