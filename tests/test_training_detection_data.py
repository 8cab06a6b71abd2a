"""Boxes come out of every format alike, none disappears silently, and what cannot be right is said with its place."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import hypothesis.strategies as st
import numpy as np
import pytest
from detection_shapes import COCO_IDS, SHAPES, draw_scene, features, row_of, save_coco, save_voc, save_yolo, scenes
from hypothesis import given, settings
from PIL import Image, ImageOps

from hf_attn.training.detection_data import DetectionReport, detection_features, load_detections
from hf_attn.training.detection_objects import boxes_in_pixels, clipped_boxes, likely_format, turned_boxes

COUNT = 20


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    """Scenes of several sizes, two of them empty."""
    sizes = [(40, 30), (30, 40), (32, 32)]
    found = [row_of(draw_scene(n, size=sizes[n % 3]), n) for n in range(COUNT)]
    for number in (4, 11):
        scene = draw_scene(number, size=sizes[number % 3], most=1)._replace(boxes=[], shapes=[])
        found[number] = row_of(scene, number)
    return datasets.Dataset.from_list(found, features=features())


def contents(split: datasets.Dataset) -> list[tuple[bytes, list[tuple]]]:
    """(pixels, objects) of each row, in a fixed order."""
    names = split.features["objects"]["category"].feature.names
    found = []
    for row in split:
        assert row["image"].size == (row["width"], row["height"])
        parts = zip(*(row["objects"][part] for part in ("category", "bbox", "area", "iscrowd")), strict=True)
        objects = [(names[c], tuple(np.round(b, 4).tolist()), round(a, 2), crowd) for c, b, a, crowd in parts]
        found.append((row["image"].convert("RGB").tobytes(), objects))
    return sorted(found)


# Formats


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def coco(rows: datasets.Dataset, path: Path) -> Path:
    return save_coco(rows, made(path))


def yolo(rows: datasets.Dataset, path: Path) -> Path:
    return save_yolo(rows, made(path))


def voc(rows: datasets.Dataset, path: Path) -> Path:
    return save_voc(rows, made(path))


def coco_beside_pictures(rows: datasets.Dataset, path: Path) -> Path:
    """As Roboflow writes it."""
    coco(rows, path)
    shutil.move(path / "annotations" / "instances_train.json", path / "train" / "_annotations.coco.json")
    (path / "annotations").rmdir()
    (path / "README.txt").write_text("exported")
    return path


def coco_in_one_directory(rows: datasets.Dataset, path: Path) -> Path:
    coco_beside_pictures(rows, path / "d")
    return (path / "d" / "train").rename(path / "all")


def coco_of_2017(rows: datasets.Dataset, path: Path) -> Path:
    coco(rows, path)
    (path / "images").mkdir()
    (path / "train").rename(path / "images" / "train2017")
    (path / "annotations" / "instances_train.json").rename(path / "annotations" / "instances_train2017.json")
    (path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return path


def coco_of_fiftyone(rows: datasets.Dataset, path: Path) -> Path:
    coco(rows, path)
    (path / "train").rename(path / "data")
    (path / "annotations" / "instances_train.json").rename(path / "labels.json")
    (path / "annotations").rmdir()
    return path


def yolo_without_settings(rows: datasets.Dataset, path: Path) -> Path:
    yolo(rows, path)
    (path / "data.yaml").unlink()
    (path / "classes.txt").write_text("\n".join(SHAPES))
    return path


def yolo_of_roboflow(rows: datasets.Dataset, path: Path) -> Path:
    """train/images and train/labels, named relative to a directory that is not there."""
    yolo(rows, path)
    (path / "train").mkdir()
    for kind in ("images", "labels"):
        (path / kind / "train").rename(path / "train" / kind)
        (path / kind).rmdir()
    (path / "data.yaml").write_text(f"train: ../train/images\nval: \nnc: 3\nnames: {list(SHAPES)}\n")
    return path


def yolo_split_folders(rows: datasets.Dataset, path: Path) -> Path:
    yolo_of_roboflow(rows, path)
    (path / "data.yaml").unlink()
    (path / "train" / "labels" / "classes.txt").write_text("\n".join(SHAPES))
    return path


def yolo_list(rows: datasets.Dataset, path: Path) -> Path:
    yolo(rows, path)
    files = sorted((path / "images" / "train").iterdir())
    (path / "train.txt").write_text("\n".join(f"./{file.relative_to(path)}" for file in files))
    (path / "data.yaml").write_text("train: train.txt\nnames: {0: disc, 1: square, 2: cross}\n")
    return path / "data.yaml"


def yolo_flat(rows: datasets.Dataset, path: Path) -> Path:
    yolo(rows, path / "d")
    (path / "all").mkdir()
    for file in (path / "d").rglob("train_*"):
        file.rename(path / "all" / file.name)
    (path / "all" / "classes.txt").write_text("\n".join(SHAPES))
    return path / "all"


def voc_without_lists(rows: datasets.Dataset, path: Path) -> Path:
    shutil.rmtree(voc(rows, path) / "ImageSets")
    return path


def voc_flat(rows: datasets.Dataset, path: Path) -> Path:
    voc(rows, path / "d")
    (path / "all").mkdir()
    for file in (path / "d").rglob("train_*"):
        file.rename(path / "all" / file.name)
    return path / "all"


def voc_split_folder(rows: datasets.Dataset, path: Path) -> Path:
    return voc_flat(rows, path).rename(path / "train").parent


def voc_devkit(rows: datasets.Dataset, path: Path) -> Path:
    voc(rows, path / "VOC2007")
    lists = path / "VOC2007" / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "disc_train.txt").write_text("train_00000 1\n")
    return path


def saved(data: datasets.Dataset, path: Path) -> Path:
    data.save_to_disk(path)
    return path


def plain(rows: datasets.Dataset) -> list[dict[str, Any]]:
    return list(rows.cast_column("image", datasets.Image(decode=False)))


def as_list_of_objects(rows: datasets.Dataset, *_: Any) -> datasets.Dataset:
    """A list of objects in each row, with names for classes."""
    found = []
    for row in plain(rows):
        objects = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
        found.append({"picture": row["image"], "objects": [{"box": b, "label": SHAPES[c]} for b, c in objects]})
    part = {"box": datasets.List(datasets.Value("float32")), "label": datasets.Value("string")}
    kinds = datasets.Features({"picture": datasets.Image(), "objects": datasets.List(part)})
    return datasets.Dataset.from_list(found, features=kinds)


def with_boxes(rows: datasets.Dataset, change: Callable[[list[float], dict], list[float]]) -> datasets.Dataset:
    found = plain(rows)
    for row in found:
        row["objects"]["bbox"] = [change(box, row) for box in row["objects"]["bbox"]]
    return datasets.Dataset.from_list(found, features=features())


def as_corners(rows: datasets.Dataset, *_: Any) -> datasets.Dataset:
    return with_boxes(rows, lambda b, _: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def as_fractions(rows: datasets.Dataset, *_: Any) -> datasets.Dataset:
    return with_boxes(rows, lambda b, row: [v / row[s] for v, s in zip(b, ["width", "height"] * 2, strict=True)])


def image_folder(rows: datasets.Dataset, path: Path) -> Path:
    """As the documentation of datasets has it: metadata.jsonl beside the pictures."""
    made(path / "train")
    lines = []
    for row in rows:
        name = f"{row['image_id']:03d}.png"
        row["image"].save(path / "train" / name)
        objects = {"bbox": row["objects"]["bbox"], "categories": [SHAPES[c] for c in row["objects"]["category"]]}
        lines.append(json.dumps({"file_name": name, "objects": objects}))
    (path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    return path


def parquet(rows: datasets.Dataset, path: Path) -> Path:
    rows.to_parquet(made(path) / "train.parquet")
    return path


FORMATS: dict[str, Callable[[datasets.Dataset, Path], Any]] = {
    "coco": coco,
    "coco beside its pictures": coco_beside_pictures,
    "coco in one directory": coco_in_one_directory,
    "coco as of 2017": coco_of_2017,
    "coco of FiftyOne": coco_of_fiftyone,
    "coco file": lambda rows, path: coco(rows, path) / "annotations" / "instances_train.json",
    "yolo": yolo,
    "yolo without data.yaml": yolo_without_settings,
    "yolo of Roboflow": yolo_of_roboflow,
    "yolo in folders of splits": yolo_split_folders,
    "yolo with a list of files": yolo_list,
    "yolo beside its pictures": yolo_flat,
    "voc": voc,
    "voc without lists": voc_without_lists,
    "voc beside its pictures": voc_flat,
    "voc in folders of splits": voc_split_folder,
    "voc devkit": voc_devkit,
    "dataset": lambda rows, _: rows,
    "dataset of splits": lambda rows, _: datasets.DatasetDict({"all": rows}),
    "shuffled dataset": lambda rows, _: rows.shuffle(seed=1),
    "saved dataset": lambda rows, path: saved(rows, path),
    "parquet": parquet,
    "parquet file": lambda rows, path: parquet(rows, path) / "train.parquet",
    "list of objects": as_list_of_objects,
    "corners": as_corners,
    "fractions": as_fractions,
    "picture folder of datasets": image_folder,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_splits(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    splits, report = load_detections(FORMATS[name](rows, tmp_path / "data"))
    expected, _ = load_detections(rows)
    assert {split: contents(splits[split]) for split in splits} == {s: contents(expected[s]) for s in expected}
    assert sorted(report.class_names) == sorted(SHAPES)
    assert splits["train"].features == detection_features(report.class_names)
    assert report.pictures == {"train": 16, "validation": 2, "test": 2}
    assert sum(report.boxes.values()) == sum(len(row["bbox"]) for row in rows["objects"])
    assert sum(report.empty.values()) == 2
    assert not report.dropped and not report.remarked


def test_rows_have_the_layout_of_the_helper(rows: datasets.Dataset, tmp_path: Path) -> None:
    assert detection_features(SHAPES) == features()
    splits, _ = load_detections(coco(rows, tmp_path / "data"))
    assert contents(splits["train"]) == contents(rows.select(splits["train"]["image_id"]))


def test_given_splits_are_kept_and_only_missing_ones_are_cut(tmp_path: Path) -> None:
    parts = {"train": scenes(12, 32), "validation": scenes(4, 32, 100), "test": scenes(3, 32, 200)}
    for name, save in {"coco": save_coco, "yolo": save_yolo, "voc": save_voc}.items():
        for split, part in parts.items():
            (tmp_path / name).mkdir(exist_ok=True)
            save(part, tmp_path / name, split)
        splits, report = load_detections(tmp_path / name)
        assert {split: contents(splits[split]) for split in splits} == {s: contents(parts[s]) for s in parts}
        assert not any("cut from" in note for note in report.notes)
    both = {"train": parts["train"], "val": parts["validation"]}
    splits, report = load_detections(datasets.DatasetDict(both), test_share=0.25)
    assert report.pictures == {"train": 9, "validation": 4, "test": 3}
    assert report.notes[0] == "test: 3 pictures cut from the training data with seed 0"
    assert list(load_detections(datasets.DatasetDict(both), test_share=0)[0]) == ["train", "validation"]
    files = {split: tmp_path / "coco" / "annotations" / f"instances_{split}.json" for split in parts}
    splits, _ = load_detections(files)
    assert contents(splits["test"]) == contents(parts["test"])
    splits, report = load_detections({"train": files["train"], "dev": parts["validation"]}, test_share=0)
    assert contents(splits["validation"]) == contents(parts["validation"])
    assert str(report).startswith("the dataset: COCO and a dataset with boxes of 3 classes: 12 train pictures")


def test_the_cut_depends_on_content_and_seed_alone_and_equal_pictures_stay_together(rows: datasets.Dataset) -> None:
    test = contents(load_detections(rows)[0]["test"])
    assert contents(load_detections(rows.shuffle(seed=3))[0]["test"]) == test
    assert contents(load_detections(rows, seed=1)[0]["test"]) != test
    twice = datasets.concatenate_datasets([rows, rows])
    splits, report = load_detections(twice, validation_share=0.2, test_share=0.2)
    seen = [{pixels for pixels, _ in contents(split)} for split in splits.values()]
    assert all(first.isdisjoint(second) for first, second in itertools.combinations(seen, 2))
    assert sum(map(len, splits.values())) == 2 * COUNT
    assert not any("also occur" in note for note in report.notes)
    _, report = load_detections(
        datasets.DatasetDict({"train": rows, "validation": rows.select(range(5))}), test_share=0
    )
    assert report.notes == ["validation: 5 of 5 pictures also occur in train"]


def test_pictures_elsewhere(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    (path / "train").rename(tmp_path / "photos")
    with pytest.raises(
        FileNotFoundError, match=r"instances_train.json names the picture train_00000.png, but neither"
    ):
        load_detections(path)
    splits, _ = load_detections(path, pictures=tmp_path / "photos")
    assert contents(splits["test"]) == contents(load_detections(rows)[0]["test"])


def test_the_report_reads_well(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = yolo(rows, tmp_path / "data")
    labels = path / "labels" / "train"
    (labels / "train_00004.txt").unlink()
    (labels / "train_00000.txt").write_text("0 0.1 0.5 0.4 0.25\n1 0.5 0.5 0 0.1\n")
    (labels / "train_00001.txt").write_text("0 0.5 0.5 1.2\n")
    _, report = load_detections(path, skip_bad=True, test_share=0)
    total = sum(report.boxes.values())
    assert str(report) == (
        f"{path}: YOLO with boxes of 3 classes: 17 train pictures with {report.boxes['train']} boxes, "
        f"2 validation pictures with {total - report.boxes['train']} boxes\n"
        + "".join(
            f"  {name}: {report.by_class['train'][name]} train, {report.by_class['validation'][name]} validation\n"
            for name in SHAPES
        )
        + f"pictures without boxes: {report.empty['train']} train, {report.empty['validation']} validation\n"
        "validation: 2 pictures cut from the training data with seed 0\n"
        + "".join(f"{note}\n" for note in report.notes if "no boxes of" in note)
        + f"1 x box reaches beyond its picture, cut off at the edge: line 1 of {labels}/train_00000.txt\n"
        f"1 x box without area, left out: line 2 of {labels}/train_00000.txt\n"
        "1 x picture without a file of labels, taken to show no object: "
        f"{path}/images/train/train_00004.png\n"
        "dropped 1 x label's values are not fractions of the picture, from 0 to 1; divide pixels by its sides: "
        f"{path}/images/train/train_00001.png"
    )


def test_reports_of_one_class_and_of_many() -> None:
    report = DetectionReport(
        "photos", ["a"], {"train": 1200}, layout="coco", boxes={"train": 5000}, empty={"train": 0}
    )
    report.by_class["train"] = Counter(a=5000)
    first = "photos: COCO with boxes of 1 class: 1,200 train pictures with 5,000 boxes\n  a: 5,000 train"
    assert str(report) == first
    report.remark("odd", [str(n) for n in range(2000)])
    report.remark("odd", ["more"])
    assert str(report).endswith("\n2,001 x odd: 0, 1, 2, ...")


# Classes


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "dataset", "list of objects"])
def test_classes_can_be_ordered_and_renamed(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    data = FORMATS[name](rows, tmp_path / "data")
    expected = contents(load_detections(rows)[0]["train"])
    order = ["square", "triangle", "cross", "disc"]
    splits, report = load_detections(data, class_names=order)
    assert report.class_names == splits["train"].features["objects"]["category"].feature.names == order
    assert contents(splits["train"]) == expected
    assert "train: no boxes of triangle" in report.notes
    own = load_detections(data)[1].class_names
    renamed, _ = load_detections(data, class_names=[name.upper() for name in own])
    upper = [(p, [(c.upper(), *rest) for c, *rest in objects]) for p, objects in expected]
    assert contents(renamed["train"]) == upper
    for wrong in (order[:2], ["cross", "disc", "ring"] if own[0] == "disc" else ["disc", "cross", "ring"], ["a"]):
        with pytest.raises(ValueError, match=r"class_names are .*, but the classes of the data .*give all of these"):
            load_detections(data, class_names=wrong)
    with pytest.raises(ValueError, match="class_names has a name twice: a, a"):
        load_detections(data, class_names=["a", "a"])


def test_numbers_are_remapped_in_order_and_can_be_named(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = yolo(rows, tmp_path / "data")
    (path / "data.yaml").unlink()
    splits, report = load_detections(path)
    assert report.class_names == ["0", "1", "2"]
    named, _ = load_detections(path, class_names=[*SHAPES, "more"])
    assert contents(named["test"]) == contents(load_detections(rows)[0]["test"])
    part = {"bbox": datasets.List(datasets.Value("float32")), "category": datasets.Value("int64")}
    kinds = datasets.Features({"image": datasets.Image(), "objects": datasets.List(part)})
    found = []
    for row in plain(rows):
        objects = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
        found.append({"image": row["image"], "objects": [{"bbox": b, "category": COCO_IDS[c]} for b, c in objects]})
    splits, report = load_detections(datasets.Dataset.from_list(found, features=kinds))
    assert report.class_names == ["3", "18", "90"]
    named, _ = load_detections(datasets.Dataset.from_list(found, features=kinds), class_names=SHAPES)
    assert contents(named["train"]) == contents(load_detections(rows)[0]["train"])
    del splits


def test_objects_without_classes_are_one_class(rows: datasets.Dataset) -> None:
    found = [{"image": row["image"], "faces": {"bbox": row["objects"]["bbox"]}} for row in plain(rows)]
    boxes = datasets.List(datasets.List(datasets.Value("float32"), length=4))
    kinds = datasets.Features({"image": datasets.Image(), "faces": {"bbox": boxes}})
    _, report = load_detections(datasets.Dataset.from_list(found, features=kinds))
    assert report.class_names == ["object"]


def test_validation_with_a_class_that_train_lacks(tmp_path: Path) -> None:
    parts = {"train": scenes(6, 32), "validation": scenes(4, 32, 100)}
    for split, part in parts.items():
        save_voc(part, tmp_path, split)
    path = next(file for file in sorted((tmp_path / "Annotations").glob("validation*")) if "disc" in file.read_text())
    path.write_text(path.read_text().replace("disc", "ring"))
    with pytest.raises(ValueError, match=rf"object \d of {path}: validation has the class ring, but train does not"):
        load_detections(tmp_path)
    splits, _ = load_detections(tmp_path, class_names=[*SHAPES, "ring"])
    assert any(3 in row["category"] for row in splits["validation"]["objects"])


def test_a_category_above_the_others_is_no_class(rows: datasets.Dataset, tmp_path: Path) -> None:
    """Roboflow puts the name of the project before the classes."""
    path = coco(rows, tmp_path / "data")
    for name in ("shapes", "disc"):  # which may be that of a class, too
        above = {"id": 0, "name": name, "supercategory": "none"}
        edit_coco(path, lambda c, above=above: c["categories"].insert(0, above))
        edit_coco(path, lambda c, name=name: [entry.update(supercategory=name) for entry in c["categories"][1:]])
        assert load_detections(path)[1].class_names == list(SHAPES)
        edit_coco(path, lambda c: c["categories"].pop(0))


# What annotations may hold


def edit_coco(path: Path, change: Callable[[dict], Any], split: str = "train") -> None:
    file = path / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first(**changes: Any) -> Callable[[dict], None]:
    return lambda content: content["annotations"][0].update(changes)


def resized_annotation(content: dict) -> None:
    content["images"][0].update(width=80, height=60)


def lost_picture(content: dict) -> None:
    content["images"][0]["file_name"] = "lost.png"


NOT_FOUR = "box is not four finite numbers"
FAULTS = {
    "no box": (first(bbox=None), NOT_FOUR),
    "three numbers": (first(bbox=[1, 2, 3]), NOT_FOUR),
    "text": (first(bbox=[1, 2, "x", 3]), NOT_FOUR),
    "infinite": (first(bbox=[1, 2, float("inf"), 3]), NOT_FOUR),
    "negative": (first(bbox=[5, 5, -3, 4]), "box of negative width or height"),
    "outside": (first(bbox=[50, 5, 3, 4]), "box lies outside of its picture"),
    "above": (first(bbox=[5, -5, 3, 4]), "box lies outside of its picture"),
    "unknown class": (first(category_id=4), "class of an object is unknown"),
    "other size": (resized_annotation, "width and height differ from the annotated ones"),
    "no file": (lost_picture, "cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_right_is_an_error_or_drops_the_picture(
    name: str, rows: datasets.Dataset, tmp_path: Path
) -> None:
    change, reason = FAULTS[name]
    path = coco(rows, tmp_path / "data")
    edit_coco(path, change)
    with pytest.raises(ValueError, match=rf"1 of 20 train pictures are bad: 1 x {reason}: {path}/train/") as error:
        load_detections(path)
    assert "\n" not in str(error.value) and "leave them out with skip_bad" in str(error.value)
    splits, report = load_detections(path, skip_bad=True)
    assert report.dropped == {reason: 1} and sum(report.pictures.values()) == 19
    assert 0 not in itertools.chain(*(split["image_id"] for split in splits.values()))
    assert f"dropped 1 x {reason}: {path}/train/" in str(report)
    _, report = load_detections(path, max_bad_share=0.05)
    assert report.dropped == {reason: 1}


def test_the_place_of_a_fault_is_said(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    edit_coco(path, first(bbox=[5, 5, -3, 4]))
    with pytest.raises(ValueError, match=r"train_00000.png \(annotation 1 of instances_train.json: \[5, 5, -3, 4\]\)"):
        load_detections(path)
    edit_coco(path, first(bbox=[5, 5, 3, 4]))
    edit_coco(path, resized_annotation)
    with pytest.raises(ValueError, match=r"train_00000.png \(80x60 annotated, 40x30 in the file\)"):
        load_detections(path)


def test_annotations_without_a_picture(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    edit_coco(path, first(image_id=77))
    with pytest.raises(
        ValueError, match=r"1 annotations belong to no picture of the data: .*annotation 1 of image_id 77; add the"
    ):
        load_detections(path)
    _, report = load_detections(path, skip_bad=True)
    assert report.remarked == {"annotation of a picture that is not in the data, left out": 1}
    assert sum(report.pictures.values()) == 20


def object_of(splits: datasets.DatasetDict, image_id: int, place: int = 0) -> tuple[list[float], float, bool]:
    """(box, area, crowd)"""
    for split in splits.values():
        for row in split:
            if row["image_id"] == image_id:
                return tuple(row["objects"][part][place] for part in ("bbox", "area", "iscrowd"))
    raise AssertionError(f"no picture {image_id}")


CHANGED = {
    "right": ([30, 20, 20, 5], [30, 20, 10, 5], 50, "box reaches beyond its picture, cut off at the edge"),
    "left and above": ([-4, -2.5, 10, 5], [0, 0, 6, 2.5], 15, "box reaches beyond its picture, cut off at the edge"),
    "rounding": ([30, 20, 10.004, 5], [30, 20, 10, 5], 7, None),
    "inside": ([30, 20, 9, 5], [30, 20, 9, 5], 7, None),
}


@pytest.mark.parametrize("name", CHANGED)
def test_boxes_beyond_their_picture_end_at_its_edge(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    box, expected, area, remark = CHANGED[name]
    path = coco(rows, tmp_path / "data")
    edit_coco(path, first(bbox=box, area=100 if remark else 7))
    splits, report = load_detections(path)
    found = object_of(splits, 0)
    assert np.allclose(found[0], expected) and found[1] == area
    assert report.remarked == ({remark: 1} if remark else {})


def test_boxes_without_area_are_left_out_and_counted(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    before = sum(load_detections(path)[1].boxes.values())
    for box in ([5, 5, 0, 3], [5, 5, 3, 0], [40, 5, 0, 3]):
        edit_coco(path, first(bbox=box))
        _, report = load_detections(path)
        assert report.remarked == {"box without area, left out": 1}
        assert sum(report.boxes.values()) == before - 1


def test_crowds_are_kept_and_counted_but_are_no_boxes_to_learn_from(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    before = sum(load_detections(path)[1].boxes.values())
    edit_coco(path, first(iscrowd=1, segmentation={"counts": [1], "size": [30, 40]}))
    splits, report = load_detections(path)
    assert report.remarked == {"crowd, kept as such": 1}
    assert object_of(splits, 0)[2] is True
    assert sum(report.boxes.values()) == before - 1


@pytest.mark.parametrize("area", [None, 0, -1, "large"])
def test_areas_that_cannot_be_right_become_those_of_the_boxes(
    area: Any, rows: datasets.Dataset, tmp_path: Path
) -> None:
    path = coco(rows, tmp_path / "data")
    edit_coco(path, first(bbox=[1, 2, 3, 4], area=area))
    splits, _ = load_detections(path)
    assert object_of(splits, 0)[1] == 12


def test_annotations_with_the_same_id_are_all_read(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco(rows, tmp_path / "data")
    before = sum(load_detections(path)[1].boxes.values())
    edit_coco(path, lambda content: [entry.update(id=1) for entry in content["annotations"][:3]])
    _, report = load_detections(path)
    assert report.remarked == {"id of several annotations, all of which were read": 1}
    assert sum(report.boxes.values()) == before


# Pictures that EXIF turns


def turned_picture(path: Path, orientation: int, stored: tuple[int, int] = (14, 9)) -> tuple[list[int], list[int]]:
    """A file with a red rectangle; its box as it is stored and as one sees it."""
    pixels = np.zeros((stored[1], stored[0], 3), dtype=np.uint8)
    pixels[2:5, 6:13] = [255, 0, 0]
    pixels[..., 1] = np.random.default_rng(orientation).integers(0, 99, pixels.shape[:2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as picture:
        seen = np.array(ImageOps.exif_transpose(picture))[..., 0] == 255
    left, right = np.flatnonzero(seen.any(0))[[0, -1]].tolist()
    top, bottom = np.flatnonzero(seen.any(1))[[0, -1]].tolist()
    return [6, 2, 7, 3], [left, top, right - left + 1, bottom - top + 1]


def turned_coco(directory: Path, sizes_of: str | None, boxes_of: str, stored: tuple[int, int] = (14, 9)) -> list[list]:
    """A data set of a picture of each orientation; the boxes that one sees."""
    images, annotations, seen = [], [], []
    for number in range(1, 9):
        boxes = turned_picture(made_once(directory) / f"{number}.png", number, stored)
        sideways = number >= 5 and sizes_of == "seen"
        size = dict(zip(("height", "width") if sideways else ("width", "height"), stored, strict=True))
        images.append({"id": number, "file_name": f"{number}.png", **(size if sizes_of else {})})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": boxes[boxes_of == "seen"]})
        seen.append([float(edge) for edge in boxes[1]])
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    (directory / "all.json").write_text(json.dumps(content))
    return seen


def made_once(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("sizes_of", "boxes_of", "stored"),
    [
        ("stored", "stored", (14, 9)),
        ("seen", "seen", (14, 9)),
        (None, "stored", (14, 9)),
        ("seen", "stored", (14, 14)),  # squares do not tell
    ],
)
def test_boxes_stay_on_objects_that_exif_turns(
    sizes_of: str | None, boxes_of: str, stored: tuple[int, int], tmp_path: Path
) -> None:
    seen = turned_coco(tmp_path / "data", sizes_of, boxes_of, stored)
    splits, report = load_detections(tmp_path / "data", test_share=0, validation_share=0.2)
    for split in splits.values():
        for row in split:
            assert row["objects"]["bbox"] == [seen[row["image_id"] - 1]]
            assert row["image"].size == (row["width"], row["height"])
            left, top, width, height = map(int, row["objects"]["bbox"][0])
            red = np.array(row["image"])[..., 0] == 255
            assert red[top : top + height, left : left + width].all() and red.sum() == width * height
    turned = {"picture turned as its EXIF says, and its boxes with it": 7}
    assert report.remarked == (turned if boxes_of == "stored" else {})


def test_yolo_means_pictures_as_one_sees_them(tmp_path: Path) -> None:
    boxes = {}
    for number in range(1, 9):
        _, seen = turned_picture(made_once(tmp_path) / f"{number}.png", number)
        width, height = (14, 9) if number < 5 else (9, 14)
        values = (seen[0] + seen[2] / 2) / width, (seen[1] + seen[3] / 2) / height, seen[2] / width, seen[3] / height
        (tmp_path / f"{number}.txt").write_text("0 " + " ".join(map(str, values)))
        boxes[number - 1] = seen
    splits, _ = load_detections(tmp_path, test_share=0, validation_share=0.2)
    for split in splits.values():
        for row in split:
            assert np.allclose(row["objects"]["bbox"], [boxes[row["image_id"]]])


# YOLO


LABELS = {
    "text": ("0 0.5 0.5 big 0.1", "labels are not numbers: class, centre x, centre y, width, height"),
    "no text": (b"\xff\xfe\xff", "labels are not text"),
    "columns": ("0 0.5 0.5 0.1", "label of 4 columns; there must be 5 .class, centre x"),
    "confidence": ("0 0.5 0.5 0.1 0.1 0.9", "label of 6 columns; there must be 5"),
    "class alone": ("0", "label of 1 columns"),
    "pixels": ("0 20 15 10 10", "label's values are not fractions of the picture, from 0 to 1; divide pixels"),
    "negative": ("0 -0.1 0.5 0.1 0.1", "label's values are not fractions"),
    "class": ("1.5 0.5 0.5 0.1 0.1", "label's class is not a number counted from 0"),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "label's class is not a number counted from 0"),
    "unknown class": ("3 0.5 0.5 0.1 0.1", "class of an object is unknown"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_yolo_that_cannot_be_right(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    text, reason = LABELS[name]
    path = yolo(rows, tmp_path / "data")
    (path / "labels" / "train" / "train_00003.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"1 x {reason}.*: {path}/images/train/train_00003.png") as error:
        load_detections(path)
    assert "\n" not in str(error.value)
    assert sum(load_detections(path, skip_bad=True)[1].pictures.values()) == 19


def test_outlines_of_yolo_become_the_boxes_around_them(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = yolo(rows, tmp_path / "data")
    label = path / "labels" / "train" / "train_00000.txt"  # of a picture of 40 x 30
    label.write_text("1 0.5 0.2 0.75 0.4 0.6 0.8\n\n2 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3\n0 0.5 0.5 0.5 0.5\n")
    splits, _ = load_detections(path)
    boxes = [object_of(splits, 0, place)[0] for place in range(3)]
    assert np.allclose(boxes, [[20, 6, 10, 18], [4, 3, 4, 6], [10, 7.5, 20, 15]])
    label.write_text("0 0.5 0.5 0.5 0.5 0.3 0.3 2 0.4 0.4 1\n")
    (path / "data.yaml").write_text((path / "data.yaml").read_text() + "\nkpt_shape: [2, 3]\n")
    with pytest.raises(ValueError, match="label's values are not fractions"):
        load_detections(path)
    label.write_text("0 0.5 0.5 0.5 0.5 0.3 0.3 0.4 0.4\n")
    assert np.allclose(object_of(load_detections(path)[0], 0)[0], [10, 7.5, 20, 15])


def test_labels_of_yolo_without_their_picture(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = yolo(rows, tmp_path / "data")
    (path / "images" / "train" / "train_00003.png").unlink()
    with pytest.raises(ValueError, match=r"1 x a file of labels without its picture: .*labels/train/train_00003.txt"):
        load_detections(path)
    assert sum(load_detections(path, skip_bad=True)[1].pictures.values()) == 19


def test_labels_in_another_directory(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = yolo(rows, tmp_path / "data")
    (path / "labels").rename(path / "marks")
    with pytest.raises(
        ValueError, match=r"none of the 20 train pictures has a file of labels: .*labels/train/train_0"
    ):
        load_detections(path)


SETTINGS = {
    "no yaml": ("train: [", "data.yaml is not YAML: "),
    "count": ("train: images/train\nnc: 2\nnames: [a, b, c]", "nc is 2, but names has 3"),
    "numbers": ("train: images/train\nnames: {1: a, 2: b}", "names has the numbers 1, 2; they must count from 0"),
    "no train": ("val: images/train\nnames: [a, b, c]\ntrain:", "has val, but no train"),
    "places": ("train: pictures\nnames: [a, b, c]", "train is pictures, but there is no .*pictures; correct the file"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_yolo_that_cannot_be_used(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    text, message = SETTINGS[name]
    path = yolo(rows, tmp_path / "data")
    (path / "data.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_detections(path / "data.yaml")
    assert "\n" not in str(error.value)


# Pascal VOC


def voc_object(name: str, edges: tuple[float, ...], more: str = "") -> str:
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc_file(path: Path, objects: str, filename: str = "") -> None:
    number = int(path.stem.rsplit("_", 1)[-1])
    picture(number).save(path.with_suffix(".png"))
    path.write_text(f"<annotation><filename>{filename}</filename>{objects}</annotation>")


def picture(number: int, size: tuple[int, int] = (20, 10)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def voc_pictures(directory: Path, edges: tuple[float, ...], count: int = 6, more: str = "") -> Path:
    for number in range(count):
        voc_file(made_once(directory) / f"a_{number}.xml", voc_object("cat", edges, more))
    return directory


@pytest.mark.parametrize(
    ("edges", "box"),
    [
        ((1, 1, 20, 10), [0, 0, 20, 10]),  # counted from 1, the whole picture
        ((1, 3, 1, 3), [0, 2, 1, 1]),  # one pixel
        ((0, 0, 20, 10), [0, 0, 20, 10]),  # counted from 0
        ((0, 3, 5, 4), [0, 3, 5, 1]),
    ],
)
def test_voc_counts_pixels_from_one_unless_boxes_begin_at_zero(edges: tuple, box: list, tmp_path: Path) -> None:
    splits, report = load_detections(voc_pictures(tmp_path, edges))
    assert splits["train"][0]["objects"]["bbox"] == [box] and not report.remarked


def test_difficult_objects_of_voc_are_crowds(tmp_path: Path) -> None:
    voc_pictures(tmp_path, (2, 2, 5, 5))
    voc_file(tmp_path / "a_3.xml", voc_object("cat", (2, 2, 5, 5), "<difficult>1</difficult>"))
    splits, report = load_detections(tmp_path)
    assert object_of(splits, 3)[2] is True
    assert report.first_remarked[
        "difficult object, taken as a crowd: not learned from, neither right nor wrong to find"
    ]


def test_pictures_of_voc_are_found_by_either_name(tmp_path: Path) -> None:
    voc_pictures(tmp_path, (2, 2, 5, 5))
    voc_file(tmp_path / "a_3.xml", voc_object("cat", (2, 2, 5, 5)), filename="C:\\photos\\other.jpg")
    voc_file(tmp_path / "b_7.xml", voc_object("cat", (2, 2, 5, 5)), filename="C:\\photos\\c.png")
    (tmp_path / "b_7.png").rename(tmp_path / "c.png")
    picture(99).save(tmp_path / "unmarked.png")
    splits, report = load_detections(tmp_path)
    assert sum(map(len, splits.values())) == 7
    left_out = report.first_remarked["picture without a file of annotations, left out"]
    assert f"{tmp_path}/unmarked.png" in left_out


FILES = {
    "no xml": ("<annotation", "annotations are not XML: .*: .*a_2.xml"),
    "no box": ("<annotation><object><name>cat</name></object></annotation>", "box is not four finite numbers"),
    "no number": (f"<annotation>{voc_object('cat', (1, 1, 'x', 3))}</annotation>", "box is not four finite numbers"),
    "no name": (f"<annotation>{voc_object('', (1, 1, 2, 3))}</annotation>", "class of an object is unknown"),
    "order": (f"<annotation>{voc_object('cat', (9, 1, 2, 3))}</annotation>", "box of negative width or height"),
    "size": ("<annotation><size><width>9</width><height>9</height></size></annotation>", "width and height differ"),
}


@pytest.mark.parametrize("name", FILES)
def test_annotations_of_voc_that_cannot_be_right(name: str, tmp_path: Path) -> None:
    text, reason = FILES[name]
    (voc_pictures(tmp_path, (2, 2, 5, 5)) / "a_2.xml").write_text(text)
    with pytest.raises(ValueError, match=f"1 of 6 train pictures are bad: 1 x {reason}") as error:
        load_detections(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_pictures_and_annotations_of_voc(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = voc(rows, tmp_path / "data")
    (path / "Annotations" / "train_00003.xml").unlink()
    (path / "JPEGImages" / "train_00005.png").unlink()
    _, report = load_detections(path, skip_bad=True)
    assert report.first_dropped == {
        "no file of annotations": [f"{path}/JPEGImages/train_00003.png"],
        "picture is missing": [f"{path}/Annotations/train_00005.xml"],
    }


def test_a_test_set_without_annotations_is_left_out_and_said(tmp_path: Path) -> None:
    save_voc(scenes(10, 32), made(tmp_path / "data"))
    save_voc(scenes(4, 32, 100), tmp_path / "data", "test")
    for path in (tmp_path / "data" / "Annotations").glob("test*"):
        path.unlink()
    splits, report = load_detections(tmp_path / "data")
    assert report.notes[0] == "test: left out, for none of its 4 pictures has annotations"
    assert len(splits["test"]) == 1


# Datasets


def test_formats_of_boxes_are_told_or_chosen(rows: datasets.Dataset) -> None:
    expected = contents(load_detections(rows)[0]["test"])
    splits, report = load_detections(as_corners(rows))
    assert any("train: boxes are taken as left, top, right, bottom" in note for note in report.notes)
    assert contents(splits["test"]) == expected
    _, report = load_detections(as_fractions(rows))
    assert any("taken as fractions of the picture" in note for note in report.notes)
    centred = with_boxes(rows, lambda b, _: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]])
    assert contents(load_detections(centred, box_format="cxcywh")[0]["test"]) == expected
    with pytest.raises(ValueError, match=r"train pictures are bad: .* x box lies outside of its picture"):
        load_detections(with_boxes(rows, lambda b, row: [b[0] + row["width"], *b[1:]]))
    with pytest.raises(ValueError, match="box_format 'xy': the format is not one of xywh, xyxy, cxcywh"):
        load_detections(rows, box_format="xy")


def test_the_format_of_boxes_of_yolo_is_known(rows: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="box_format 'xyxy': the format is known for this layout"):
        load_detections(yolo(rows, tmp_path / "data"), box_format="xyxy")


def test_columns_of_objects_that_cannot_be_told(rows: datasets.Dataset) -> None:
    data = rows.add_column("others", rows["objects"][:], feature=rows.features["objects"])
    assert load_detections(data)[1].pictures["train"] == 16  # the usual name
    data = data.rename_column("objects", "these")
    with pytest.raises(
        ValueError, match=r"the columns these, others may all hold the objects; choose .* objects_column"
    ):
        load_detections(data)
    assert load_detections(data, objects_column="these")[1].pictures["train"] == 16
    with pytest.raises(
        ValueError, match=r"no column is known to hold the objects among image, image_id; choose one by"
    ):
        load_detections(rows.select_columns(["image", "image_id"]))
    with pytest.raises(
        ValueError, match=r"column image_id holds Value.*no objects with bbox or bboxes or box or boxes"
    ):
        load_detections(rows, objects_column="image_id")


def test_objects_of_a_dataset_that_cannot_be_right(rows: datasets.Dataset) -> None:
    found = plain(rows)
    found[3]["objects"] = None
    found[5]["objects"]["category"].append(1)
    data = datasets.Dataset.from_list(found, features=features())
    _, report = load_detections(data, skip_bad=True)
    assert report.first_dropped == {
        "objects are missing": ["the dataset:4"],
        "objects have lists of different lengths": ["the dataset:6"],
    }


def test_numbers_of_pictures_are_kept_where_they_tell_them_apart(rows: datasets.Dataset) -> None:
    numbered = rows.remove_columns("image_id").add_column("image_id", [7 * n for n in range(COUNT)])
    splits, _ = load_detections(numbered)
    ids = {number for split in splits.values() for number in split["image_id"]}
    assert ids == {7 * n for n in range(COUNT)}
    assert all(row["image_id"] == 7 * row["index"] for row in splits["train"].remove_columns("image"))
    same = rows.remove_columns("image_id").add_column("image_id", [1] * COUNT)
    splits, _ = load_detections(same)
    assert {number for split in splits.values() for number in split["image_id"]} == set(range(COUNT))


def test_a_stream_cannot_be_split(rows: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match=r"is a IterableDataset; give a datasets.Dataset or DatasetDict"):
        load_detections(rows.to_iterable_dataset())


# Data that cannot be used


def coco_and_yolo(rows: datasets.Dataset, path: Path) -> Path:
    coco(rows, path)
    return save_yolo(rows, path)


def two_coco_files(rows: datasets.Dataset, path: Path) -> Path:
    file = coco(rows, path) / "annotations" / "instances_train.json"
    shutil.copy(file, file.with_name("instances_train2.json"))
    return path


def two_unnamed_coco_files(rows: datasets.Dataset, path: Path) -> Path:
    file = coco(rows, path) / "annotations" / "instances_train.json"
    shutil.copy(file, file.with_name("a.json"))
    file.rename(file.with_name("b.json"))
    return path


def without_train(rows: datasets.Dataset, path: Path) -> Path:
    return save_coco(rows, made(path), "val")


def two_devkits(rows: datasets.Dataset, path: Path) -> Path:
    voc(rows, path / "VOC2007")
    return voc(rows, path / "VOC2012").parent


def pictures_alone(rows: datasets.Dataset, path: Path) -> Path:
    shutil.rmtree(coco(rows, path) / "annotations")
    return path


UNUSABLE = {
    "empty": (
        lambda _, path: made(path),
        "has no annotations that are known; looked for were COCO .* there is nothing",
    ),
    "pictures alone": (
        pictures_alone,
        r"looked for were COCO \(.json .*YOLO .*Pascal VOC .*datasets .*; there is train",
    ),
    "two layouts": (
        coco_and_yolo,
        "annotations of several layouts: coco, yolo; choose one by layout, or give the file",
    ),
    "two files": (
        two_coco_files,
        "several COCO files: annotations/instances_train.json, annotations/instances_train2",
    ),
    "two unnamed files": (
        two_unnamed_coco_files,
        "several COCO files: annotations/a.json, annotations/b.json; give one",
    ),
    "no train": (without_train, "has validation, but no train"),
    "two devkits": (two_devkits, "has VOC2007, VOC2012; give one of them"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_directories_that_cannot_be_used_are_a_one_line_error(
    name: str, rows: datasets.Dataset, tmp_path: Path
) -> None:
    make, message = UNUSABLE[name]
    with pytest.raises(ValueError, match=message) as error:
        load_detections(make(rows, tmp_path / "data"))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_layout_can_be_chosen(rows: datasets.Dataset, tmp_path: Path) -> None:
    path = coco_and_yolo(rows, tmp_path / "data")
    expected = contents(load_detections(rows)[0]["test"])
    for layout in ("coco", "yolo"):
        splits, report = load_detections(path, layout=layout)
        assert report.layout == layout and contents(splits["test"]) == expected
    with pytest.raises(ValueError, match="layout 'kitti' is not known; there are coco, yolo, voc, datasets"):
        load_detections(path, layout="kitti")
    with pytest.raises(ValueError, match="has no annotations in the layout voc"):
        load_detections(path, layout="voc")


def swap_ids(content: dict) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


def same_category(key: str) -> Callable[[dict], None]:
    return lambda content: content["categories"][1].update({key: content["categories"][0][key]})


WRONG = {
    "list": (
        lambda c: c.pop("categories"),
        "is not a file of COCO: the list categories is missing; it has images, ann",
    ),
    "entries": (lambda c: c["images"].append(3), "an entry of images is not an object with keys"),
    "picture ids": (
        swap_ids,
        "picture train_00001.png has the id 0 as train_00000.png; to which the annotations belong",
    ),
    "no picture id": (lambda c: c["images"][2].pop("id"), "picture train_00002.png has no id"),
    "no file name": (lambda c: c["images"][2].pop("file_name"), "picture 2 has no file_name; add it"),
    "category ids": (same_category("id"), "2 categories have the id 3: disc, square; correct the file"),
    "category names": (same_category("name"), "2 categories have the name disc: 3, 18; correct the file"),
    "no category name": (lambda c: c["categories"][0].pop("name"), "category {'id': 3} has no name; add it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_of_coco_that_cannot_be_used(name: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    change, message = WRONG[name]
    path = coco(rows, tmp_path / "data")
    edit_coco(path, change)
    with pytest.raises(ValueError, match=message) as error:
        load_detections(path)
    assert "\n" not in str(error.value) and "instances_train.json" in str(error.value)


def test_files_that_are_no_coco(tmp_path: Path) -> None:
    for content, message in {"{": "is not JSON: .*; was it written to its end", "[1]": "it is a list"}.items():
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_detections(tmp_path / "a.json")
    (tmp_path / "a.mat").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.mat: boxes are read from COCO's .json, YOLO's data.yaml, .parquet files"):
        load_detections(tmp_path / "a.mat")


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or directory$"):
        load_detections(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"^some/pictures: no such file or directory, and not read as a dataset"
    ):
        load_detections("some/pictures")


def test_data_without_boxes_and_shares_out_of_range(rows: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train has 2 pictures, but no boxes to learn from"):
        load_detections(rows.select([4, 11]))
    for argument in ({"validation_share": 0}, {"test_share": 0.7}, {"max_bad_share": 2}):
        with pytest.raises(ValueError, match=r"must be shares below 0.5"):
            load_detections(rows, **argument)
    for mapping in ({"train": rows, "extra": rows}, {}):
        with pytest.raises(ValueError, match=r"the mapping has .*; name its parts train, validation and test"):
            load_detections(mapping)
    with pytest.raises(ValueError, match=r"given for train, has splits of its own: train, test"):
        load_detections({"train": datasets.DatasetDict({"train": rows, "test": rows})})


# Boxes


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_cut_boxes_are_what_is_inside(width: int, height: int, seed: int) -> None:
    """Counted pixel by pixel."""
    random = np.random.default_rng(seed)
    first = random.integers(-10, 40, (20, 2))
    boxes = np.hstack([first, random.integers(0, 40, (20, 2))]).astype(float)
    cut, beyond = clipped_boxes(boxes, np.tile([width, height], (20, 1)))
    for (x, y, w, h), (left, top, new_width, new_height), pixels in zip(
        boxes.astype(int), cut.astype(int), beyond, strict=True
    ):
        canvas = np.zeros((100, 100), dtype=bool)
        canvas[y + 10 : y + 10 + h, x + 10 : x + 10 + w] = True
        inside = canvas[10 : 10 + height, 10 : 10 + width]
        assert inside.sum() == new_width * new_height
        assert inside[top : top + new_height, left : left + new_width].all()
        assert (pixels > 0) == (x < 0 or y < 0 or x + w > width or y + h > height)


@given(st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_turned_boxes_are_where_pillow_turns_the_pixels(orientation: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    width, height = random.integers(3, 20, 2).tolist()
    x, y = random.integers(0, width), random.integers(0, height)
    box = [x, y, random.integers(1, width - x + 1), random.integers(1, height - y + 1)]
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[y : y + box[3], x : x + box[2]] = 255
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = orientation
    seen = np.array(ImageOps.exif_transpose(picture)) > 0
    turned = turned_boxes(np.array([box], float), np.array([[width, height]]), np.array([orientation]))
    left, top, new_width, new_height = turned[0].astype(int)
    assert seen[top : top + new_height, left : left + new_width].all() and seen.sum() == new_width * new_height


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_formats_of_boxes_are_told_apart_by_what_fits(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 500, (100, 2)).astype(float)
    sides = random.uniform(0.05, 0.6, (100, 2)) * sizes
    first = random.uniform(0, 1, (100, 2)) * (sizes - sides)
    boxes = {
        "xywh": np.hstack([first, sides]),
        "xyxy": np.hstack([first, first + sides]),
        "cxcywh": np.hstack([first + sides / 2, sides]),
    }
    assert likely_format(boxes["xywh"], sizes) == "xywh"
    assert likely_format(boxes["xyxy"], sizes) == "xyxy"
    for name, given_boxes in boxes.items():
        assert np.allclose(boxes_in_pixels(given_boxes, name, False, sizes), boxes["xywh"])
        assert np.allclose(boxes_in_pixels(given_boxes / np.tile(sizes, 2), name, True, sizes), boxes["xywh"])
    whole = np.hstack([0.02 * sizes, 0.96 * sizes])  # one object in the middle of each: fits as both
    assert likely_format(whole, sizes) == "xywh"
