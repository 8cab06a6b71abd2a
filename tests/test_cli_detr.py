"""`hf-attn train detr` and `hf-attn evaluate detr`: what they are told, what they print and what they leave."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import Result

from hf_attn import commands_detr
from hf_attn.commands_detr import (
    ClassLoss,
    Decay,
    Layout,
    Preset,
    box_score_lines,
    evaluate_detr_command,
    train_detr_command,
)
from hf_attn.configuration_detr import CLASS_LOSSES
from hf_attn.training.detection_data import load_detections
from hf_attn.training.detection_report import LAYOUT_NAMES
from hf_attn.training.detr_evaluation import evaluate_detr
from hf_attn.training.detr_settings import PRESETS, DetrSettings
from hf_attn.training.optimization import DECAYS
from tests.detection_shapes import SHAPES, save_coco, save_yolo, scenes
from tests.test_cli import ROOT, refuse, run
from tests.test_cli_detect import save_detector

TINY = ["--preset", "tiny", "--queries", 5, "--batch-size", 4, "--scales", 64, "--longest-edge", 64]
TINY += ["--config", "hidden_size=16", "--config", "num_attention_heads=2", "--config", "intermediate_size=16"]
TINY += ["--config", "encoder_layers=1", "--config", "decoder_layers=2", "--warmup", 1, "--precision", "fp32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 pictures to train with and 4 each to validate and to test with."""
    directory = tmp_path_factory.mktemp("data") / "shapes"
    directory.mkdir()
    for split, number, seed in (("train", 12, 0), ("validation", 4, 100), ("test", 4, 200)):
        save_coco(scenes(number, first_seed=seed), directory, split)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_detector(tmp_path_factory.mktemp("model"))


# --- the whole program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["train", "detr"], ["evaluate", "detr"], ["detect"]])
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
        (["detect", "--model", "m"], "Missing argument"),
        (["detect", "cat.png"], "Missing option '--model'"),
        (["detect", "cat.png", "--model", "m", "--threshold", 1.5], "Invalid value for '--threshold'"),
        (["detect", "cat.png", "--model", "m", "--out", __file__], "is a file"),
        (["train", "detr", "data", "-o", "run", "--preset", "huge"], "'huge'"),
        (["train", "detr", "data", "-o", "run", "--class-loss", "hinge"], "'hinge'"),
        (["train", "detr", "data", "-o", "run", "--config", "hidden_size"], "has no '='"),
        (
            ["train", "detr", "data", "-o", "run", "--scales", "480,big"],
            "is not a list of pixels; write it as 480,512",
        ),
        (["evaluate", "detr", "data", "-m", "m", "--split", "half"], "'half'"),
        (["evaluate", "detr", "data", "-m", "m", "--box-format", "xywhr"], "'xywhr'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, said):
    assert said in re.sub(r"[\s│]+", " ", refuse(*arguments, code=2))


def test_defaults_and_choices_of_the_command_line_are_those_of_the_library():
    here = {name: parameter.default for name, parameter in signature(train_detr_command).parameters.items()}
    there = {field.name: field.default for field in fields(DetrSettings)}
    same = {
        **{name: name for name in ("preset", "base_model", "backbone", "backbone_model", "learning_rate", "crop")},
        **{name: name for name in ("conditional_attention", "denoising_groups", "class_loss", "decay", "decay_from")},
        **{name: name for name in ("backbone_learning_rate", "weight_decay", "batch_size", "average_last", "flip")},
        **{name: name for name in ("scales", "longest_edge", "colour_jitter", "license", "seed")},
        **{"queries": "num_queries", "pretrained_backbone": "use_pretrained_backbone", "clip": "max_grad_norm"},
        **{"warmup": "warmup_steps", "accumulate": "gradient_accumulation_steps", "ema": "ema_decay"},
        **{"precision": "bf16", "evaluate_every": "eval_steps", "workers": "num_workers", "steps": "max_steps"},
        **{"epochs": "num_train_epochs", "minutes": "max_minutes", "early_stopping": "early_stopping_patience"},
    }
    assert {name: here[name] for name in same} == {name: there[same[name]] for name in same}
    assert set(get_args(Preset)) == set(PRESETS)
    for name, preset in PRESETS.items():  # as the help says
        assert re.search(rf"`{name}`: .*; {preset.settings['num_train_epochs']} epochs", commands_detr.PRESETS)
    for choices, known in ((ClassLoss, CLASS_LOSSES), (Decay, DECAYS), (Layout, LAYOUT_NAMES)):
        assert set(get_args(choices)) == set(known)
    read = {name: parameter.default for name, parameter in signature(load_detections).parameters.items()}
    for command in (train_detr_command, evaluate_detr_command):
        own = {name: parameter.default for name, parameter in signature(command).parameters.items()}
        for name in ("skip_bad", "max_bad_share", "image_column", "objects_column", "class_names", "layout", "seed"):
            assert own[name] == read[name]
        assert own["box_format"] == read["box_format"] and own["pictures_in"] == read["pictures"]
    batch_size = signature(evaluate_detr).parameters["batch_size"].default
    assert signature(evaluate_detr_command).parameters["batch_size"].default == batch_size


# --- train and evaluate ----------------------------------------------------------------------------------------------


def train(data: object, output: Path, *more: object) -> Result:
    return run("train", "detr", data, "--output", output, *TINY, *more)


def test_a_trained_detector_is_measured_and_used(data, tmp_path):
    output = tmp_path / "run"
    result = train(data, output, "--steps", 4, "--evaluate-every", 2)
    assert result.exit_code == 0, result.stderr
    assert "COCO with boxes of 3 classes: 12 train pictures" in result.stderr
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith(f"{output}: 4 steps in ") and first.endswith("all steps taken")
    assert re.fullmatch(r"test: AP \d+\.\d%, AP50 \d+\.\d%, AP75 \d+\.\d%, 4 pictures, \d+ boxes", second)
    assert "is not empty; resume" in train(data, output, "--steps", 4, "--evaluate-every", 2).stderr
    longer = train(data, output, "--steps", 5, "--evaluate-every", 2, "--resume")
    assert longer.exit_code == 0 and ": 5 steps in " in longer.stdout

    evaluated = run("evaluate", "detr", data, "--model", output, "--draw", tmp_path / "seen")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert evaluated.stdout.splitlines() == longer.stdout.splitlines()[1:]
    assert len(rest) == len(longer.stdout.splitlines()) - 2
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {f"{number}.png" for number in range(4)}
    with Image.open(tmp_path / "seen" / "0.png") as drawn:
        assert drawn.size == (512, 512)
    everything = run("evaluate", "detr", data, "--model", output, "--split", "all", "--json")
    scores = json.loads(everything.stdout)
    assert scores["pictures"] == 20 and set(scores["class_ap"]) == set(SHAPES)
    lines = run("detect", data / "test", "--model", output, "--threshold", 0).stdout.splitlines()
    assert {line.split("\t")[1] for line in lines} <= set(SHAPES)

    other = run("train", "detr", data, "-o", tmp_path / "second", "--from", output, "--steps", 1, "--scales", 64)
    assert other.exit_code == 0, other.stderr
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["hidden_size"], config["num_queries"]) == (16, 5)


def test_what_the_options_say_is_what_the_run_is(tmp_path):
    yolo, output = tmp_path / "yolo", tmp_path / "run"
    save_yolo(scenes(10), yolo)
    result = train(
        *[yolo, output, "--steps", 2, "--ema", 0.5, "--weight-decay", 0.2, "--learning-rate", 0.001],
        *["--accumulate", 2],
        *["--backbone-learning-rate", 0.0005, "--decay", "step", "--decay-from", 0.5, "--clip", 0, "--no-flip"],
        *["--crop", "--colour-jitter", 0.2, "--no-conditional-attention", "--denoising-groups", 2, "--seed", 3],
        *["--class-loss", "cross_entropy", "--backbone", "resnet18", "--average-last", 2, "--license", "apache-2.0"],
        *["--data-license", "CC-BY-4.0"],
        *["--class-names", "ring,box,star", "--layout", "yolo", "--evaluate-every", 1],
    )
    assert result.exit_code == 0, result.stderr
    settings = json.loads((output / "training_settings.json").read_text())["settings"]
    expected = {
        **{"max_steps": 2, "num_train_epochs": None, "ema_decay": 0.5, "weight_decay": 0.2, "learning_rate": 0.001},
        **{"gradient_accumulation_steps": 2, "backbone_learning_rate": 0.0005, "decay": "step", "decay_from": 0.5},
        **{"max_grad_norm": 0, "flip": False, "crop": True, "colour_jitter": 0.2, "conditional_attention": False},
        **{"denoising_groups": 2, "class_loss": "cross_entropy", "backbone": "resnet18", "average_last": 2, "seed": 3},
        **{"license": "apache-2.0", "data_license": "CC-BY-4.0", "data_name": "yolo", "bf16": False},
        **{"scales": [64], "longest_edge": 64},
        **{"num_queries": 5, "batch_size": 4, "warmup_steps": 1, "eval_steps": 1, "preset": "tiny"},
    }
    assert {name: settings[name] for name in expected} == expected
    assert run("card", output, "--check").stdout == f"{output}/README.md: complete\n"
    assert "Licence of the data: CC-BY-4.0." in (output / "README.md").read_text()
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "ring", "1": "box", "2": "star"}
    assert (config["backbone"], config["hidden_size"], config["decoder_layers"]) == ("resnet18", 16, 2)


def test_nothing_is_left_where_data_and_settings_are_refused(data, translator_directory, tmp_path):
    output = tmp_path / "run"

    def said(source: object, *more: object) -> str:
        result = train(source, output, "--steps", 2, *more)
        assert result.exit_code == 1 and result.stdout == "" and not output.exists()
        return result.stderr.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in said(tmp_path / "empty")
    assert "no such file" in said(tmp_path / "nowhere").lower()
    assert "--config cannot set hidden_sise, but activation_function, " in said(data, "--config", "hidden_sise=32")
    assert "hidden_size 18 is not a multiple of 4" in said(data, "--config", "hidden_size=18")
    assert "no such directory, and no such model" in said(data, "--from", tmp_path / "nowhere")
    assert "is a model of type 'attn_translator', not 'attn_detr'" in said(data, "--from", translator_directory)
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    (damaged / "train" / "train_00003.png").write_bytes(b"no picture")
    assert f"{damaged}/train/train_00003.png" in said(damaged)


def test_what_cannot_be_evaluated_is_refused(data, model, translator_directory):
    assert "which does not detect objects" in refuse("evaluate", "detr", data, "--model", translator_directory)
    said = run("evaluate", "detr", data, "--model", model, "--class-names", "ring,box,star").stderr.splitlines()[-1]
    assert said.startswith("hf-attn: ") and "ring" in said


# --- what is printed -------------------------------------------------------------------------------------------------


def test_scores_by_size_and_class_and_what_is_not_there():
    metrics = {
        **{"ap": 0.4567, "ap50": 0.7, "ap75": 0.5, "ap_small": None, "ap_medium": 0.25, "ap_large": 1.0},
        **{"ar_1": 0.3, "ar_10": 0.45, "ar_100": 0.5, "ar_small": None, "ar_medium": 0.25, "ar_large": 1.0},
        "class_ap": {"cat": 0.2, "wild boar": 0.7134, "eel": None},
        "class_ap50": {"cat": 0.5, "wild boar": 0.9, "eel": None},
        **{"pictures": 1200, "boxes": 3456},
    }
    assert "".join(box_score_lines("test", metrics)) == (
        "test: AP 45.7%, AP50 70.0%, AP75 50.0%, 1,200 pictures, 3,456 boxes\n"
        "AP by size: small -, medium 25.0%, large 100.0%\n"
        "AR: 30.0% with 1, 45.0% with 10, 50.0% with 100 boxes a picture; small -, medium 25.0%, large 100.0%\n"
        "class          AP    AP50\n"
        "wild boar   71.3%   90.0%\n"
        "cat         20.0%   50.0%\n"
        "eel             -       -\n"
    )
