"""Pictures come out of every format alike, none disappears silently, and equal ones are never on both sides."""

import csv
import gzip
import io
import itertools
import json
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_attn.training.picture_data import PictureReport, cut_splits, inspect_picture, load_pictures
from hf_attn.training.picture_files import read_idx
from hf_attn.training.vit_labels import class_names, is_multi_label

CLASSES = ("bird", "cat", "dog")
PER_CLASS = 10


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(number: int, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Image.Image:
    """Noise that is different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rows_of_all() -> list[tuple[str, str, Image.Image]]:
    """(file name, class, picture)"""
    pairs = itertools.product(range(PER_CLASS), enumerate(CLASSES))
    return [(f"{name}_{n}.png", name, picture(100 * n + index)) for n, (index, name) in pairs]


def class_folders(directory: Path) -> Path:
    for file_name, name, image in rows_of_all():
        (directory / name).mkdir(parents=True, exist_ok=True)
        image.save(directory / name / file_name)
    return directory


def flat_folder(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for file_name, _, image in rows_of_all():
        image.save(directory / file_name)
    return directory


def table(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def csv_table(directory: Path, suffix: str = "csv", header: tuple[str, str] = ("file_name", "label")) -> Path:
    flat_folder(directory / "pictures")
    rows = [[f"pictures/{file_name}", name] for file_name, name, _ in rows_of_all()]
    return table(directory / f"all.{suffix}", list(header), rows, "\t" if suffix == "tsv" else ",")


def json_lines(directory: Path) -> Path:
    flat_folder(directory / "pictures")
    lines = [json.dumps({"image": f"pictures/{file}", "class": name}) for file, name, _ in rows_of_all()]
    path = directory / "all.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def columns(image: str = "image", label: str = "label") -> dict[str, list]:
    files = [{"bytes": encoded(picture), "path": None} for _, _, picture in rows_of_all()]
    return {image: files, label: [CLASSES.index(name) for _, name, _ in rows_of_all()]}


def dataset(image: str = "image", label: str = "label") -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict(columns(image, label), features=features)


def parquet(path: Path, data: datasets.Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path)
    return path


def parquet_without_features(directory: Path) -> Path:
    directory.mkdir()
    names = [CLASSES[label] for label in columns()["label"]]
    data = datasets.Dataset.from_dict({"img": [file["bytes"] for file in columns()["image"]], "target": names})
    return parquet(directory / "all.parquet", data)


def parquet_of_paths(directory: Path) -> Path:
    flat_folder(directory / "pictures")
    rows = {"path": [f"pictures/{file}" for file, _, _ in rows_of_all()], "label": [n for _, n, _ in rows_of_all()]}
    return parquet(directory / "all.parquet", datasets.Dataset.from_dict(rows))


def saved(data: datasets.Dataset | datasets.DatasetDict, path: Path) -> Path:
    data.save_to_disk(path)
    return path


FORMATS = {
    "class folders": lambda path: class_folders(path / "data"),
    "csv": lambda path: csv_table(path / "data"),
    "csv with other names": lambda path: csv_table(path / "data", header=("Image", "Target")),
    "tsv": lambda path: csv_table(path / "data", "tsv"),
    "directory of one csv": lambda path: csv_table(path / "data").parent,
    "json lines": lambda path: json_lines(path / "data"),
    "parquet": lambda path: parquet(path / "all.parquet", dataset("img", "fine_label")),
    "parquet without features": lambda path: parquet_without_features(path / "data"),
    "parquet of paths": lambda path: parquet_of_paths(path / "data"),
    "directory of parquet": lambda path: parquet(path / "data" / "train.parquet", dataset()).parent,
    "directory of parquet in a folder": lambda path: parquet(path / "d" / "data" / "train.parquet", dataset()).parents[
        1
    ],
    "saved dataset": lambda path: saved(dataset(), path / "data"),
    "saved splits": lambda path: saved(datasets.DatasetDict({"all": dataset()}), path / "data"),
    "dataset": lambda path: dataset("picture", "labels"),
    "shuffled dataset": lambda path: dataset().shuffle(seed=1),
    "splits": lambda path: datasets.DatasetDict({"train": dataset()}),
}


def contents(split: datasets.Dataset) -> list[tuple[bytes, str]]:
    """(pixels, class) of each row, in a fixed order."""
    names = class_names(split)
    return sorted((row["image"].convert("RGB").tobytes(), names[row["label"]]) for row in split)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_splits(name: str, tmp_path: Path) -> None:
    splits, report = load_pictures(FORMATS[name](tmp_path))
    expected, _ = load_pictures(dataset())
    assert {split: contents(splits[split]) for split in splits} == {s: contents(expected[s]) for s in expected}
    assert class_names(splits["train"]) == report.class_names == list(CLASSES)
    assert splits["train"].column_names == ["image", "label", "index"]
    assert report.pictures == {"train": 24, "validation": 3, "test": 3}
    assert not report.dropped and not is_multi_label(splits["train"])


def test_nothing_is_lost_and_every_class_is_in_every_split(tmp_path: Path) -> None:
    splits, report = load_pictures(class_folders(tmp_path), validation_share=0.2, test_share=0.3)
    everything = sorted((image.tobytes(), name) for _, name, image in rows_of_all())
    assert sorted(itertools.chain.from_iterable(map(contents, splits.values()))) == everything
    assert report.by_class == {
        "train": dict.fromkeys(CLASSES, 5),
        "validation": dict.fromkeys(CLASSES, 2),
        "test": dict.fromkeys(CLASSES, 3),
    }
    assert "validation: 6 pictures cut from the training data with seed 0" in report.notes


def test_indices_tell_training_pictures_apart() -> None:
    splits, _ = load_pictures(dataset())
    assert len({index for split in splits.values() for index in split["index"]}) == 30


def test_the_cut_depends_on_content_and_seed_alone(tmp_path: Path) -> None:
    first = contents(load_pictures(class_folders(tmp_path / "data"))[0]["test"])
    for number, path in enumerate(sorted((tmp_path / "data").rglob("*.png"))):
        path.rename(path.with_name(f"{997 * number % 31}.png"))  # another order
    renamed, _ = load_pictures(tmp_path / "data")
    other, _ = load_pictures(tmp_path / "data", seed=1)
    assert contents(renamed["test"]) == first
    assert contents(other["test"]) != first


def test_equal_pictures_stay_together(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(class_folders(tmp_path).rglob("*.png"))):
        for copy in range(3):
            shutil.copy(path, path.with_name(f"copy_{number}_{copy}.png"))
    splits, report = load_pictures(tmp_path, validation_share=0.25, test_share=0.25)
    seen = [{pixels for pixels, _ in contents(split)} for split in splits.values()]
    assert all(first.isdisjoint(second) for first, second in itertools.combinations(seen, 2))
    assert not any("also occur" in note for note in report.notes)
    assert sum(report.pictures.values()) == 120


def test_pictures_on_both_sides_of_given_splits_are_noted(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "train" / name / f"{name}_0.png", tmp_path / "val" / name / "x.png")
        picture(5000 + CLASSES.index(name)).save(tmp_path / "val" / name / "y.png")
    _, report = load_pictures(tmp_path, test_share=0)
    assert report.notes == ["validation: 3 of 6 pictures also occur in train"]


def test_given_splits_are_kept_and_only_missing_ones_are_cut(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere", tmp_path / "valid")
    splits, report = load_pictures(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 27, "validation": 30, "test": 3}
    assert report.notes[0] == "test: 3 pictures cut from the training data with seed 0"
    splits, _ = load_pictures(tmp_path, test_share=0)
    assert list(splits) == ["train", "validation"]


def test_tables_named_after_splits(tmp_path: Path) -> None:
    flat_folder(tmp_path / "p")
    rows = [[f"p/{file_name}", name] for file_name, name, _ in rows_of_all()]
    for split, part in {"train": rows[:18], "dev": rows[18:24], "test": rows[24:]}.items():
        table(tmp_path / f"{split}.csv", ["file", "class"], part)
    splits, _ = load_pictures(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 6, "test": 6}


def test_small_classes_keep_a_picture_to_train_with(tmp_path: Path) -> None:
    for name, count in {"one": 1, "two": 2, "many": 40}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            picture(1000 * count + number).save(tmp_path / name / f"{number}.png")
    _, report = load_pictures(tmp_path)
    assert report.by_class["train"] == {"one": 1, "two": 1, "many": 32}
    assert report.by_class["validation"] == {"two": 1, "many": 4}
    assert report.by_class["test"] == {"many": 4}


def test_files_of_desktops_and_hidden_ones_are_no_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / "more").mkdir()
    picture(9999).save(tmp_path / "cat" / "more" / "deep.png")
    splits, report = load_pictures(tmp_path)
    assert sum(map(len, splits.values())) == 31 and not report.dropped


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "dog").rename(tmp_path / "train")  # the vehicle
    _, report = load_pictures(tmp_path)
    assert report.class_names == ["bird", "cat", "train"]


# Labels


def test_numbers_are_sorted_by_value_and_can_be_named(tmp_path: Path) -> None:
    flat_folder(tmp_path / "p")
    rows = [[f"p/{file}", str(9 + CLASSES.index(name))] for file, name, _ in rows_of_all()]
    path = table(tmp_path / "a.csv", ["path", "label"], rows)
    assert load_pictures(path)[1].class_names == ["9", "10", "11"]
    names = [f"kind {number}" for number in range(12)]
    splits, report = load_pictures(path, class_names=names)
    assert class_names(splits["train"]) == names
    assert report.by_class["train"] == {"kind 9": 8, "kind 10": 8, "kind 11": 8}
    with pytest.raises(ValueError, match="label 10 is not the number of one of the 10 class_names"):
        load_pictures(path, class_names=names[:10])


def test_declared_names_keep_their_order() -> None:
    names = ["dog", "wolf", "bird", "cat"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {**columns(), "label": [names.index(CLASSES[label]) for label in columns()["label"]]}
    splits, report = load_pictures(datasets.Dataset.from_dict(rows, features=features))
    assert class_names(splits["test"]) == names
    assert "train: no pictures of wolf" in report.notes
    assert contents(splits["test"]) == contents(load_pictures(dataset())[0]["test"])


def tags(number: int) -> list[str]:
    return [name for bit, name in enumerate(CLASSES) if number >> bit & 1]


def tagged_csv(directory: Path) -> Path:
    flat_folder(directory / "p")
    rows = [[f"p/{file}", " | ".join(tags(n))] for n, (file, _, _) in enumerate(rows_of_all())]
    return table(directory / "all.csv", ["image", "labels"], rows)


def tagged_jsonl(directory: Path) -> Path:
    flat_folder(directory / "p")
    lines = [json.dumps({"image": f"p/{file}", "labels": tags(n)}) for n, (file, _, _) in enumerate(rows_of_all())]
    (directory / "all.jsonl").write_text("\n".join(lines))
    return directory / "all.jsonl"


def tagged_dataset(feature: Any, labels: list) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.List(feature)})
    return datasets.Dataset.from_dict({"image": columns()["image"], "labels": labels}, features=features)


TAGGED = {
    "csv": tagged_csv,
    "jsonl": tagged_jsonl,
    "class labels": lambda _: tagged_dataset(
        datasets.ClassLabel(names=list(CLASSES)), [[CLASSES.index(t) for t in tags(n)] for n in range(30)]
    ),
    "names": lambda _: tagged_dataset(datasets.Value("string"), [tags(n) for n in range(30)]),
}


@pytest.mark.parametrize("kind", TAGGED)
def test_several_labels_of_a_picture(kind: str, tmp_path: Path) -> None:
    splits, report = load_pictures(TAGGED[kind](tmp_path / "data"))
    assert report.multi_label and is_multi_label(splits["train"])
    assert class_names(splits["train"]) == list(CLASSES)
    by_pixels = {image.tobytes(): tags(n) for n, (_, _, image) in enumerate(rows_of_all())}
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == 30
    for row in rows:
        assert [CLASSES[label] for label in row["label"]] == by_pixels[row["image"].tobytes()]


def test_zeros_and_ones_are_several_labels() -> None:
    labels = [[float(n >> bit & 1) for bit in range(3)] for n in range(30)]
    splits, report = load_pictures(tagged_dataset(datasets.Value("float32"), labels))
    assert report.class_names == ["0", "1", "2"]
    assert report.by_class["train"].total() + sum(report.by_class[s].total() for s in ("validation", "test")) == sum(
        map(sum, labels)
    )
    assert is_multi_label(splits["train"])


def test_a_test_set_without_labels_is_left_out_and_said() -> None:
    hidden = datasets.Dataset.from_dict({**columns(), "label": [-1] * 30}, features=dataset().features)
    splits, report = load_pictures(datasets.DatasetDict({"train": dataset(), "test": hidden}))
    assert len(splits["test"]) == 3
    assert report.notes[0] == "test: left out, for none of its 30 pictures has a label"


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        (["image", "path", "label"], {}, "the columns image, path may all hold the image; choose one by image_column"),
        (["image", "label", "class"], {}, "the columns label, class may all hold the label; choose .* label_column"),
        (["image", "kind"], {}, "no column is known to hold the label among image, kind; choose one by label_column"),
        (["photo", "label"], {}, "no column is known to hold the image among photo, label; choose .* image_column"),
        (["image", "label"], {"label_column": "kind"}, "has no column kind; there are image, label"),
    ],
)
def test_columns_that_cannot_be_told(header: list[str], arguments: dict, message: str, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", header, [["a.png"] * len(header)])
    with pytest.raises(ValueError, match=message) as error:
        load_pictures(path, **arguments)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_chosen_columns() -> None:
    data = dataset("left", "kind").add_column("image", [b"x"] * 30).add_column("label", ["a", "b"] * 15)
    splits, _ = load_pictures(data, image_column="left", label_column="kind")
    assert contents(splits["test"]) == contents(load_pictures(dataset())[0]["test"])


# Bad pictures


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels, as its header says."""
    content = encoded(picture(0))
    chunk = struct.pack(">II", 30_000, 30_000) + content[24:29]
    return content[:12] + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk)) + content[33:]


JPEG = encoded(picture(1, (300, 200)), "JPEG", quality=90)
BAD = {
    "empty.png": (b"", "empty file"),
    "text.png": (b"no picture", "not a picture"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated or damaged"),
    "end.jpg": (JPEG[:-30], "truncated or damaged"),
    "cut.png": (encoded(picture(1, (60, 60)))[:-3000], "truncated or damaged"),
    "cut.gif": (encoded(picture(1, (60, 60)), "GIF")[:1500], "truncated or damaged"),
    "cut.webp": (encoded(picture(1, (60, 60)), "WEBP", lossless=True)[:-2000], "truncated or damaged"),
    "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="x"></svg>', "an SVG drawing; convert it to PNG"),
    "bomb.png": (bomb(), "more pixels than Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS 89,478,485; make it smaller"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_a_one_line_error_with_its_name(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    (class_folders(tmp_path) / "cat" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"1 of 31 train pictures are bad: 1 x {reason}: .*{name}") as error:
        load_pictures(tmp_path)
    assert "\n" not in str(error.value)
    assert "leave them out with skip_bad or max_bad_share" in str(error.value)


def test_bad_pictures_are_skipped_counted_and_reported(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name, (content, _) in BAD.items():
        (tmp_path / "cat" / name).write_bytes(content)
    splits, report = load_pictures(tmp_path, skip_bad=True)
    assert sum(map(len, splits.values())) == 30
    assert report.dropped == Counter(reason for _, reason in BAD.values())
    assert contents(splits["test"]) == contents(load_pictures(dataset())[0]["test"])
    text = str(report)
    assert "dropped 5 x truncated or damaged: " in text and ", ...\n" in text
    assert "bomb.png (Image size (900000000 pixels)" in text


def test_a_share_of_bad_pictures_can_be_allowed(tmp_path: Path) -> None:
    for number in range(3):
        (class_folders(tmp_path) / "dog" / f"bad{number}.png").write_bytes(b"x")
    _, report = load_pictures(tmp_path, max_bad_share=3 / 33)
    assert report.dropped == {"not a picture": 3}
    with pytest.raises(ValueError, match=r"3 of 33 train pictures are bad: 3 x not a picture: .*bad0.png, .*bad1.png"):
        load_pictures(tmp_path, max_bad_share=2 / 33)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP"])
def test_kinds_of_files_that_are_fine(kind: str) -> None:
    frames = {"save_all": True, "append_images": [picture(2)]} if kind in ("MPO", "GIF", "WEBP") else {}
    assert inspect_picture({"bytes": encoded(picture(1), kind, **frames), "path": None}).reason == ""


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "LA"])
def test_modes_that_are_fine(mode: str) -> None:
    assert not inspect_picture({"bytes": encoded(picture(1).convert("L").convert(mode), "TIFF"), "path": None}).reason


def test_a_table_with_bad_lines(tmp_path: Path) -> None:
    path = csv_table(tmp_path)
    path.write_text(path.read_text() + "pictures/lost.png,cat\n,dog\npictures/cat_0.png,\n")
    _, report = load_pictures(path, skip_bad=True)
    assert report.dropped == {
        "cannot be read: No such file or directory": 1,
        "no path in column file_name": 1,
        "label is missing": 1,
    }
    assert report.first_dropped["cannot be read: No such file or directory"] == [
        f"{tmp_path}/pictures/lost.png ({path}:32)"
    ]
    assert report.first_dropped["no path in column file_name"] == [f"{path}:33"]


def test_json_lines_with_bad_lines(tmp_path: Path) -> None:
    path = json_lines(tmp_path)
    bad = ["{", "[1]", '{"image": 3, "class": "cat"}', '{"image": "pictures/cat_0.png", "class": null}']
    path.write_text(path.read_text() + "\n".join(bad))
    _, report = load_pictures(path, skip_bad=True)
    assert report.dropped == {"not a JSON object": 2, "no path in column image": 1, "label is missing": 1}


def test_a_dataset_names_the_row_of_a_bad_picture() -> None:
    files = columns()
    files["image"][4] = {"bytes": b"x", "path": None}
    data = datasets.Dataset.from_dict(files, features=dataset().features)
    with pytest.raises(ValueError, match="1 x not a picture: the dataset:5; correct"):
        load_pictures(data)


def test_files_without_permission_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path)
    read_bytes, iterdir = Path.read_bytes, Path.iterdir

    def refuse(path: Path) -> bytes:
        if path.name == "cat_3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod would not stop root
    with pytest.raises(ValueError, match=r"1 x cannot be read: Permission denied: .*cat_3.png"):
        load_pictures(tmp_path)

    def refuse_directory(path: Path) -> Any:
        if path.name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse_directory)
    with pytest.raises(PermissionError, match=r"cat may not be read; give its owner's permission"):
        load_pictures(tmp_path)


# Data that cannot be used


def only_cats(path: Path) -> Path:
    shutil.rmtree(class_folders(path) / "dog")
    shutil.rmtree(path / "bird")
    return path


def unknown_in_validation(path: Path) -> Path:
    class_folders(path / "train")
    (class_folders(path / "validation") / "cat").rename(path / "validation" / "lynx")
    return path


def split_without_train(path: Path) -> Path:
    class_folders(path / "test")
    return path


def split_beside_classes(path: Path) -> Path:
    class_folders(path / "train")
    class_folders(path)
    return path


def empty_folders(path: Path) -> Path:
    (path / "cat").mkdir(parents=True)
    return path


def made(path: Path) -> Path:
    path.mkdir()
    return path


def two_tables(path: Path) -> Path:
    table(path / "a.csv", ["image", "label"], [])
    return table(path / "b.csv", ["image", "label"], []).parent


UNUSABLE = {
    "empty": (made, "is empty; pictures are expected in folders named after their classes"),
    "flat": (flat_folder, "has 30 files but no folder for each class; put each picture in a folder"),
    "empty folders": (empty_folders, "has no pictures in folders named after classes"),
    "one class": (only_cats, "the only class is cat; .* pictures of at least two are needed"),
    "unknown label": (
        unknown_in_validation,
        "lynx/cat_0.png: validation has the label lynx, but train does not; add pictures of it to train or remove",
    ),
    "no train": (split_without_train, "has test, but no train"),
    "mixed": (split_beside_classes, "folders train for splits beside bird, cat, dog; move what is a class into train"),
    "two tables": (lambda path: two_tables(made(path)), "has a.csv, b.csv; give one of them, or name them train"),
    "empty table": (lambda path: table(made(path) / "a.csv", ["image", "label"], []), "a.csv has no pictures"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_data_that_cannot_be_used_are_a_one_line_error(name: str, tmp_path: Path) -> None:
    make, message = UNUSABLE[name]
    with pytest.raises(ValueError, match=message) as error:
        load_pictures(make(tmp_path / "data"))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_files_of_another_kind_and_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.xlsx: pictures are read from a directory with a folder for each class"):
        load_pictures(tmp_path / "a.xlsx")
    (tmp_path / "a.csv").write_bytes("image,label\nü.png,für".encode("latin1"))
    with pytest.raises(ValueError, match=r"a.csv: byte 0xfc is not UTF-8; convert the file"):
        load_pictures(tmp_path / "a.csv")


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or directory$"):
        load_pictures(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError,
        match=r"^somebody/pictures: no such file or directory, and not read as a dataset from the Hub: ",
    ) as error:
        load_pictures("somebody/pictures")
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"a.parquet: not read as a dataset: ") as error:
        load_pictures(tmp_path / "a.parquet")
    assert "\n" not in str(error.value)


def test_several_configurations_must_be_chosen_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str) -> datasets.DatasetDict:
        asked.append((name, config))
        return datasets.DatasetDict({"train": dataset("img", "fine_label")})

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["large", "small"])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="several configurations, choose one by config_name: large, small"):
        load_pictures("somebody/pictures")
    load_pictures("somebody/pictures", config_name="small")
    assert asked == [("somebody/pictures", "small")]


@pytest.mark.parametrize("argument", [{"validation_share": 0}, {"test_share": 0.7}, {"max_bad_share": 2}])
def test_shares_out_of_range(argument: dict) -> None:
    with pytest.raises(ValueError, match=r"must be shares below 0.5"):
        load_pictures(dataset(), **argument)


def test_a_stream_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"is a IterableDataset; give a datasets.Dataset or DatasetDict"):
        load_pictures(dataset().to_iterable_dataset())


# idx files


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(header + array.tobytes())
    return path


@pytest.fixture
def idx_directory(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in {"train": 40, "t10k": 10}.items():
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 6, 5), dtype=np.uint8))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_idx_files_as_fashion_mnist_ships(idx_directory: Path) -> None:
    splits, report = load_pictures(idx_directory, class_names=[f"garment {number}" for number in range(10)])
    assert report.pictures == {"train": 30, "validation": 10, "test": 10}
    pictures = read_idx(idx_directory / "train-images-idx3-ubyte.gz", 3)
    for row in itertools.chain(splits["train"], splits["validation"]):
        assert row["image"].mode == "L"
        assert np.array_equal(np.array(row["image"]), pictures[row["index"]])
        assert row["label"] == row["index"] % 10
    assert class_names(splits["test"])[3] == "garment 3"


def test_idx_files_without_compression(idx_directory: Path) -> None:
    expected, _ = load_pictures(idx_directory)
    for path in list(idx_directory.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    splits, _ = load_pictures(idx_directory)
    assert {name: contents(split) for name, split in splits.items()} == {n: contents(s) for n, s in expected.items()}


def cut_gzip(directory: Path) -> None:
    path = directory / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def cut_content(directory: Path) -> None:
    path = directory / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7]))


def swap(directory: Path) -> None:
    shutil.copy(directory / "train-labels-idx1-ubyte.gz", directory / "train-images-idx3-ubyte.gz")


def fewer_labels(directory: Path) -> None:
    write_idx(directory / "train-labels-idx1-ubyte.gz", np.zeros(7, dtype=np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_gzip, "train-images-idx3-ubyte.gz is damaged .*; fetch it again"),
        (cut_content, r"has 1,193 bytes of data, but its shape \[40, 6, 5\] needs 1,200; fetch it again"),
        (swap, "train-images-idx3-ubyte.gz is not an idx file of bytes in 3 dimensions"),
        (fewer_labels, "has 40 pictures, but .*train-labels-idx1-ubyte.gz has 7 labels"),
        (lambda directory: (directory / "train-images-idx3-ubyte.gz").unlink(), "but no train-images-idx3-ubyte.gz"),
    ],
)
def test_damaged_idx_files(damage: Any, message: str, idx_directory: Path) -> None:
    damage(idx_directory)
    with pytest.raises(ValueError, match=message) as error:
        load_pictures(idx_directory)
    assert "\n" not in str(error.value)


def test_idx_pictures_without_their_labels(idx_directory: Path) -> None:
    (idx_directory / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"its labels .*train-labels-idx1-ubyte.gz are not"):
        load_pictures(idx_directory)


def test_an_empty_report_reads_well() -> None:
    report = PictureReport("photos", ["a", "b"], pictures={"train": 1200, "test": 10})
    report.by_class = {"train": Counter(a=1000, b=200), "test": Counter(a=10)}
    assert str(report) == (
        "photos: pictures of 2 classes: 1,200 train, 10 test\n  a: 1,000 train, 10 test\n  b: 200 train, 0 test"
    )


def test_too_few_different_pictures_are_counted():
    digests = dict.fromkeys(range(5), b"the same")
    with pytest.raises(ValueError, match="5 pictures, 1 of them different, are too few to cut validation from"):
        cut_splits([list(range(5))], digests, {"validation": 0.2}, PictureReport("photos"), 0)
