"""From made pictures to a classifier and back: one call, interrupted anywhere, refused where it cannot end well."""

import json
import os
import signal
from types import SimpleNamespace

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from hf_attn import AttnViTForImageClassification
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.training import settings, vit
from hf_attn.training.callbacks import ProgressEvent, TrainingInterrupted
from hf_attn.training.vit import train_vit
from hf_attn.training.vit_evaluation import evaluate_vit
from tests.shapes import SHAPES, pictures, pictures_of_several

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SETTINGS = {"preset": "tiny", "image_size": 16, "batch_size": 50, "learning_rate": 1e-2, "model_config": SHAPE}
SHORT = {"batch_size": 8, "max_steps": 6, "eval_steps": 2, "average_last": 2}  # over more than one epoch


def shapes() -> datasets.DatasetDict:
    return datasets.DatasetDict(train=pictures(300), validation=pictures(60, 10_000), test=pictures(150, 20_000))


def few() -> datasets.DatasetDict:
    return datasets.DatasetDict(train=pictures(30), validation=pictures(9, 10_000), test=pictures(12, 20_000))


def train(directory, data=None, **changes):
    return train_vit(few() if data is None else data, directory, **{**SETTINGS, **SHORT, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    events: list[ProgressEvent] = []
    result = train_vit(
        shapes(),
        tmp_path_factory.mktemp("run") / "shapes",
        **SETTINGS,
        max_steps=120,
        eval_steps=40,
        progress=events.append,
        data_name="Shapes | drawn",
        license="mit",
    )
    return result, events


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "short")


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """Drawing takes half of a short run, and has tests of its own; the runs of the fixtures above do draw."""
    for plot in ("plot_learning_curve", "plot_confusion"):
        monkeypatch.setattr(vit, plot, lambda *args: None)


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


# What it makes


def test_shapes_are_learned(trained):
    assert trained[0].metrics["test"]["accuracy"] >= 0.95


def test_the_directory_holds_everything(trained):
    assert {path.name for path in trained[0].output_dir.iterdir() if path.suffix != ".py"} == {
        "README.md",
        "checkpoints",
        "config.json",
        "confusion_matrix.png",
        "learning_curve.png",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training_settings.json",
    }
    assert (trained[0].output_dir / "modeling_vit.py").exists()  # and what it imports: tests/test_self_contained.py


def test_the_pipeline_gives_the_answers_that_were_scored(trained):
    result, _ = trained
    test = shapes()["test"]
    answers = pipeline("image-classification", model=str(result.output_dir))(list(test["image"]), top_k=1)
    right = [answer[0]["label"] == SHAPES[label] for answer, label in zip(answers, list(test["label"]), strict=True)]
    assert sum(right) / len(right) == result.metrics["test"]["accuracy"]


def test_the_metrics_are_written_as_given(trained):
    result, _ = trained
    assert json.loads((result.output_dir / "metrics.json").read_text()) == result.metrics
    facts = result.metrics["training"]
    assert facts["steps"] == 120 and facts["pictures"] == 120 * 50 and facts["stopped"] == "all steps taken"
    assert result.test.confusion.sum() == result.metrics["test"]["pictures"] == 150


def test_the_card_has_the_scores(trained):
    result, _ = trained
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "shapes"
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values == {"accuracy": round(result.metrics["test"]["accuracy"], 4)}
    assert "| batch_size | 50 |" in card.text and "| disc | 100 |" in card.text and "Shapes | drawn" in card.text


def test_progress_goes_through_the_stages(trained):
    _, events = trained
    assert list(dict.fromkeys(event.stage for event in events)) == ["encode", "train", "validate", "test", "done"]
    assert [event.done for event in events if event.stage == "train"] == list(range(1, 121))
    tested = [event for event in events if event.stage == "test"]
    assert (tested[-1].done, tested[-1].total, tested[-1].unit) == (150, 150, "pictures")
    assert all(event.total for event in events)


def test_evaluating_again_gives_the_same(trained):
    result, _ = trained
    again = evaluate_vit(result.output_dir, shapes(), batch_size=7)
    measured = {"seconds", "pictures_per_second"}
    for name in result.metrics["test"].keys() - measured:
        assert again.metrics[name] == pytest.approx(result.metrics["test"][name], rel=1e-5), name


def test_the_model_is_the_average_of_the_last_checkpoints(short):
    steps = [weights(short.output_dir / "checkpoints" / f"checkpoint-{step}") for step in (4, 6)]
    for name, value in weights(short.output_dir).items():
        assert torch.equal(value, torch.stack([each[name] for each in steps]).double().mean(0).float()), name


# Resuming


@pytest.mark.parametrize(
    "changes",
    [
        {"in_memory": True, "erase": 0.5, "zoom": 0.1, "mixup": 0.4},
        {"in_memory": False, "crop": "inception", "randaugment": (2, 9), "cutmix": 1.0, "drop_path_rate": 0.2},
    ],
    ids=["in memory", "picture by picture"],
)
def test_a_run_that_was_interrupted_ends_with_the_same_model(tmp_path, changes):
    def interrupt(event: ProgressEvent) -> None:
        if event.stage == "train" and event.done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    changes = {**changes, "ema_decay": 0.9, "gradient_accumulation_steps": 2}
    whole = train(tmp_path / "whole", **changes)
    with pytest.raises(TrainingInterrupted, match=r"checkpoint-4|checkpoint-3"):
        train(tmp_path / "broken", progress=interrupt, **changes)
    resumed = train(tmp_path / "broken", resume=True, **changes)
    expected = weights(whole.output_dir)
    for name, value in weights(resumed.output_dir).items():
        assert torch.equal(value, expected[name]), name
    assert resumed.metrics["test"]["loss"] == whole.metrics["test"]["loss"]


def test_each_epoch_changes_the_pictures_anew(tmp_path, monkeypatch):
    seen = []
    forward = AttnViTForImageClassification.forward

    def watched(self, pixel_values, *args, **kwargs):
        if self.training:
            seen.append(pixel_values.double().sum(dim=0))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(AttnViTForImageClassification, "forward", watched)
    train(tmp_path / "run", batch_size=30, max_steps=2, in_memory=True)
    assert not torch.allclose(seen[0], seen[1])


def test_a_run_that_broke_before_training_is_resumed(tmp_path):
    def stop(event: ProgressEvent) -> None:
        if event.stage == "encode":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "run", progress=stop)
    (tmp_path / "run" / ".unfinished-.processor").mkdir()
    result = train(tmp_path / "run", resume=True, max_steps=1)
    assert result.metrics["training"]["steps"] == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_a_finished_run_goes_on_longer(tmp_path):
    assert train(tmp_path / "run", resume=True, max_steps=2).metrics["training"]["steps"] == 2
    assert train(tmp_path / "run", resume=True, max_steps=3).metrics["training"]["steps"] == 3


def other_train_split() -> datasets.DatasetDict:
    return datasets.DatasetDict({**few(), "train": pictures(30, 1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, "says patch_size None, but now it is 8; resume with the same settings"),
        ({"flip": False}, "says flip True, but now it is False"),
        ({"data": other_train_split()}, "the train split is not the one that the run"),
        ({"data": datasets.DatasetDict(train=pictures(30))}, "the test split is not the one"),
        ({"processor": AttnViTImageProcessor(size=16, image_mean=0.4)}, "began with another image processor"),
    ],
)
def test_another_run_is_not_resumed(short, changes, message):
    with pytest.raises(ValueError, match=message):
        train(short.output_dir, resume=True, **changes)


# Going on from a model


def test_other_classes_get_a_new_classifier_on_the_old_body(short, tmp_path):
    base = short.output_dir
    data = datasets.DatasetDict(train=pictures(30, names=("cross", "disc", "square")))
    probe = train(tmp_path / "probe", data, base_model=base, freeze_body=True, drop_path_rate=None)
    before, after = weights(base), weights(probe.output_dir)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("model."), name
    assert AutoModelForImageClassification.from_pretrained(probe.output_dir).config.label2id["cross"] == 0


def test_the_same_classes_keep_their_classifier(short, tmp_path):
    result = train(tmp_path / "more", base_model=short.output_dir, learning_rate=1e-12, max_steps=1)
    before = weights(short.output_dir)
    assert all(torch.allclose(value, before[name], atol=1e-9) for name, value in weights(result.output_dir).items())


def test_a_higher_resolution_resamples_the_positions(short, tmp_path):
    changes = {"preset": "higher_resolution", "base_model": short.output_dir, "image_size": 32, "warmup_steps": 1}
    result = train_vit(few(), tmp_path / "larger", batch_size=8, max_steps=2, **changes)
    config = AutoModelForImageClassification.from_pretrained(result.output_dir).config
    assert config.image_size == 32 and config.patch_size == 4 and config.hidden_size == 32
    assert weights(result.output_dir)["model.embeddings.positions"].shape == (8, 8, 32)
    assert AttnViTImageProcessor.from_pretrained(result.output_dir).size == {"height": 32, "width": 32}
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.base_model is None and "trained from `short` on" in card.text


def test_what_is_no_model_to_go_on_from_is_refused(translator_directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no model to go on from: it has no config\.json"):
        train(tmp_path / "run", base_model=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*not there, and no such model could be had"):
        train(tmp_path / "run", base_model=tmp_path / "not there")
    with pytest.raises(ValueError, match="is a model of type 'attn_translator', not 'attn_vit'"):
        train(tmp_path / "run", base_model=translator_directory)


# Ways to train


def test_pictures_may_have_several_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "plot_confusion", None)  # there is none to plot
    data = datasets.DatasetDict(train=pictures_of_several(70), test=pictures_of_several(21, 500))
    result = train(tmp_path / "several", data, mixup=0.2)
    test = result.metrics["test"]
    assert test.keys() >= {"mean_average_precision", "class_average_precision", "loss"}
    config = AutoModelForImageClassification.from_pretrained(result.output_dir).config
    assert config.problem_type == "multi_label_classification" and result.test.confusion is None
    card = ModelCard.load(result.output_dir / "README.md")
    assert [each.metric_type for each in card.data.eval_results] == ["mean_average_precision"]
    assert "average precision on test" in card.text and "Confusion" not in card.text


def test_labels_that_training_has_not_are_refused(tmp_path):
    data = datasets.DatasetDict(train=pictures(6), test=pictures(6, names=("disc", "cross", "square")))
    data["test"] = data["test"].cast_column("label", datasets.ClassLabel(names=["disc", "plus", "square"]))
    message = r"the test split has labels .* that the model does not know: 'plus' \(2\); it knows 'disc', 'square'"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_processor_can_be_given_and_stays(tmp_path):
    processor = AttnViTImageProcessor(size=16, num_channels=1, image_mean=0.3, image_std=0.2)
    train(tmp_path / "grey", processor=processor, model_config={**SHAPE, "num_channels": 1}, max_steps=1)
    assert AttnViTImageProcessor.from_pretrained(tmp_path / "grey").to_dict() == processor.to_dict()


@pytest.mark.parametrize(("splits", "measured"), [(("train", "validation"), ["validation"]), (("train",), [])])
def test_splits_may_be_missing(tmp_path, splits, measured):
    data = datasets.DatasetDict({split: few()[split] for split in splits})
    result = train(tmp_path / "run", data, max_steps=2)
    assert [split for split in result.metrics if split not in ("training", "parameters")] == measured
    assert (result.test is None) == (not measured)


def test_splits_may_number_their_classes_otherwise(short, tmp_path):
    other = pictures(12, 20_000, names=("square", "triangle", "cross", "disc"))
    result = train(tmp_path / "run", datasets.DatasetDict({**few(), "test": other}))
    assert result.metrics["test"]["loss"] == pytest.approx(short.metrics["test"]["loss"])


def test_whichever_end_comes_first_counts(tmp_path):
    epochs = train(tmp_path / "epochs", max_steps=None, num_train_epochs=1.5).metrics["training"]
    assert (epochs["steps"], epochs["stopped"]) == (6, "all steps taken")
    assert train(tmp_path / "steps", max_steps=2, num_train_epochs=1).metrics["training"]["steps"] == 2
    timed = train(tmp_path / "time", max_steps=None, max_minutes=1e-9).metrics["training"]
    assert timed["steps"] == 1 and timed["stopped"] == "stopped when the time was up"


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "preset 'huge' is unknown; use tiny, small, big_vision_s16, fine_tuning, higher"),
        ({"max_steps": 0}, "max_steps 0 is not above 0"),
        ({"warmup_steps": 6}, "warmup_steps 6 is not below the 6 steps of the run; give fewer, or a share"),
        ({"model_config": {"depth": 3}}, "model_config has 'depth', which is no field of AttnViTConfig"),
        ({"image_size": 18}, r"image_size 18x18 \(height x width\) is not a multiple of patch_size 4x4"),
        ({"data": datasets.DatasetDict(test=pictures(3))}, "no train split with pictures in it, only test"),
        ({"data": datasets.DatasetDict(train=pictures(1))}, "all training pictures are of one class, disc"),
        (
            {"early_stopping_patience": 2, "data": datasets.DatasetDict(train=pictures(6))},
            "early stopping needs a validation split",
        ),
    ],
)
def test_settings_and_data_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            AttnViTImageProcessor(size=32),
            r"pictures of 32x32 \(height x width\), but image_size is 16; make them alike",
        ),
        (AttnViTImageProcessor(size=16, num_channels=1), "pictures of 1 channels, but num_channels is 3"),
    ],
)
def test_a_processor_that_does_not_fit_the_model_is_refused(tmp_path, processor, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", processor=processor)
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty; resume with resume=True \(--resume\), or choose another"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_disk_without_room_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(settings.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"need 0.0 GB in .*, but 0.0 GB are free; make room, choose another directory"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
