"""`hf-attn classify`: one line for each picture, and one for each mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, pipeline

from hf_attn import AttnViTForMaskedImageModeling
from hf_attn.image_processing_vit import AttnViTImageProcessor
from tests.animals import COLOURS, NAMES, picture, save_folders, save_model, write_bomb, write_truncated
from tests.test_cli import refuse, run
from tests.tiny import tiny_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_folders(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """Pictures of many modes, formats and sizes, two of the same name, and a file that is none."""
    root = tmp_path_factory.mktemp("album")
    (root / "more").mkdir()
    rgb = picture(COLOURS["cat"], 0, (40, 30))
    rgb.save(root / "a.png")
    rgb.convert("L").save(root / "grey.jpg")
    rgb.convert("CMYK").resize((64, 20)).save(root / "print.jpg")
    rgb.convert("RGBA").save(root / "clear.webp")
    rgb.convert("P").save(root / "palette.gif")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(root / "deep.png")
    rgb.resize((300, 7)).save(root / "more" / "a.TIFF")
    rgb.convert("1").save(root / "more" / "a-2.png")
    (root / "README.txt").write_text("no picture")
    (root / "._a.png").write_bytes(b"what a Mac leaves on other disks")
    return root


def test_one_line_out_for_each_picture_however_they_are_named(album, model, tmp_path):
    from_directory = run("classify", album, "--model", model)
    assert from_directory.exit_code == 0, from_directory.stderr
    rows = [line.split("\t") for line in from_directory.stdout.splitlines()]
    names = ["a.png", "clear.webp", "deep.png", "grey.jpg", "more/a-2.png", "more/a.TIFF", "palette.gif", "print.jpg"]
    paths = [str(album / name) for name in names]
    assert [row[0] for row in rows] == paths
    for row in rows:
        assert sorted(row[1::2]) == sorted(COLOURS)
        scores = [float(score) for score in row[2::2]]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=2e-4)

    assert run("classify", *paths, "--model", model).stdout == from_directory.stdout
    assert run("classify", "-", "--model", model, stdin="\n".join(paths)).stdout == from_directory.stdout
    assert run("classify", album, "--model", model, "--batch-size", 2).stdout == from_directory.stdout
    assert run("classify", album, "--model", model, "--output", tmp_path / "labels.tsv").stdout == ""
    assert (tmp_path / "labels.tsv").read_text() == from_directory.stdout


def test_json_and_top_k_say_the_same_and_so_does_the_pipeline(album, model):
    result = run("classify", album, "--model", model, "--json", "--top-k", 2)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    rows = [line.split("\t") for line in run("classify", album, "--model", model, "--top-k", 2).stdout.splitlines()]
    assert [[record["path"], record["labels"][0]["label"], record["labels"][1]["label"]] for record in records] == [
        [row[0], row[1], row[3]] for row in rows
    ]
    classifier = pipeline("image-classification", model=str(model), top_k=2)
    for record in records:
        if record["path"].endswith((".gif", "deep.png")):  # of GIFs it leaves the file open, and 16 bits it cuts to 8
            continue
        expected = classifier(record["path"])
        assert [answer["label"] for answer in record["labels"]] == [answer["label"] for answer in expected]
        for ours, theirs in zip(record["labels"], expected, strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_pictures_of_many_sizes_are_classified_as_they_are(folder, tmp_path):
    directory = save_model(tmp_path / "any_size", size=None)
    picture(COLOURS["dog"], 3, (48, 16)).save(tmp_path / "wide.png")
    picture(COLOURS["dog"], 3, (16, 64)).save(tmp_path / "high.png")
    paths = [folder / "cat" / "0.png", tmp_path / "wide.png", folder / "dog" / "0.png", tmp_path / "high.png"]
    together = run("classify", *paths, "--model", directory)
    assert together.exit_code == 0, together.stderr
    alone = [run("classify", path, "--model", directory).stdout for path in paths]
    assert together.stdout == "".join(alone)
    said = refuse("classify", picture_file(tmp_path / "odd.png", (33, 32)), "--model", directory)
    assert "32x33 (height x width) is not a multiple of patch_size 8x8" in said


def picture_file(path: Path, size: tuple[int, int]) -> Path:
    picture(COLOURS["cat"], 0, size).save(path)
    return path


@pytest.mark.parametrize(
    ("problem_type", "function"),
    [("multi_label_classification", torch.sigmoid), ("regression", lambda logits: logits)],
)
def test_scores_are_what_the_problem_says(folder, tmp_path, problem_type, function):
    directory = save_model(tmp_path / "model", problem_type=problem_type)
    path = folder / "cat" / "0.png"
    (record,) = map(json.loads, run("classify", path, "--model", directory, "--json").stdout.splitlines())
    pixels = AttnViTImageProcessor(size=32)(Image.open(path), return_tensors="pt")
    network = tiny_vit(id2label=NAMES, problem_type=problem_type)
    with torch.no_grad():
        expected = function(network(**pixels).logits[0]).tolist()
    assert {answer["label"]: answer["score"] for answer in record["labels"]} == {
        NAMES[label]: pytest.approx(score, abs=1e-5) for label, score in enumerate(expected)
    }


def test_the_number_format_can_be_chosen(model, album):
    assert run("classify", album / "a.png", "--model", model, "--precision", "bf16").exit_code == 0
    assert "int8" in refuse("classify", album / "a.png", "--model", model, "--precision", "int8")
    said = refuse("classify", album / "a.png", "--model", model, "--precision", "fp8")
    assert "--precision is 'fp8'; use fp32, bf16, int8" in said


def test_tabs_and_line_ends_in_names_do_not_break_a_line(model, folder, tmp_path):
    odd = tmp_path / "two\nlines\tand a tab.png"
    shutil.copy(folder / "cat" / "0.png", odd)
    (line,) = run("classify", odd, "--model", model, "--top-k", 1).stdout.splitlines()
    assert line.split("\t")[0] == f"{tmp_path}/two lines and a tab.png"


@pytest.mark.parametrize(
    ("pooling", "chosen", "names"),
    [
        ("class_token", ["a.png", "more/a.TIFF", "more/a-2.png"], ["a", "a-2", "a-2-2"]),
        ("mean", ["grey.jpg"], ["grey"]),
        ("attention", ["grey.jpg"], ["grey"]),
    ],
)
def test_explanations_are_pictures_named_after_the_pictures(album, tmp_path, pooling, chosen, names):
    directory = save_model(tmp_path / "model", pooling=pooling)
    heat = tmp_path / "heat" / "maps"
    result = run("classify", *(album / name for name in chosen), "-m", directory, "--explain", heat, "--json")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["heat_maps"] for record in records] == [
        {kind: str(heat / f"{name}.{kind}.png") for kind in ("attention", "rollout")} for name in names
    ]
    assert len(list(heat.iterdir())) == 2 * len(names)
    for path in heat.iterdir():
        with Image.open(path) as drawn:
            assert drawn.width > 600 and len(drawn.convert("RGB").getcolors(1_000_000)) > 100


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_files_that_are_no_whole_pictures_are_named(model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "nothing").mkdir()

    def said(path: Path) -> str:
        return refuse("classify", path, "--model", model)

    assert f"{tmp_path}/text.png: not a picture" in said(tmp_path / "text.png")
    assert f"{tmp_path}/empty.png: empty file" in said(tmp_path / "empty.png")
    assert f"{tmp_path}/none.png: cannot be read: No such file or directory" in said(tmp_path / "none.png")
    assert "cut.png: truncated or damaged" in said(write_truncated(tmp_path / "cut.png"))
    bomb = said(write_bomb(tmp_path / "bomb.png"))
    assert f"{tmp_path}/bomb.png: more pixels than Pillow's limit" in bomb and "900000000 pixels" in bomb
    assert "large.png: more pixels than" in said(write_bomb(tmp_path / "large.png", 10_000))
    assert f"{tmp_path}/nothing holds no pictures (.avif, .bmp" in said(tmp_path / "nothing")
    assert "no paths came on stdin" in refuse("classify", "-", "--model", model, stdin="\n")


def test_a_bad_file_among_many_is_skipped_when_asked_reported_and_counted(model, folder, tmp_path):
    album = tmp_path / "album"
    shutil.copytree(folder / "cat", album)
    cut = write_truncated(album / "5.png")
    write_bomb(album / "99.png")
    stopped = run("classify", album, "--model", model, "--batch-size", 4)
    assert stopped.exit_code == 1
    assert stopped.stderr.splitlines()[-1].startswith(f"hf-attn: {cut}: truncated or damaged")

    result = run("classify", album, "--model", model, "--skip-bad")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 19
    first, second, count = result.stderr.splitlines()
    assert first.startswith(f"skipped {cut}: truncated or damaged") and second.startswith(f"skipped {album}/99.png")
    assert count == "skipped 2 of 21 files, which are no whole pictures"
    assert "none of the 1 files is a whole picture" in run("classify", cut, "--model", model, "--skip-bad").stderr


def test_what_a_model_is_not_is_said_in_one_line(model, translator_directory, folder, tmp_path):
    path = folder / "cat" / "0.png"

    def said(directory: object, *more: object) -> str:
        return refuse("classify", path, "--model", directory, *more)

    assert "of type attn_translator, which does not classify pictures" in said(translator_directory)
    assert "no such directory, and no such model" in said(tmp_path / "nowhere")
    assert "no config.json); give what `hf-attn train vit` wrote" in said(folder)
    assert "--device kitchen cannot be used" in said(model, "--device", "kitchen")

    without = tmp_path / "without"
    shutil.copytree(model, without, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    assert "has no image processor (no preprocessor_config.json)" in said(without)

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    assert f"{broken}: the weights cannot be read" in said(broken)

    masked = tmp_path / "masked"
    AttnViTForMaskedImageModeling(tiny_vit().config).save_pretrained(masked)
    shutil.copy(model / "preprocessor_config.json", masked)
    assert "is of class AttnViTForMaskedImageModeling, without a classifier; train one with --from" in said(masked)
    config = json.loads((masked / "config.json").read_text()) | {"architectures": None}
    (masked / "config.json").write_text(json.dumps(config))
    assert "it has no classifier.bias, classifier.weight" in said(masked)

    said_of_vit = refuse("translate", "x", "--model", model)
    assert "of type attn_vit, which does not translate" in said_of_vit


def test_heat_maps_and_number_formats_are_for_models_of_this_package(folder, tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    AttnViTImageProcessor(size=32).save_pretrained(tmp_path / "vit")
    arguments = ["classify", folder / "cat" / "0.png", "--model", tmp_path / "vit"]
    assert run(*arguments).exit_code == 0
    assert "models of type attn_vit, and this one is vit" in refuse(*arguments, "--explain", tmp_path / "heat")
    assert not (tmp_path / "heat").exists()
    assert "models of this package, not for ViTForImageClassification" in refuse(*arguments, "--precision", "bf16")
