"""`hf-attn train vit` and `hf-attn evaluate vit`, and how the commands for pictures are called."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import Result

from hf_attn import commands_vit
from hf_attn.commands_vit import Crop, Preset, evaluate_vit_command, train_vit_command
from hf_attn.console import TrainingProgress, picture_score_lines
from hf_attn.training.callbacks import ProgressEvent
from hf_attn.training.picture_data import load_pictures
from hf_attn.training.vit_evaluation import evaluate_vit
from hf_attn.training.vit_settings import CROPS, PRESETS, ViTSettings
from tests.animals import COLOURS, save_folders, save_model, write_bomb, write_truncated
from tests.test_cli import ROOT, refuse, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_folders(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


# --- the whole program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["train", "vit"], ["evaluate", "vit"], ["classify"]])
def test_every_command_explains_itself_without_loading_torch(command):
    script = (
        f"import runpy, sys; sys.argv = ['hf-attn', *{command}, '--help']\n"
        "try: runpy.run_module('hf_attn', run_name='__main__')\n"
        "except SystemExit as leaving: print(leaving.code, sorted({'torch', 'PIL', 'datasets'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"
    assert f"Usage: hf-attn {' '.join(command)}" in run.stdout and "Examples" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classify", "--model", "m"], "Missing argument"),
        (["classify", "cat.png"], "Missing option '--model'"),
        (["classify", "cat.png", "--model", "m", "--top-k", 0], "Invalid value for '--top-k'"),
        (["classify", "cat.png", "--model", "m", "--explain", __file__], "is a file"),
        (["train", "vit", "data", "-o", "run", "--preset", "huge"], "'huge'"),
        (["train", "vit", "data", "-o", "run", "--config", "hidden_size"], "has no '='"),
        (["train", "vit", "data", "-o", "run", "--image-size", "32x"], "neither a side, 224, nor height x width"),
        (["train", "vit", "data", "-o", "run", "--patch-size", "1x2x3"], "neither a side, 224, nor height x width"),
        (["train", "vit", "data", "-o", "run", "--randaugment", "2"], "is not operations,magnitude"),
        (["evaluate", "vit", "data", "-m", "m", "--split", "half"], "'half'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, said):
    assert said in re.sub(r"[\s│]+", " ", refuse(*arguments, code=2))


def test_defaults_of_the_command_line_are_those_of_the_library():
    here = {name: parameter.default for name, parameter in signature(train_vit_command).parameters.items()}
    there = {field.name: field.default for field in fields(ViTSettings)}
    same = {
        **{
            name: name for name in ("preset", "base_model", "freeze_body", "image_size", "patch_size", "learning_rate")
        },
        **{name: name for name in ("layer_decay", "weight_decay", "label_smoothing", "batch_size", "average_last")},
        **{name: name for name in ("crop", "flip", "rotation", "zoom", "randaugment", "erase", "mixup", "cutmix")},
        **{"warmup": "warmup_steps", "drop_path": "drop_path_rate", "accumulate": "gradient_accumulation_steps"},
        **{"ema": "ema_decay", "precision": "bf16", "evaluate_every": "eval_steps", "workers": "num_workers"},
        **{"steps": "max_steps", "epochs": "num_train_epochs", "minutes": "max_minutes", "seed": "seed"},
        **{"early_stopping": "early_stopping_patience", "license": "license"},
    }
    assert {name: here[name] for name in same} == {name: there[same[name]] for name in same}
    assert set(get_args(Preset)) == set(PRESETS)
    for name, preset in PRESETS.items():  # as the help says
        assert re.search(rf"`{name}`: .*; {preset.settings['num_train_epochs']} epochs", commands_vit.PRESETS)
    assert set(get_args(Crop)) == set(CROPS)
    for command in (train_vit_command, evaluate_vit_command):
        for name in ("skip_bad", "max_bad_share", "image_column", "label_column", "class_names", "seed"):
            default = signature(load_pictures).parameters[name].default
            assert signature(command).parameters[name].default == default
    assert (
        signature(evaluate_vit_command).parameters["batch_size"].default
        == signature(evaluate_vit).parameters["batch_size"].default
    )


# --- train and evaluate ----------------------------------------------------------------------------------------------

TINY = ["--preset", "tiny", "--config", "hidden_size=32", "--config", "intermediate_size=32", "--image-size", 32]
TINY += ["--patch-size", 8, "--batch-size", 8, "--learning-rate", 0.003, "--precision", "fp32", "--evaluate-every", 3]


def train(data: object, output: Path, *more: object) -> Result:
    return run("train", "vit", data, "--output", output, *TINY, *more)


def test_ctrl_c_leaves_a_run_that_resumes_to_a_classifier(folder, tmp_path, monkeypatch):
    output = tmp_path / "run"
    steps_done = []

    def interrupt_in_step_4(self: TrainingProgress, event: ProgressEvent) -> None:
        if event.stage == "train":
            steps_done.append(event.done)
            if len(steps_done) == 4:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupt_in_step_4)
        result = train(folder, output, "--epochs", 3)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"hf-attn: interrupted; what is done is saved in {output}: go on with the same command and --resume"
    )
    assert "is not empty; resume" in train(folder, output, "--epochs", 3).stderr
    other = train(folder, output, "--epochs", 3, "--resume", "--mixup", 0.2)
    assert "says mixup 0.0, but now it is 0.2" in other.stderr

    result = train(folder, output, "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.stderr
    assert f"{folder}: pictures of 3 classes: 48 train, 6 validation, 6 test" in result.stderr
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith(f"{output}: 18 steps in ") and first.endswith("all steps taken")
    assert re.fullmatch(r"test: accuracy \d+\.\d%, loss \d\.\d{3} nats, 6 pictures", second)
    expected = "config.json model.safetensors preprocessor_config.json README.md learning_curve.png"
    assert set(expected.split()) <= {path.name for path in output.iterdir()}

    confusion = tmp_path / "confusion.png"
    evaluated = run("evaluate", "vit", folder, "--model", output, "--confusion-matrix", confusion)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert evaluated.stdout.splitlines() == [second, *rest]
    with Image.open(confusion) as drawn:
        assert drawn.format == "PNG"

    everything = run("evaluate", "vit", folder, "--model", output, "--split", "all", "--json")
    scores = json.loads(everything.stdout)
    assert scores["pictures"] == 60 and set(scores["class_accuracy"]) == set(COLOURS)
    assert scores["accuracy"] > 0.9
    labels = [line.split("\t") for line in run("classify", folder, "-m", output, "--top-k", 1).stdout.splitlines()]
    right = sum(Path(path).parent.name == label for path, label, _ in labels)
    assert right / 60 == pytest.approx(scores["accuracy"])


def test_a_trained_model_goes_on_at_another_size_and_with_other_classes(folder, tmp_path):
    assert train(folder, tmp_path / "first", "--steps", 2).exit_code == 0
    two = tmp_path / "two"
    for name, other in (("cat", "lion"), ("dog", "wolf")):
        shutil.copytree(folder / name, two / other)
    result = run(
        *[
            "train",
            "vit",
            two,
            "-o",
            tmp_path / "second",
            "--preset",
            "higher_resolution",
            "--from",
            tmp_path / "first",
        ],
        *["--image-size", "48x64", "--freeze-body", "--steps", 2, "--warmup", 1, "--batch-size", 8, "--no-flip"],
    )
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["image_size"], config["hidden_size"]) == ([48, 64], 32)
    assert set(config["label2id"]) == {"lion", "wolf"}
    said = run("evaluate", "vit", folder, "--model", tmp_path / "second").stderr.splitlines()[-1]
    assert said.startswith("hf-attn: ")
    assert "labels (and pictures of them) that the model does not know: 'cat' (2), 'dog' (2), 'wild boar' (2)" in said


def test_nothing_is_left_where_data_are_refused(folder, tmp_path):
    output = tmp_path / "run"

    def said(data: object, *more: object) -> str:
        return refuse("train", "vit", data, "-o", output, "--steps", 1, *more)

    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty is empty" in said(tmp_path / "empty")
    assert "no such file" in said(tmp_path / "nowhere").lower()
    shutil.copytree(folder / "cat", tmp_path / "one" / "cat")
    assert "the only class is cat" in said(tmp_path / "one")

    album = tmp_path / "album"
    shutil.copytree(folder, album)
    write_bomb(album / "dog" / "0.png")
    write_truncated(album / "cat" / "0.png")
    refused = said(album)
    assert "2 of 60 train pictures are bad" in refused
    assert f"{album}/dog/0.png" in refused and f"{album}/cat/0.png" in refused
    assert not output.exists()


def test_bad_pictures_are_left_out_when_asked_reported_and_counted(folder, tmp_path):
    album = tmp_path / "album"
    shutil.copytree(folder, album)
    cut = write_truncated(album / "cat" / "0.png")
    result = train(album, tmp_path / "run", "--steps", 1, "--warmup", 0, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert "pictures of 3 classes: 47 train" in result.stderr
    assert re.search(rf"dropped 1 x truncated or damaged: {cut}", result.stderr)


def test_settings_and_base_models_that_do_not_fit_are_refused_before_anything_is_written(
    folder, translator_directory, tmp_path
):
    output = tmp_path / "run"

    def said(*more: object) -> str:
        return train(folder, output, "--steps", 1, "--warmup", 0, *more).stderr.splitlines()[-1]

    assert "--config cannot set hidden_sise, but activation_function, " in said("--config", "hidden_sise=32")
    assert "image_size 30x30 (height x width) is not a multiple of patch_size 8x8" in said("--image-size", 30)
    assert "no such directory, and no such model" in said("--from", tmp_path / "nowhere")
    assert "is a model of type 'attn_translator', not 'attn_vit'" in said("--from", translator_directory)
    assert "freeze_body without base_model" in said("--freeze-body")
    assert not output.exists()


def test_what_the_options_say_is_what_the_run_is_pictures_with_several_classes_too(folder, tmp_path):
    lines = [f"{path},{path.parent.name}|animal\n" for path in sorted(folder.rglob("*.png"))]
    table = tmp_path / "animals.csv"
    table.write_text("image,label\n" + "".join(lines))
    output = tmp_path / "run"
    result = train(
        *[table, output, "--steps", 2, "--warmup", 1, "--layer-decay", 0.9, "--ema", 0.5, "--weight-decay", 0.2],
        *["--mixup", 0.3, "--cutmix", 0.4, "--randaugment", "1,5", "--erase", 0.1, "--no-flip", "--crop", "inception"],
        *["--drop-path", 0.2, "--label-smoothing", 0, "--accumulate", 2, "--average-last", 2],
        *["--license", "apache-2.0", "--data-license", "CC-BY-4.0"],
    )
    assert result.exit_code == 0, result.stderr
    settings = json.loads((output / "training_settings.json").read_text())["settings"]
    expected = {
        **{"max_steps": 2, "num_train_epochs": None, "warmup_steps": 1, "layer_decay": 0.9, "ema_decay": 0.5},
        **{"mixup": 0.3, "cutmix": 0.4, "randaugment": [1, 5.0], "erase": 0.1, "flip": False, "crop": "inception"},
        **{"drop_path_rate": 0.2, "label_smoothing": 0, "gradient_accumulation_steps": 2, "average_last": 2},
        **{"license": "apache-2.0", "data_license": "CC-BY-4.0", "data_name": "animals.csv", "weight_decay": 0.2},
        **{"bf16": False, "image_size": 32},
    }
    assert {name: settings[name] for name in expected} == expected
    assert settings["model_config"] == {"hidden_size": 32, "intermediate_size": 32}

    assert run("card", output, "--check").stdout == f"{output}/README.md: complete\n"
    assert "Licence of the data: CC-BY-4.0." in (output / "README.md").read_text()
    assert "test: mean average precision " in result.stdout
    evaluated = run("evaluate", "vit", table, "--model", output, "--confusion-matrix", tmp_path / "confusion.png")
    assert evaluated.exit_code == 1
    assert "--confusion-matrix is for pictures of one class each" in evaluated.stderr.splitlines()[-1]
    said = run("evaluate", "vit", folder, "--model", output).stderr.splitlines()[-1]
    assert "several classes to a picture, but the test split has one class to a picture" in said


def test_the_answers_of_an_evaluation_are_those_of_classify(folder, model, tmp_path):
    chosen = tmp_path / "chosen"
    shutil.copytree(folder, chosen, ignore=shutil.ignore_patterns("?.png", "11.png"))
    answers = tmp_path / "answers.tsv"
    more = ["--split", "all", "--output", answers, "--batch-size", 4]
    assert run("evaluate", "vit", chosen, "--model", model, *more).exit_code == 0
    rows = [line.split("\t") for line in answers.read_text().splitlines()]
    assert {path: label for path, label, *_ in rows} == {str(path): path.parent.name for path in chosen.rglob("*.png")}
    expected = run("classify", chosen, "--model", model, "--top-k", 1).stdout.splitlines()
    assert sorted("\t".join([path, *answer]) for path, _, *answer in rows) == sorted(expected)


def test_what_cannot_be_evaluated_is_refused(model, translator_directory, folder, tmp_path):
    assert "which does not classify pictures" in refuse("evaluate", "vit", folder, "--model", translator_directory)
    more = ["--confusion-matrix", tmp_path / "nowhere" / "confusion.png"]
    said = refuse("evaluate", "vit", folder, "--model", model, *more)
    assert "there is no directory" in said


# --- console ---------------------------------------------------------------------------------------------------------


def test_scores_of_pictures_with_one_or_several_classes():
    one = {"accuracy": 0.912, "top_5_accuracy": 1.0, "loss": 0.3, "pictures": 1200}
    one["class_accuracy"] = {"cat": 0.5, "dog": 1.0, "none": None, "eel": 0.25, "boar": 0.75, "fly": 0.9}
    assert "".join(picture_score_lines("test", one)) == (
        "test: accuracy 91.2%, top-5 accuracy 100.0%, loss 0.300 nats, 1,200 pictures\n"
        "weakest classes: eel 25.0%, cat 50.0%, boar 75.0%\n"
    )
    several = {"mean_average_precision": 1.0, "loss": 0.3, "pictures": 2, "class_average_precision": {"cat": 1.0}}
    assert list(picture_score_lines("all", several)) == [
        "all: mean average precision 100.0%, loss 0.300 nats, 2 pictures\n"
    ]
