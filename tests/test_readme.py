"""README says what is so: its python blocks run, its commands exist, its files are there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hf_attn import AttnViTImageProcessor
from hf_attn.__main__ import app
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from tests.detection_shapes import save_coco, scenes
from tests.tiny import tiny_detr, tiny_vit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    (hf-attn .*)$", README, re.MULTILINE)

# What would take hours in a block is done for a moment.
FOR_A_MOMENT = {
    "max_steps=20000": "max_steps=2, vocab_size=400, model_config={'hidden_size': 16, 'intermediate_size': 16}",
    "num_train_epochs=50": "max_steps=2, batch_size=4, warmup_steps=0, scales=(32,), longest_edge=32",
    "num_train_epochs=100": "max_steps=2, batch_size=4, model_config={'hidden_size': 16, 'num_hidden_layers': 1}",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch, translator_directory):
    """A directory with the files that README names, where the programs run."""
    shutil.copytree(translator_directory, tmp_path / "runs" / "demo")
    lines = [f"Das ist Satz {number}.\tThis is sentence {number}.\n" for number in range(30)]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    AttnViTImageProcessor(size=28, num_channels=1).save_pretrained(tmp_path / "runs" / "demo_vit")
    tiny_vit(image_size=28, patch_size=4, num_channels=1).save_pretrained(tmp_path / "runs" / "demo_vit")
    Image.new("L", (28, 28), 90).save(tmp_path / "picture.png")
    for number in range(20):
        for color in ("red", "green"):
            (tmp_path / "photos" / color).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 60 + number), color).save(tmp_path / "photos" / color / f"{number}.png")
    AttnDetrImageProcessor(size={"longest_edge": 64}).save_pretrained(tmp_path / "runs" / "demo_detr")
    tiny_detr().save_pretrained(tmp_path / "runs" / "demo_detr")
    scenes(1)[0]["image"].save(tmp_path / "scene.jpg")
    for number, split in enumerate(("train", "validation")):
        save_coco(scenes(8, 32, 100 * number), tmp_path / "scenes", split)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_one_after_another(workplace, capsys):
    names: dict[str, object] = {}
    printed = []
    for block in PYTHON:
        for long, short in FOR_A_MOMENT.items():
            block = block.replace(long, short)
        exec(compile(block, "README.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert len(PYTHON) == 14 and all(printed)
    assert printed[1].count("\n") == 3
    assert " document" in names["tokenizer"].decode(names["ids"][0])
    assert (workplace / "runs" / "mine" / "model.safetensors").is_file()
    assert "torch.Size([1, 2, " in printed[4]
    assert printed[5].count("LABEL_") == 3
    assert (workplace / "runs" / "photos" / "confusion_matrix.png").is_file()
    assert "torch.Size([14, 14])" in printed[7] and (workplace / "where_it_looks.png").is_file()
    assert "torch.Size([1, 16, 14, 14])" in printed[8]
    assert printed[9].count("\n") == 2  # a list for each picture
    assert (workplace / "runs" / "scenes" / "sample.png").is_file()
    assert "torch.Size([2, 4, 4])" in printed[11] and (workplace / "scene_with_boxes.png").is_file()
    assert printed[12].count("\n") == 1  # a translation, by a prepared model
    assert "torch.Size([1, 64, 14, 14])" in printed[13]


def test_what_is_done_for_a_moment_stands_in_readme():
    assert all(long in README for long in FOR_A_MOMENT)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    """Every option is one that the command has; the work itself is the subject of test_cli.py."""
    words = shlex.split(command.split("<")[0])[1:]
    options = [word for word in words if word.startswith("-")]
    names = words[: 2 if words[0] in ("train", "evaluate") else 1]
    explained = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"})
    assert explained.exit_code == 0
    assert [option for option in options if option not in explained.stdout] == []


def test_the_files_that_readme_names_exist():
    for name in re.findall(r"`(hf_attn/\w+\.py|tests/\w+\.py|LICENSE)`|\((LICENSE)\)", README):
        assert (ROOT / "".join(name)).is_file(), name
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target
