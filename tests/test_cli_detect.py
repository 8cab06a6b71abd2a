"""`hf-attn detect`: a line for each object, pictures with boxes, where the model looked, and one line a mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, pipeline

from hf_attn import AttnDetrModel
from hf_attn.commands_detect import DrawnBoxes
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from tests.animals import save_model, write_truncated
from tests.detection_shapes import SHAPES, draw_scene
from tests.test_cli import refuse, run
from tests.tiny import tiny_detr


def save_detector(directory: Path, size: dict[str, int] | None = None, **config: object) -> Path:
    """A detector of three shapes with its processor; what it says is noise, for its weights are random."""
    names = {"id2label": dict(enumerate(SHAPES)), "label2id": {name: number for number, name in enumerate(SHAPES)}}
    tiny_detr(**names, **config).save_pretrained(directory)
    AttnDetrImageProcessor(size=size or {"longest_edge": 64}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_detector(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """Pictures of many modes, formats and sizes, two of the same name, and a file that is none."""
    root = tmp_path_factory.mktemp("album")
    (root / "more").mkdir()
    wide, high = draw_scene(0, size=(96, 64)).picture, draw_scene(1, size=(48, 80)).picture
    wide.save(root / "a.jpg")
    high.convert("L").save(root / "b.png")
    high.convert("P").save(root / "c.gif")
    wide.resize((120, 80)).save(root / "d.jpg")
    wide.convert("RGBA").save(root / "more" / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    wide.save(root / "phone.jpg", exif=turned)
    (root / "README.txt").write_text("no picture")
    return root


def detected(*arguments: object) -> list[dict]:
    result = run("detect", *arguments, "--json", "--threshold", 0)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_line_out_for_each_object_as_json_says_it_too(album, model):
    records = detected(album, "--model", model)
    names = ["a.jpg", "b.png", "c.gif", "d.jpg", "more/a.png", "phone.jpg"]
    assert [record["path"] for record in records] == [str(album / name) for name in names]
    sizes = [(96, 64), (48, 80), (48, 80), (120, 80), (96, 64), (64, 96)]
    assert [(record["width"], record["height"]) for record in records] == sizes
    lines = run("detect", album, "--model", model, "--threshold", 0).stdout.splitlines()
    expected = [(record, one) for record in records for one in record["detections"]]
    assert len(lines) == len(expected) > 12
    for line, (record, one) in zip(lines, expected, strict=True):
        path, label, score, *box = line.split("\t")
        assert (path, label, score) == (record["path"], one["label"], f"{one['score']:.4f}")
        assert [float(edge) for edge in box] == pytest.approx(one["box"], abs=0.051)
        left, top, right, bottom = one["box"]
        assert 0 <= left <= right <= record["width"] and 0 <= top <= bottom <= record["height"]
    for record in records:
        scores = [one["score"] for one in record["detections"]]
        assert scores == sorted(scores, reverse=True)


def test_what_is_found_does_not_depend_on_the_batch_and_is_what_the_pipeline_finds(album, model):
    records = detected(album, "--model", model)
    for size in (1, 4):
        for one, other in zip(detected(album, "--model", model, "--batch-size", size), records, strict=True):
            assert [o["label"] for o in one["detections"]] == [o["label"] for o in other["detections"]]
            boxes = [np.array([o["box"] for o in some["detections"]]) for some in (one, other)]
            np.testing.assert_allclose(*boxes, atol=0.02)
    detector = pipeline("object-detection", model=str(model))
    for record in records:
        if record["path"].endswith((".gif", "phone.jpg")):  # of which it has other pictures
            continue
        theirs = sorted(detector(record["path"], threshold=0.0), key=lambda one: -one["score"])
        assert [one["label"] for one in theirs] == [one["label"] for one in record["detections"]]
        for one, other in zip(theirs, record["detections"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            edges = np.array(
                [one["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
            )  # whole numbers, unclipped
            edges = edges.clip(0, [record["width"], record["height"]] * 2)
            assert edges == pytest.approx(other["box"], abs=1.01)


def test_the_threshold_leaves_out_the_less_probable(album, model):
    records = detected(album, "--model", model)
    scores = sorted(one["score"] for record in records for one in record["detections"])
    middle = (scores[len(scores) // 2] + scores[len(scores) // 2 - 1]) / 2
    result = run("detect", album, "--model", model, "--threshold", middle)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == sum(score > middle for score in scores)
    assert run("detect", album, "--model", model, "--threshold", 1).stdout == ""


def test_pictures_with_boxes_and_a_list_of_all_are_left_in_a_directory(album, model, tmp_path):
    found = tmp_path / "new" / "found"
    records = detected(album, "--model", model, "--out", found)
    names = ["a", "b", "c", "d", "a-2", "phone"]
    assert [record["drawn"] for record in records] == [str(found / f"{name}.png") for name in names]
    assert {path.name for path in found.iterdir()} == {*(f"{name}.png" for name in names), "detections.json"}
    assert json.loads((found / "detections.json").read_text()) == records
    for record in records:
        with Image.open(record["drawn"]) as drawn:
            assert drawn.width / drawn.height == pytest.approx(record["width"] / record["height"])
            assert drawn.width % record["width"] == 0 and max(drawn.size) >= 480


def test_a_picture_without_objects_is_drawn_and_listed_too(album, model, tmp_path):
    result = run("detect", album / "a.jpg", "--model", model, "--threshold", 1, "-o", tmp_path / "found")
    assert (result.exit_code, result.stdout) == (0, "")
    (record,) = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert record["detections"] == [] and Path(record["drawn"]).is_file()


@pytest.mark.parametrize(
    ("config", "chosen", "names"),
    [
        ({}, ["a.jpg", "more/a.png"], ["a", "a-2"]),
        ({"conditional_attention": True, "class_loss": "focal"}, ["phone.jpg"], ["phone"]),
    ],
)
def test_explanations_are_pictures_named_after_the_pictures(album, tmp_path, config, chosen, names):
    directory = save_detector(tmp_path / "model", **config)
    looked = tmp_path / "looked"
    records = detected(*(album / name for name in chosen), "-m", directory, "--explain", looked)
    assert [record["attention"] for record in records] == [
        {kind: str(looked / f"{name}.{kind}.png") for kind in ("queries", "points")} for name in names
    ]
    assert len(list(looked.iterdir())) == 2 * len(names)
    for path in looked.iterdir():
        with Image.open(path) as drawn:
            assert len(drawn.convert("RGB").getcolors(1_000_000)) > 100
    nothing = run("detect", album / chosen[0], "-m", directory, "--explain", looked, "--threshold", 1, "--json")
    assert json.loads(nothing.stdout)["attention"] == {}


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_no_picture_that_is_to_be_read_is_overwritten(model, tmp_path):
    scene = draw_scene(0).picture
    scene.save(tmp_path / "dog.png")
    scene.save(tmp_path / "cat.jpg")
    before = (tmp_path / "dog.png").read_bytes()
    said = refuse("detect", tmp_path, "--model", model, "--out", tmp_path)
    assert f"--out {tmp_path} would overwrite {tmp_path}/dog.png" in said
    assert (tmp_path / "dog.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    assert run("detect", tmp_path / "cat.jpg", "--model", model, "--out", tmp_path).exit_code == 0
    assert (tmp_path / "cat.png").is_file()


def test_a_bad_file_among_many_is_skipped_when_asked(album, model, tmp_path):
    shutil.copytree(album, tmp_path / "album")
    cut = write_truncated(tmp_path / "album" / "cut.png")
    stopped = run("detect", tmp_path / "album", "--model", model, "--out", tmp_path / "found")
    assert stopped.exit_code == 1
    assert stopped.stderr.splitlines()[-1].startswith(f"hf-attn: {cut}: truncated or damaged")
    assert not (tmp_path / "found" / "detections.json").exists()
    result = run("detect", tmp_path / "album", "--model", model, "--out", tmp_path / "found", "--skip-bad")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "skipped 1 of 7 files, which are no whole pictures"
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())) == 6


def test_nothing_half_written_is_left_when_it_is_interrupted(album, model, tmp_path, monkeypatch):
    def interrupt(self: DrawnBoxes, path: str, *more: object) -> str:
        if path.endswith("c.gif"):
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(DrawnBoxes, "draw", interrupt)
    result = run("detect", album, "--model", model, "--out", tmp_path, "--batch-size", 1)
    assert result.exit_code == 1 and result.stderr == "hf-attn: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_is_not_is_said_in_one_line(model, album, tmp_path):
    path = album / "a.jpg"

    def said(directory: object, *more: object) -> str:
        return refuse("detect", path, "--model", directory, *more)

    assert "of type attn_vit, which does not detect objects" in said(save_model(tmp_path / "classifier"))
    assert "no such directory, and no such model" in said(tmp_path / "nowhere")
    assert "no config.json); give what `hf-attn train detr` wrote" in said(album)
    assert "--device kitchen cannot be used" in said(model, "--device", "kitchen")
    without = tmp_path / "without"
    shutil.copytree(model, without, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    assert "has no image processor (no preprocessor_config.json)" in said(without)

    body = tmp_path / "body"
    AttnDetrModel(tiny_detr().config).save_pretrained(body)
    shutil.copy(model / "preprocessor_config.json", body)
    assert "is of class AttnDetrModel, without a head for boxes; train one with --from" in said(body)
    config = json.loads((body / "config.json").read_text()) | {"architectures": None}
    (body / "config.json").write_text(json.dumps(config))
    assert "was not trained to detect objects: it has no class_head.bias, class_head.weight" in said(body)


def test_detectors_of_transformers_are_used_as_well_but_not_explained(album, tmp_path):
    config = DetrConfig(
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5},
        **{"backbone": "resnet18", "use_pretrained_backbone": False, "num_labels": 3},
    )
    DetrForObjectDetection(config).save_pretrained(tmp_path / "detr")
    AttnDetrImageProcessor(size={"longest_edge": 64}).save_pretrained(tmp_path / "detr")
    arguments = [album / "a.jpg", album / "b.png", "--model", tmp_path / "detr"]
    assert [len(record["detections"]) for record in detected(*arguments)] == [5, 5]
    said = refuse("detect", *arguments, "--explain", tmp_path / "looked")
    assert "models of type attn_detr, and this one is detr" in said
    assert not (tmp_path / "looked").exists()
