"""generate(): how long, with which beginning, by whose word, and the same after saving."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextStreamer

from hf_attn import AttnTranslatorForConditionalGeneration
from hf_attn.generation_translator import ForcedPrefixes, paper_generation_config
from tests.generation import (
    END,
    PAD,
    START,
    log_probabilities,
    sources,
    translations_of,
    translator,
)

NEVER = -1e4


def new_words(sequences: torch.Tensor) -> list[list[int]]:
    """Of models that never choose padding: the words of each sequence."""
    return [[word for word in sequence[1:].tolist() if word != PAD] for sequence in sequences]


def chatterbox(**config) -> AttnTranslatorForConditionalGeneration:
    """Never ends a sentence, never says padding: every translation gets as long as it may."""
    model = translator(end_bias=NEVER, **config)
    model.logits_bias.data[PAD] = NEVER
    return model


@pytest.fixture(autouse=True)
def silence_is_kept(monkeypatch):
    """Nothing here may make transformers log a warning."""

    def refuse(message, *args, **kwargs):
        raise AssertionError(f"transformers warned: {message}")

    for module in ("utils", "configuration_utils", "logits_process", "stopping_criteria"):
        monkeypatch.setattr(f"transformers.generation.{module}.logger.warning", refuse)
        monkeypatch.setattr(f"transformers.generation.{module}.logger.warning_once", refuse)


# --- lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}])
def test_each_sentence_may_be_fifty_words_longer_than_its_source(search):
    words = new_words(chatterbox().generate(sources(1, 4, 2), **search))
    assert [len(w) for w in words] == [51, 54, 52]


def test_padding_does_not_count_whether_the_mask_says_so_or_the_ids():
    model = chatterbox()
    batch = torch.nn.functional.pad(sources(1, 4), (0, 3), value=PAD)
    by_ids = model.generate(batch, max_new_tokens_over_source=2)
    by_mask = model.generate(batch, attention_mask=(batch != PAD).long(), max_new_tokens_over_source=2)
    by_memory = model.generate(
        encoder_outputs=model.get_encoder()(batch), attention_mask=batch != PAD, max_new_tokens_over_source=2
    )
    by_embeddings = model.generate(
        inputs_embeds=model.get_input_embeddings()(batch), attention_mask=batch != PAD, max_new_tokens_over_source=2
    )
    assert [len(w) for w in new_words(by_ids)] == [3, 6]
    assert by_ids.tolist() == by_mask.tolist() == by_memory.tolist() == by_embeddings.tolist()


def test_several_samples_of_a_sentence_share_its_length():
    sequences = chatterbox().generate(sources(1, 4), do_sample=True, num_return_sequences=2)
    assert [len(w) for w in new_words(sequences)] == [51, 51, 54, 54]


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
@pytest.mark.parametrize(
    ("caller", "model_entries", "expected"),
    [
        ({}, {}, [51, 54]),
        ({"max_new_tokens": 5}, {}, [5, 5]),
        ({"max_length": 5}, {}, [4, 4]),
        ({"max_new_tokens_over_source": 0}, {}, [1, 4]),
        ({}, {"max_new_tokens_over_source": 3}, [4, 7]),
        ({}, {"max_length": 9}, [8, 8]),
        ({}, {"max_new_tokens": 9}, [9, 9]),
        ({"max_new_tokens_over_source": 3}, {"max_length": 9}, [4, 7]),
        ({"max_new_tokens_over_source": 3}, {"max_new_tokens": 9}, [4, 7]),
        ({"max_new_tokens": 6}, {"max_new_tokens_over_source": 3}, [6, 6]),
        ({"generation_config": paper_generation_config(num_beams=1)}, {"max_length": 9}, [51, 54]),
        ({"generation_config": GenerationConfig(max_new_tokens=6)}, {"max_new_tokens_over_source": 3}, [6, 6]),
    ],
    ids=str,
)
def test_whoever_is_nearer_to_the_call_says_how_long(caller, model_entries, expected, search):
    model = chatterbox()
    model.generation_config.update(**model_entries, **search)
    assert [len(w) for w in new_words(model.generate(sources(1, 4), **caller))] == expected


def test_defaults_that_a_trainer_fills_in_are_not_taken_for_a_wish(tmp_path):
    model = chatterbox()
    for _ in range(2):
        assert [len(w) for w in new_words(model.generate(sources(1, 4)))] == [51, 54]
        filled = model.generation_config  # as Seq2SeqTrainer.prediction_step does after every batch
        filled.update(**filled._get_default_generation_params(), defaults_only=True)
        assert filled.max_length == 20
    model.save_pretrained(tmp_path)
    loaded = AttnTranslatorForConditionalGeneration.from_pretrained(tmp_path)
    assert [len(w) for w in new_words(loaded.generate(sources(1, 4)))] == [51, 54]


def test_a_prompt_of_the_decoder_does_not_count():
    prompt = torch.tensor([[START, 5, 6], [START, 7, 8]])
    sequences = chatterbox().generate(sources(1, 4), decoder_input_ids=prompt, num_beams=2)
    assert torch.equal(sequences[:, :3], prompt)
    assert [len(w) for w in new_words(sequences)] == [2 + 51, 2 + 54]


@pytest.mark.parametrize("more", [-1, 2.5, "10"])
def test_lengths_over_the_source_that_cannot_be_are_refused(more):
    with pytest.raises(ValueError, match=r"max_new_tokens_over_source is .*whole number from 0, 50 by default"):
        translator().generate(sources(3), max_new_tokens_over_source=more)


def test_alpha_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"gnmt_alpha is '0.6'; it must be a number"):
        translator().generate(sources(3), num_beams=2, gnmt_alpha="0.6")


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_the_shortest_and_a_very_long_source(search):
    model = translator(end_bias=9.0).float()
    assert model.generate(torch.tensor([[END]]), **search).shape[0] == 1
    assert model.generate(sources(4096, 1), **search).shape[0] == 2


# --- whose word counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "model_entries", "expected"),
    [
        ({}, {}, lambda n: n),
        ({"gnmt_alpha": 0.6}, {}, lambda n: ((5 + n) / 6) ** 0.6),
        ({}, {"gnmt_alpha": 0.6}, lambda n: ((5 + n) / 6) ** 0.6),
        ({}, {"gnmt_alpha": 0.6, "length_penalty": 2.0}, lambda n: ((5 + n) / 6) ** 0.6),
        ({"length_penalty": 2.0}, {"gnmt_alpha": 0.6}, lambda n: n**2),
        ({"gnmt_alpha": None}, {"gnmt_alpha": 0.6}, lambda n: n),
        ({"gnmt_alpha": 1}, {"length_penalty": 2.0}, lambda n: (5 + n) / 6),
        ({"generation_config": paper_generation_config()}, {"length_penalty": 2.0}, lambda n: ((5 + n) / 6) ** 0.6),
    ],
)
def test_whoever_is_nearer_to_the_call_says_which_penalty(caller, model_entries, expected):
    model = translator(end_bias=1.0)
    model.generation_config.update(num_beams=4, return_dict_in_generate=True, **model_entries)
    source = sources(5)
    out = model.generate(source, **caller)
    [words] = translations_of(out)
    assert_close(out.sequences_scores * expected(len(words)), log_probabilities(model, source, [words]))


def test_the_papers_decoding():
    config = paper_generation_config()
    assert (config.num_beams, config.gnmt_alpha, config.max_new_tokens_over_source) == (4, 0.6, 50)
    config = paper_generation_config(num_beams=2, gnmt_alpha=1.0, num_return_sequences=2)
    assert (config.num_beams, config.gnmt_alpha, config.num_return_sequences) == (2, 1.0, 2)


def test_the_papers_decoding_in_the_models_own_config_is_saved_and_loaded(tmp_path):
    model = translator(end_bias=1.0)
    model.generation_config = paper_generation_config(max_new_tokens_over_source=7)
    expected = model.generate(sources(5, 2))
    model.save_pretrained(tmp_path)
    loaded = AttnTranslatorForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.gnmt_alpha == 0.6
    assert loaded.generation_config.max_new_tokens_over_source == 7
    assert loaded.generation_config.num_beams == 4
    assert loaded.generate(sources(5, 2)).tolist() == expected.tolist()


def test_entries_set_on_a_fresh_model_are_saved_and_loaded(tmp_path):
    model = translator()
    assert model.generation_config.max_new_tokens_over_source == 50
    assert model.generation_config.gnmt_alpha is None
    model.generation_config.gnmt_alpha = 0.8
    model.generation_config.max_new_tokens_over_source = 5
    model.save_pretrained(tmp_path)
    loaded = AttnTranslatorForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.gnmt_alpha == 0.8
    assert loaded.generation_config.max_new_tokens_over_source == 5
    (tmp_path / "generation_config.json").unlink()
    without_file = AttnTranslatorForConditionalGeneration.from_pretrained(tmp_path)
    assert without_file.generation_config.max_new_tokens_over_source == 50
    assert without_file.generation_config.eos_token_id == END


# --- greedy and sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [{}, {"num_beams": 4, "gnmt_alpha": 0.6}], ids=["greedy", "beam"])
def test_a_sentence_in_a_batch_is_translated_as_if_alone(search):
    model = translator(end_bias=1.0)
    model.logits_bias.data[PAD] = NEVER
    model.generation_config.max_new_tokens_over_source = 6
    batch = sources(2, 11, 1, 5, 7, 3)
    expected = [new_words(model.generate(row[row != PAD][None], **search))[0] for row in batch]
    assert new_words(model.generate(batch, **search)) == expected
    assert new_words(model.generate(torch.nn.functional.pad(batch, (0, 4), value=PAD), **search)) == expected
    order = torch.tensor([2, 0, 5, 3, 4, 1])
    assert new_words(model.generate(batch[order], **search)) == [expected[i] for i in order]
    assert new_words(model.generate(batch, use_cache=False, **search)) == expected
    assert len(set(map(len, expected))) > 3


def test_sampling_is_reproducible():
    model = translator()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(sources(5, 3), do_sample=True, num_return_sequences=3, max_new_tokens=9).tolist())
    assert len(runs[0]) == 6
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("search", [{}, {"num_beams": 4}], ids=["greedy", "beam"])
def test_bad_words_do_not_appear(search):
    model = chatterbox()
    free = new_words(model.generate(sources(5), max_new_tokens=12, **search))[0]
    bad = [[free[0]], free[4:6]]
    held = new_words(model.generate(sources(5), max_new_tokens=12, bad_words_ids=bad, **search))[0]
    assert free[0] not in held
    assert all(held[i : i + 2] != bad[1] for i in range(len(held)))


def test_a_streamer_shows_the_words_as_they_come(capsys):
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, 41)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    model = chatterbox()
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    sequences = model.generate(
        sources(4), streamer=streamer, max_new_tokens=6, target_prefixes=[[20, 21]], repetition_penalty=1.3
    )
    assert capsys.readouterr().out.strip() == tokenizer.decode(sequences[0], skip_special_tokens=True)


# --- beginnings of the target --------------------------------------------------------------------------------------

SEARCHES = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 2.0, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "n-best": {"num_beams": 4, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_beginnings_of_different_lengths_are_respected(search):
    prefixes = [[5, 6, 7], [], [9], [30, 30, 30, 30]]
    torch.manual_seed(0)
    words = new_words(
        chatterbox().generate(
            sources(4, 2, 6, 3), target_prefixes=prefixes, bad_words_ids=[[5], [30, 30]], min_new_tokens=2, **search
        )
    )
    for i, translation in enumerate(words):
        prefix = prefixes[i * len(prefixes) // len(words)]
        assert translation[: len(prefix)] == prefix
        rest = translation[len(prefix) :]
        assert 5 not in rest and [30, 30] not in [rest[j : j + 2] for j in range(len(rest))]


def test_a_beginning_that_the_model_would_choose_anyhow_changes_nothing():
    model = chatterbox()
    free = model.generate(sources(4, 2, 6), max_new_tokens=8)
    prefixes = [free[0, 1:4].tolist(), [], free[2, 1:].tolist()]
    assert model.generate(sources(4, 2, 6), max_new_tokens=8, target_prefixes=prefixes).tolist() == free.tolist()


def test_forced_words_keep_their_own_log_probability():
    model = translator(end_bias=1.0)
    batch = sources(4, 2)
    out = model.generate(
        batch,
        num_beams=4,
        target_prefixes=[[5, 6, 7], [8]],
        renormalize_logits=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    words = translations_of(out)
    expected = [log_probabilities(model, row[row != PAD][None], [w]) for row, w in zip(batch, words, strict=True)]
    lengths = torch.tensor([len(w) for w in words])
    assert_close(out.sequences_scores * lengths, torch.cat(expected))
    assert_close(
        model.compute_transition_scores(out.sequences, out.scores, out.beam_indices).sum(1), torch.cat(expected)
    )


def test_sentences_without_a_beginning_are_translated_as_without():
    model = translator(end_bias=1.0)
    arguments = {"num_beams": 4, "num_return_sequences": 2, "return_dict_in_generate": True}
    free = model.generate(sources(4, 2, 6), **arguments)
    forced = model.generate(sources(4, 2, 6), target_prefixes=[[], [7, 7], []], **arguments)
    free_words, forced_words = translations_of(free), translations_of(forced)
    for i in (0, 1, 4, 5):
        assert forced_words[i] == free_words[i]
    assert_close(forced.sequences_scores[[0, 1, 4, 5]], free.sequences_scores[[0, 1, 4, 5]])


def test_a_beginning_may_fill_the_whole_length():
    out = translator().generate(sources(4, 2), target_prefixes=[[5, 6], [7]], max_new_tokens=2, num_beams=2)
    assert out[0].tolist() == [START, 5, 6]


def test_forced_prefixes_leave_the_scores_that_they_are_given():
    scores = torch.randn(4, 9)
    given = scores.clone()
    processor = ForcedPrefixes([[5], []], prompt_length=1, processors=lambda ids, scores: scores.fill_(-math.inf))
    processed = processor(torch.zeros(4, 1, dtype=torch.long), scores)
    assert torch.equal(processed[:2, 5], given[:2, 5])
    assert processed.isfinite().sum() == 2


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ([[5]], r"target_prefixes has 1 entries for 2 sentences; give one for each"),
        ([[5] * 4, []], r"target_prefixes\[0\] has 4 tokens in a row, but sentence 0 may have 3 new tokens"),
        ([[], [41]], r"target_prefixes\[1\] has token id 41, outside the vocabulary; ids are from 0 to 40"),
        ([[], [-3]], r"target_prefixes\[1\] has token id -3, outside"),
        ([[5, PAD], [6, 7]], r"target_prefixes\[0\] has token id 1, which is padding: lists may differ in length"),
        ([[5, END], []], r"target_prefixes\[0\] has token id 2, which is the end of a sentence"),
        ([5, 6], r"target_prefixes must be one entry per sentence, like \[\[5, 6\], \[\], ...\]"),
        ([[5.0], []], r"of token ids"),
    ],
)
def test_beginnings_that_cannot_be_are_refused(prefixes, message):
    with pytest.raises(ValueError, match=message):
        translator().generate(sources(4, 2), target_prefixes=prefixes, max_new_tokens=3)


def test_a_beginning_longer_than_its_own_sentence_may_be_is_refused():
    prefixes = [[], [5] * 4]
    with pytest.raises(ValueError, match=r"\[1\] has 4 tokens in a row, but sentence 1 may have 3 new tokens"):
        translator().generate(sources(4, 2), target_prefixes=prefixes, max_new_tokens_over_source=1)
    translator().generate(sources(4, 3), target_prefixes=prefixes, max_new_tokens_over_source=1)
