"""From sentence pairs to a translator and back: one call, interrupted anywhere, refused where it cannot end well."""

import json
import os
import signal
from types import SimpleNamespace

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from hf_attn.hub_card import card_problems
from hf_attn.hub_files import LocalFiles
from hf_attn.tokenization_translator import train_tokenizer
from hf_attn.training import settings
from hf_attn.training.callbacks import ProgressEvent, TrainingInterrupted
from hf_attn.training.metrics import score_translations
from hf_attn.training.translator import evaluate_translator, train_translator

NUMBERS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "sechs": "six"}
SHAPE = {
    "hidden_size": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "dropout": 0.2,
}
SETTINGS = {
    "model_size": "tiny",
    "model_config": SHAPE,
    "vocab_size": 300,
    "max_length": 100,
    "max_tokens_per_batch": 200,
    "max_steps": 6,
    "eval_steps": 2,
    "average_last": 2,
    "warmup_steps": 3,
    "eval_sentences": 3,
}


def pairs(*numbers: int) -> datasets.Dataset:
    """Sentences of two or three counting words."""
    words = list(NUMBERS)
    sources = [" und ".join(words[(number * step) % 6] for step in range(1, 3 + number % 2)) for number in numbers]
    targets = [" and ".join(NUMBERS[word] for word in source.split(" und ")) for source in sources]
    return datasets.Dataset.from_dict({"source": sources, "target": targets})


def corpus() -> datasets.DatasetDict:
    splits = {"train": pairs(*range(60)), "validation": pairs(*range(60, 66)), "test": pairs(*range(66, 74))}
    return datasets.DatasetDict(splits)


def train(directory, data=None, **changes):
    chosen = {"source_language": "de", "target_language": "en", **SETTINGS, **changes}
    return train_translator(data or corpus(), directory, **chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    events: list[ProgressEvent] = []
    for_card = {"license": "mit", "data_name": "Counting", "data_license": "CC0"}
    result = train(tmp_path_factory.mktemp("run") / "de-en", progress=events.append, **for_card)
    return result, events


# What it makes


def test_the_directory_holds_everything(trained):
    result, _ = trained
    names = {path.name for path in result.output_dir.iterdir() if path.suffix != ".py"}
    assert names == {
        "README.md",
        "checkpoints",
        "config.json",
        "generation_config.json",
        "learning_curve.png",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_settings.json",
    }
    assert (result.output_dir / "modeling_translator.py").exists()  # and what it imports: tests/test_self_contained.py


def test_the_model_is_the_average_of_the_last_checkpoints(trained):
    result, _ = trained
    weights = load_file(result.output_dir / "model.safetensors")
    last = [load_file(result.output_dir / "checkpoints" / f"checkpoint-{n}" / "model.safetensors") for n in (4, 6)]
    for name, value in weights.items():
        assert torch.equal(value, torch.stack([each[name] for each in last]).double().mean(0).float()), name


def test_the_model_loads_with_the_decoding_of_the_paper(trained):
    directory = trained[0].output_dir
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert model.generation_config.num_beams == 4 and model.generation_config.gnmt_alpha == 0.6
    assert model.config.use_cache and len(tokenizer) == model.config.vocab_size


def test_the_pipeline_gives_the_translations_that_were_scored(trained):
    result, _ = trained
    translate = pipeline("translation", model=str(result.output_dir))
    texts = [answer["translation_text"] for answer in translate(result.test.sources)]
    assert [text.split() for text in texts] == [text.split() for text in result.test.translations]


def test_the_metrics_are_those_of_the_translations(trained):
    result, _ = trained
    test = result.metrics["test"]
    assert test.items() >= score_translations(result.test.translations, result.test.references).items()
    assert test["sentences"] == 8 and result.test.references == corpus()["test"]["target"][:]
    assert result.metrics["training"]["steps"] == 6 and result.metrics["training"]["stopped"] == "all steps taken"
    assert json.loads((result.output_dir / "metrics.json").read_text()) == result.metrics


def test_the_card_has_the_scores(trained):
    result, _ = trained
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "de-en"
    assert {each.metric_type: each.metric_value for each in card.data.eval_results} == {
        "bleu": round(result.metrics["test"]["bleu"], 2),
        "chrf": round(result.metrics["test"]["chrf"], 2),
    }
    assert "| vocab_size | 300 |" in card.text and "Counting. Licence of the data: CC0." in card.text
    assert card_problems(LocalFiles(result.output_dir)) == []


def test_progress_goes_through_the_stages(trained):
    _, events = trained
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["tokenizer", "encode", "train", "validate", "test", "done"]
    assert [event.done for event in events if event.stage == "train"] == [1, 2, 3, 4, 5, 6]
    assert [event.done for event in events if event.stage == "test"][-1] == 8
    assert events[-2].values == {} and all(event.total for event in events)


def test_evaluating_again_gives_the_same(trained):
    result, _ = trained
    again = evaluate_translator(result.output_dir, corpus(), max_tokens_per_batch=30)
    assert again.translations == result.test.translations
    assert again.metrics["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    greedy = evaluate_translator(result.output_dir, corpus(), split="validation", sentences=2, num_beams=1)
    assert greedy.sources == corpus()["validation"].select([0, 3])["source"][:] and greedy.metrics["num_beams"] == 1


# Resuming


def test_a_run_that_was_interrupted_ends_with_the_same_model(trained, tmp_path):
    def interrupt(event: ProgressEvent) -> None:
        if event.stage == "train" and event.done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=r"checkpoint-4|checkpoint-3"):
        train(tmp_path / "de-en", progress=interrupt)
    result = train(tmp_path / "de-en", resume=True)
    expected = load_file(trained[0].output_dir / "model.safetensors")
    resumed = load_file(result.output_dir / "model.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert result.metrics["test"]["bleu"] == trained[0].metrics["test"]["bleu"]


def test_a_run_that_broke_before_training_is_resumed(tmp_path):
    def stop(event: ProgressEvent) -> None:
        if event.stage == "encode":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "run", progress=stop)
    (tmp_path / "run" / ".unfinished-.tokenizer").mkdir()
    result = train(tmp_path / "run", resume=True, max_steps=1)
    assert result.metrics["training"]["steps"] == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_resuming_nothing_begins(tmp_path):
    assert train(tmp_path / "new", resume=True, max_steps=1).metrics["training"]["steps"] == 1


def test_a_finished_run_goes_on_longer(tmp_path):
    train(tmp_path / "run", max_steps=2)
    result = train(tmp_path / "run", max_steps=3, resume=True)
    assert result.metrics["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 280}, "says vocab_size 300, but now it is 280; resume with the same settings"),
        ({"target_language": "fr"}, "says target_language 'en', but now it is 'fr'"),
        ({"data": datasets.DatasetDict({**corpus(), "train": pairs(*range(61))})}, "the train split is not the one"),
        ({"data": datasets.DatasetDict({"train": pairs(*range(60))})}, "the test split is not the one"),
    ],
)
def test_another_run_is_not_resumed(trained, changes, message):
    with pytest.raises(ValueError, match=message):
        train(trained[0].output_dir, resume=True, **changes)


def test_a_run_keeps_its_tokenizer(trained):
    other = train_tokenizer(["something else", "entirely"], 270)
    with pytest.raises(ValueError, match="began with another tokenizer"):
        train(trained[0].output_dir, resume=True, tokenizer=other)


# Ways to train


def test_a_tokenizer_can_be_given(tmp_path):
    given = train_tokenizer(list(NUMBERS), 280)
    result = train(tmp_path / "run", tokenizer=given, max_steps=1)
    assert AutoTokenizer.from_pretrained(result.output_dir).get_vocab() == given.get_vocab()


@pytest.mark.parametrize(("splits", "measured"), [(("train", "validation"), ["validation"]), (("train",), [])])
def test_splits_may_be_missing(tmp_path, splits, measured):
    data = datasets.DatasetDict({split: corpus()[split] for split in splits})
    result = train(tmp_path / "run", data, max_steps=2)
    assert [split for split in result.metrics if split not in ("training", "parameters")] == measured
    assert (result.test is None) == (not measured)


def test_whichever_end_comes_first_counts(tmp_path):
    one_epoch = train(tmp_path / "epoch", max_steps=None, num_train_epochs=1).metrics["training"]
    assert one_epoch["target_tokens"] == sum(
        len(ids)
        for ids in AutoTokenizer.from_pretrained(tmp_path / "epoch")(corpus()["train"]["target"][:])["input_ids"]
    )
    assert train(tmp_path / "steps", max_steps=2, num_train_epochs=1).metrics["training"]["steps"] == 2
    timed = train(tmp_path / "time", max_steps=None, max_minutes=1e-9).metrics["training"]
    assert timed["steps"] == 1 and timed["stopped"] == "stopped when the time was up"


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_size": "huge"}, "model_size 'huge' is unknown; use tiny, small, base"),
        ({"max_steps": None}, "nothing says when to stop; give max_steps, num_train_epochs or max_minutes"),
        ({"max_steps": 0}, "max_steps 0 is not above 0"),
        ({"max_length": 300}, "max_length 300 is more than max_tokens_per_batch 200"),
        (
            {"early_stopping_patience": 2, "data": datasets.DatasetDict({"train": pairs(1, 2)})},
            "needs a validation split",
        ),
        ({"data": datasets.DatasetDict({"test": pairs(1)})}, "no train split with pairs in it, only test"),
        (
            {"data": datasets.DatasetDict({"train": pairs(1).rename_column("target", "en")})},
            "no column 'target', only",
        ),
    ],
)
def test_settings_and_data_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty; resume with resume=True \(--resume\), or choose another"):
        train(tmp_path)
    with pytest.raises(ValueError, match=r"is not empty; there is no training_settings\.json to resume from"):
        train(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_disk_without_room_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(settings.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"need 0.0 GB in .*, but 0.0 GB are free; make room, choose another directory"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        train(tmp_path / "file" / "run")


def test_what_cannot_be_evaluated_is_said(trained, tmp_path):
    with pytest.raises(ValueError, match="no test split with pairs in it, only train"):
        evaluate_translator(trained[0].output_dir, datasets.DatasetDict({"train": pairs(1)}))
    with pytest.raises(FileNotFoundError, match=r"is no translator: it has no config\.json"):
        evaluate_translator(tmp_path, corpus())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a translator without its tokenizer"):
        evaluate_translator(tmp_path, corpus())
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        evaluate_translator(tmp_path / "not there", corpus())
