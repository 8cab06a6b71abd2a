"""The pipeline: texts come back whole and in order, each as if alone, with what the model says of them."""

import itertools
import os

import datasets
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_attn import pipeline_translation
from hf_attn.pipeline_batches import SMALL, Batching
from hf_attn.pipeline_translation import TranslationPipeline, register_translation_pipeline
from hf_attn.pipeline_workers import can_fork, side_by_side
from hf_attn.tokenization_translator import train_tokenizer
from tests.tiny import tiny_translator

register_translation_pipeline()

SENTENCES = ["Der alte Mann sitzt im Garten.", "The old man sits in the garden.", "Die Kinder spielen.", "It rains."]
TOKENIZER = train_tokenizer(SENTENCES * 3, 300)
TEXTS = [
    "Der alte Mann sitzt.",
    "Die Kinder",
    " Im Garten.  Die Kinder spielen!\n\nDer Hund, die Katze, das Pferd; und alle anderen Tiere schlafen. ",
    "",
    "Mann",
    " \n ",
    "😀 !!!",
    "Der Garten. 😀 Der Mann!",
]


def tiny_pipeline(**options) -> TranslationPipeline:
    model = tiny_translator(vocab_size=len(TOKENIZER))
    return pipeline("translation", model=model, tokenizer=TOKENIZER, **{"max_new_tokens": 12, **options})


class Echo(TranslationPipeline):
    """Translates every token into itself, so that what remains is what the pipeline does to texts."""

    batches: list[tuple[int, int]]

    def _forward(self, input_tensors, **kwargs):
        ids = input_tensors["input_ids"]
        self.batches.append(tuple(ids.shape))
        return {"sequences": torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)}


def echo(**options) -> Echo:
    made = Echo(model=tiny_translator(vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER, **options)
    made.batches = []
    return made


# --- what comes back -------------------------------------------------------------------------------------------------


def test_a_sentence_is_translated_as_by_the_model_itself():
    translate = tiny_pipeline(num_beams=3)
    encoded = TOKENIZER("Die Kinder spielen.", return_tensors="pt")
    [ids] = translate.model.generate(**encoded, num_beams=3, max_new_tokens=12).tolist()
    expected = TOKENIZER.decode(ids, skip_special_tokens=True).strip()
    assert expected
    assert translate("Die Kinder spielen.") == [{"translation_text": expected}]


def test_strings_lists_and_streams_have_their_forms():
    translate = tiny_pipeline()
    [one] = translate("Die Kinder")
    assert translate(["Die Kinder", "Die Kinder"]) == [one, one]
    assert translate(("Die Kinder",)) == [one]
    assert translate([]) == []
    stream = translate(text for text in ["Die Kinder"])
    assert list(stream) == [[one]]
    several = translate(["Die Kinder", ""], n_best=2, num_beams=2)
    assert [len(records) for records in several] == [2, 2]
    assert [record["translation_text"] for record in several[1]] == ["", ""]
    assert len(translate("Die Kinder", num_return_sequences=3, do_sample=True)) == 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "return_token_scores": True, "return_scores": True}])
def test_each_text_is_translated_as_if_alone(options):
    translate = tiny_pipeline(max_tokens_per_batch=60, **options)
    together = translate(TEXTS)
    for text, record in zip(TEXTS, together, strict=True):
        [alone] = translate(text)
        assert record["translation_text"] == alone["translation_text"]
        if options:
            assert record["score"] == pytest.approx(alone["score"], abs=1e-5)
            tokens, log_probs = zip(*record["token_scores"] or [("", 0.0)], strict=True)
            tokens_alone, log_probs_alone = zip(*alone["token_scores"] or [("", 0.0)], strict=True)
            assert tokens == tokens_alone
            assert log_probs == pytest.approx(log_probs_alone, abs=1e-5)


def test_datasets_and_generators_stream():
    translate = tiny_pipeline()
    expected = [[record] for record in translate(TEXTS)]
    table = datasets.Dataset.from_dict({"source": TEXTS})
    for inputs in (
        iter(TEXTS),
        table["source"],
        KeyDataset(table, "source"),
        (row["source"] for row in table.to_iterable_dataset()),
    ):
        assert list(translate(inputs, look_ahead=3)) == expected


# --- texts survive ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.text() | st.text(st.sampled_from("aB1 \n.,!?。，"), max_size=80), max_size=8), st.data())
def test_any_texts_come_back_whole_and_in_order(texts, data):
    options = {
        "max_tokens_per_batch": data.draw(st.integers(1, 100)),
        "look_ahead": data.draw(st.integers(1, 20)),
        "max_source_length": data.draw(st.integers(5, 40)),  # a character has up to four bytes, and </s> follows
        "batch_size": data.draw(st.none() | st.integers(1, 4)),
    }
    translate = echo()
    assert [record["translation_text"] for record in translate(texts, **options)] == texts
    for rows, length in translate.batches:
        assert length <= options["max_source_length"]
        assert rows == 1 or rows * length <= options["max_tokens_per_batch"]
        assert rows <= (options["batch_size"] or rows)


@pytest.mark.parametrize("text", ["", " ", " \n\t ", "😀", "😀 👍🏽!\n— * —", "..."])
def test_what_has_no_words_is_copied(text):
    translate = tiny_pipeline(return_scores=True, return_token_scores=True)
    translate.model.generate = None  # which would fail if it were called
    assert translate(text) == [{"translation_text": text, "score": 0.0, "token_scores": []}]


def test_a_hundred_thousand_characters():
    text = "".join(f"Satz {i} ist hier, und er ist nicht lang.{' ' * (i % 3 + 1)}" for i in range(2500))[:100_000]
    translate = echo()
    assert translate(text) == [{"translation_text": text}]
    assert all(rows * length <= 4096 for rows, length in translate.batches)
    assert len(translate.batches) < 60
    [record] = tiny_pipeline(max_new_tokens=2)(text)
    assert record["translation_text"].count(" ") > 2500  # all the white space between sentences


def test_a_hundred_thousand_characters_without_any_end():
    text = "x" * 100_000
    translate = echo(max_source_length=500)
    assert translate(text) == [{"translation_text": text}]
    assert max(length for _, length in translate.batches) <= 500
    assert max(length for _, length in translate.batches) > 250


def test_sentences_longer_than_the_tokenizer_allows_are_split_and_not_cut_off():
    translate = echo()
    translate.tokenizer.model_max_length, before = 20, translate.tokenizer.model_max_length
    try:
        text = "Der alte Mann, der im Garten sitzt, sieht die Kinder, die spielen"
        assert translate(text) == [{"translation_text": text}]
        assert max(length for _, length in translate.batches) <= 20
    finally:
        translate.tokenizer.model_max_length = before


def test_ten_thousand_texts():
    texts = [f"Satz {i} {'ist sehr lang ' * (i % 5)}" for i in range(10_000)]
    translate = echo()
    assert [record["translation_text"] for record in translate(texts)] == texts
    padded = sum(rows * length for rows, length in translate.batches)
    needed = sum(len(ids) for ids in TOKENIZER([text.strip() for text in texts]).input_ids)
    assert needed < padded < 1.1 * needed  # unsorted, it would be more than 1.5 times as much
    translations = tiny_pipeline(max_new_tokens=2)(texts)
    assert len(translations) == 10_000


def test_streams_are_read_only_so_far_ahead():
    taken = itertools.count()
    texts = (f"Satz {next(taken)}." for _ in range(10_000))
    stream = echo()(texts, look_ahead=10)
    for done in range(25):
        assert next(stream) == [{"translation_text": f"Satz {done}."}]
        assert texts.gi_frame is not None  # not read to the end
    assert next(taken) <= 31  # three times ten, and this look
    endless = tiny_pipeline()(itertools.repeat("Die Kinder"), look_ahead=4)
    assert len(list(itertools.islice(endless, 6))) == 6


# --- what the options do ---------------------------------------------------------------------------------------------


def test_generation_is_the_models_unless_told_otherwise():
    translate = tiny_pipeline()
    greedy = translate("Der alte Mann sitzt.")
    translate.model.generation_config.num_beams = 4
    beam = translate("Der alte Mann sitzt.")
    assert beam != greedy
    assert translate("Der alte Mann sitzt.", num_beams=1) == greedy
    assert (
        translate("Der alte Mann sitzt.", generation_config=GenerationConfig(max_new_tokens=12, num_beams=1)) == greedy
    )
    short = translate("Der alte Mann sitzt.", max_new_tokens=1, num_beams=1)
    assert greedy[0]["translation_text"].startswith(short[0]["translation_text"])
    assert short != greedy


def test_without_a_limit_a_translation_follows_its_source():
    translate = pipeline("translation", model=tiny_translator(vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER)
    translate.model.generation_config.suppress_tokens = [2]  # it never ends of itself
    for text in ("Mann", "Der alte Mann"):
        [record] = translate(text, return_token_scores=True)
        assert len(record["token_scores"]) == len(TOKENIZER(text).input_ids) + 50


def test_options_of_the_constructor_hold_until_the_call_says_otherwise():
    translate = tiny_pipeline(n_best=2, num_beams=3, return_alignments=True)
    records = translate("Die Kinder")
    assert [sorted(record) for record in records] == [["alignment", "score", "translation_text"]] * 2
    [record] = translate("Die Kinder", n_best=1, return_alignments=False, return_scores=False)
    assert sorted(record) == ["translation_text"]


def test_scores_of_beams_are_those_that_the_search_ranks_by():
    translate = tiny_pipeline(num_beams=4, n_best=4, length_penalty=0.3)
    encoded = TOKENIZER("Die Kinder spielen.", return_tensors="pt")
    expected = translate.model.generate(
        **encoded,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.3,
        max_new_tokens=12,
        return_dict_in_generate=True,
    )
    records = translate("Die Kinder spielen.")
    scores = [record["score"] for record in records]
    assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    texts = [TOKENIZER.decode(ids, skip_special_tokens=True).strip() for ids in expected.sequences]
    assert [record["translation_text"] for record in records] == texts


def test_other_scores_are_the_mean_of_the_tokens():
    translate = tiny_pipeline(return_scores=True, return_token_scores=True)
    for options in ({}, {"do_sample": True}):
        [record] = translate("Die Kinder spielen.", **options)
        log_probs = [log_prob for _, log_prob in record["token_scores"]]
        assert record["score"] == pytest.approx(sum(log_probs) / len(log_probs))
        assert all(log_prob < 0 for log_prob in log_probs)


def test_token_scores_are_the_models_log_probabilities():
    translate = tiny_pipeline()
    encoded = TOKENIZER("Die Kinder spielen.", return_tensors="pt")
    out = translate.model.generate(**encoded, max_new_tokens=12, output_logits=True, return_dict_in_generate=True)
    expected = [
        logits.log_softmax(-1)[0, token].item() for logits, token in zip(out.logits, out.sequences[0, 1:], strict=True)
    ]
    [record] = translate("Die Kinder spielen.", return_token_scores=True)
    tokens, log_probs = zip(*record["token_scores"], strict=True)
    assert list(tokens) == TOKENIZER.convert_ids_to_tokens(out.sequences[0, 1:])
    assert log_probs == pytest.approx(expected, abs=1e-5)


def test_several_sentences_add_up():
    translate = tiny_pipeline(n_best=3, num_beams=3, return_token_scores=True)
    parts = ["Die Kinder spielen.", "Der alte Mann!"]
    alone = [translate(part) for part in parts]
    together = translate(f" {parts[0]}  {parts[1]}\n😀")
    for k in range(3):
        first, second = alone[0][k], alone[1][k]
        assert together[k]["translation_text"] == f" {first['translation_text']}  {second['translation_text']}\n😀"
        assert together[k]["score"] == pytest.approx((first["score"] + second["score"]) / 2, abs=1e-5)
        tokens = [token for token, _ in together[k]["token_scores"]]
        assert tokens == [token for part in (first, second) for token, _ in part["token_scores"]]


# --- alignments ------------------------------------------------------------------------------------------------------


def links(record: dict) -> set[tuple[int, int]]:
    return {tuple(map(int, link.split("-"))) for link in record["alignment"].split()}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_alignments_are_where_the_cross_attention_looks(kernel):
    translate = tiny_pipeline()
    translate.model.set_attn_implementation(kernel)
    source = "Der alte Mann sitzt im Garten."
    [record] = translate(source, return_alignments=True)
    encoded = TOKENIZER(source, return_tensors="pt")
    sequences = translate.model.generate(**encoded, max_new_tokens=12)
    with torch.no_grad():
        maps = translate.model(**encoded, decoder_input_ids=sequences[:, :-1], output_attentions=True).cross_attentions
    weights = torch.stack(maps).mean((0, 2))[0]  # (target tokens, source tokens)

    def words(ids: list[int]) -> list[int]:  # in which every token that begins with a space begins a word
        begins = [token.startswith("Ġ") for token in TOKENIZER.convert_ids_to_tokens(ids)]
        return list(itertools.accumulate([0, *begins[1:]]))

    source_of, target_of = words(encoded.input_ids[0, :-1].tolist()), words(sequences[0, 1:].tolist())
    read = torch.stack([weights[:, [w == i for w in source_of] + [False]].sum(-1) for i in range(6)], dim=-1)
    expected = {
        (read[[w == j for w in target_of]].mean(0).argmax().item(), j)
        for j in range(len(record["translation_text"].split()))
    }
    assert links(record) == expected


def test_alignments_count_the_words_of_the_whole_text():
    translate = tiny_pipeline(return_alignments=True)
    parts = ["Die Kinder spielen.", "Der alte Mann!"]
    first, second = [translate(part)[0] for part in parts]
    [together] = translate(f"{parts[0]} 😀 ***\n{parts[1]}")
    sources, targets = 3 + 2, len(first["translation_text"].split()) + 2
    copied = {(3, targets - 2), (4, targets - 1)}
    assert links(together) == links(first) | copied | {(i + sources, j + targets) for i, j in links(second)}


def test_every_word_of_a_translation_is_aligned_once():
    translate = tiny_pipeline(return_alignments=True, n_best=2, num_beams=3)
    for record in translate(TEXTS[2]):
        targets = [target for _, target in links(record)]
        assert sorted(targets) == list(range(len(record["translation_text"].split())))
        assert all(0 <= source < len(TEXTS[2].split()) for source, _ in links(record))


def test_layers_heads_and_rows_of_alignments_can_be_chosen():
    translate = tiny_pipeline()
    source, target = "Der alte Mann sitzt im Garten.", "The old man sits in the garden."
    every = translate.align(source, target)
    assert every.source_words == source.split() and every.target_words == target.split()
    assert every.weights.shape == (7, 6)
    assert (every.weights.sum(-1) < 1).all()
    by_head = [translate.align(source, target, heads=[head]).weights for head in (0, 1)]
    by_layer = [translate.align(source, target, layers=[layer]).weights for layer in (0, 1)]
    torch.testing.assert_close(torch.stack(by_head).mean(0), every.weights)
    torch.testing.assert_close(torch.stack(by_layer).mean(0), every.weights)
    assert not torch.equal(translate.align(source, target, rows="reads").weights, every.weights)
    chosen = {"alignment_layers": [0], "alignment_heads": [1], "alignment_rows": "reads"}
    [record] = translate(source, return_alignments=True, **chosen)
    alignment = translate.align(source, record["translation_text"], layers=[0], heads=[1], rows="reads")
    assert len(alignment.links()) == len(links(record))


# --- progress and bad input ------------------------------------------------------------------------------------------


def test_progress_is_shown_when_asked_and_otherwise_only_at_terminals(capfd, monkeypatch):
    transformers.utils.logging.enable_progress_bar()  # which the command line turns off in its process
    translate = echo()
    translate(["Die Kinder spielen. "] * 2000)
    assert capfd.readouterr() == ("", "")
    translate(["Die Kinder. 😀\n"] * 2, progress=True)
    shown = capfd.readouterr()
    assert shown.out == "" and "28.0/28.0" in shown.err and "characters/s" in shown.err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    translate("Die Kinder spielen.")
    assert capfd.readouterr() == ("", "")
    translate(["Die Kinder spielen. "] * 2000)
    assert "40.0k/40.0k" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (3, "of type int; give a string"),
        (None, "of type NoneType"),
        ({"source": "a"}, "of type dict; give the texts of one column"),
        (datasets.Dataset.from_dict({"source": ["a"]}), "of type Dataset; give the texts of one column"),
        (["a", None], "text 1 is of type NoneType, not str: None"),
        (["a", ["b"]], r"text 1 is of type list, not str: \['b'\]"),
        (b"bytes", "text 0 is of type int"),
        ("half \ud83d", r"text 0 holds half a surrogate pair, '\\ud83d' at character 5"),
    ],
)
def test_bad_input_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        list(echo()(inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0"),
        ({"look_ahead": -3}, "look_ahead is -3"),
        ({"n_best": 2, "num_return_sequences": 3, "num_beams": 3}, "n_best is 2 but num_return_sequences 3"),
        ({"n_best": 2}, "num_return_sequences"),  # greedy search has one translation, says generate()
        ({"max_source_length": 1}, "the single character 'D' has more tokens than a source may have"),
        ({"required_phrases": [[[5]]]}, "required_phrases belong to sentences"),
        ({"target_prefixes": [[5]]}, "target_prefixes belong to sentences"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"return_alignments": True, "alignment_rows": "x"}, "alignment rows 'x' are unknown"),
        ({"return_alignments": True, "alignment_layers": [9]}, "layer 9 is out of range"),
        ({"return_alignments": True, "alignment_heads": []}, "no alignment heads are chosen"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()("Die Kinder.", **options)


# --- workers ---------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not can_fork(), reason="workers are forked")


@forks
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "n_best": 2}, {"return_token_scores": True}, {"return_alignments": True}], ids=str
)
def test_workers_change_nothing(options, monkeypatch):
    translate, threads = tiny_pipeline(), torch.get_num_threads()
    translate.model.train()  # dropout must be off for all of them, and training go on afterwards
    texts = [text * 3 for text in TEXTS * 4]
    alone = translate(texts, batch_size=3, **options)
    side_by_side, asked = pipeline_translation.side_by_side, []
    monkeypatch.setattr(pipeline_translation, "side_by_side", lambda *a: asked.append(a[2]) or side_by_side(*a))
    assert translate(texts, batch_size=3, workers=2, **options) == alone
    assert asked == [2]
    assert translate.model.training and torch.get_num_threads() == threads


@forks
def test_workers_are_other_processes_and_results_come_in_order():
    made = list(side_by_side(lambda item: {"item": torch.tensor([item, os.getpid()])}, range(20), workers=2))
    assert [one["item"][0].item() for one in made] == list(range(20))
    assert os.getpid() not in {one["item"][1].item() for one in made}


@forks
def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ValueError, match="no_such_option"):
        tiny_pipeline()(TEXTS * 4, batch_size=3, workers=2, no_such_option=1)


def test_several_workers_are_refused_where_they_would_do_something_else(monkeypatch):
    with pytest.raises(ValueError, match="2 workers would all draw the same random numbers"):
        tiny_pipeline()(TEXTS, workers=2, do_sample=True)
    monkeypatch.setattr(pipeline_translation, "can_fork", lambda: False)
    with pytest.raises(ValueError, match="2 workers need a model on the CPU, and Linux"):
        tiny_pipeline()(TEXTS, workers=2)


def test_many_workers_get_many_batches():
    assert Batching().max_tokens(100_000) == Batching(workers=2).max_tokens(100_000) == 4096
    assert Batching(workers=2).max_tokens(8_000) == 1000
    assert Batching(workers=2).max_tokens(100) == SMALL
