"""Scenes and tiles from cut-outs, backgrounds and packages drawn for these tests."""

import dataclasses
import gzip
import importlib
import io
import itertools
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from hf_attn.training.detection_data import load_detections
from tests.mirror import Mirror, downloads, picture_file, tar_of

detection_scenes = importlib.import_module("detection_scenes")
fashion_mnist = importlib.import_module("fashion_mnist")
scenes = importlib.import_module("scenes")
tiles = importlib.import_module("tiles")

LABELS = ["disc", "bar"]
PLAIN = scenes.Composition(side=64, most=4, scale=(0.2, 0.5), overlap=0.3, brightness=0.0)


def cutout(label: str, colour: str) -> Any:
    """An opaque disc, or a bar that is four times as long."""
    picture = Image.new("RGBA", (40, 40 if label == "disc" else 10))
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if label == "disc" else draw.rectangle)((0, 0, picture.width - 1, picture.height - 1), colour)
    return scenes.Cutout(label, picture)


def noise(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def two_splits() -> dict[str, Any]:
    return {
        "train": scenes.Split([cutout("disc", "red"), cutout("bar", "red")], [noise(0), noise(1)]),
        "validation": scenes.Split([cutout("disc", "blue"), cutout("bar", "blue")], [noise(2)]),
    }


def write(directory: Path, make_splits: Callable[[], Any] = two_splits, train: int = 10, **settings: Any) -> list[str]:
    said: list[str] = []
    number = {"train": train, "validation": 5}
    scenes.write_scenes(directory, number, make_splits, LABELS, PLAIN, say=said.append, **settings)
    return said


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# One scene


@pytest.mark.parametrize("label", LABELS)
def test_a_box_is_as_tight_as_the_pixels_of_its_object(label: str) -> None:
    alone = dataclasses.replace(PLAIN, most=1)
    split = scenes.Split([cutout(label, "white")], [Image.new("RGB", (80, 80), "black")])
    for seed in range(30):
        scene, ((found, box),) = scenes.compose(split, alone, random.Random(seed))
        left, top, right, bottom = scene.convert("L").point(lambda level: 255 * (level > 127)).getbbox()
        assert (found, box) == (label, (left, top, right - left, bottom - top))


@pytest.mark.parametrize("seed", range(20))
def test_objects_lie_in_the_scene_and_hide_little_of_each_other(seed: int) -> None:
    scene, objects = scenes.compose(two_splits()["train"], PLAIN, random.Random(seed))
    assert scene.size == (64, 64) and scene.mode == "RGB"
    assert 1 <= len(objects) <= PLAIN.most
    covers = np.zeros((len(objects), 64, 64), dtype=bool)
    for mask, (_, (left, top, width, height)) in zip(covers, objects, strict=True):
        assert min(left, top) >= 0 and max(left + width, top + height) <= 64
        assert 0.9 * 0.2 * 64 <= max(width, height) <= 1.2 * 0.5 * 64  # turning makes a little more of it, or less
        mask[top : top + height, left : left + width] = True
    for place, mask in enumerate(covers):
        for other in covers[place + 1 :]:
            assert (mask & other).sum() <= PLAIN.overlap * min(mask.sum(), other.sum())


def test_every_number_of_objects_comes_up() -> None:
    split = two_splits()["train"]
    counts = Counter(len(scenes.compose(split, PLAIN, random.Random(seed))[1]) for seed in range(60))
    assert set(counts) == {1, 2, 3, 4}


def test_what_does_not_fit_is_left_out() -> None:
    full = dataclasses.replace(PLAIN, scale=(1.0, 1.0), turn=0.0, overlap=0.0)
    split = scenes.Split([cutout("disc", "red")], [noise(0)])
    for seed in range(5):
        assert [box for _, box in scenes.compose(split, full, random.Random(seed))[1]] == [(0, 0, 64, 64)]
    assert scenes.compose(split, dataclasses.replace(full, scale=(1.5, 1.5)), random.Random(0))[1] == []


def test_a_tint_only_darkens_and_brightness_changes_both_ways() -> None:
    tinted = dataclasses.replace(PLAIN, most=1, tint=0.35)
    brighter = dataclasses.replace(PLAIN, most=1, brightness=0.4)
    split = scenes.Split([cutout("disc", "#808080")], [Image.new("RGB", (64, 64), "black")])

    def middles(composition: Any) -> np.ndarray:
        """(20, 3) the colours in the middle of discs."""
        found = []
        for seed in range(20):
            scene, ((_, (left, top, width, height)),) = scenes.compose(split, composition, random.Random(seed))
            found.append(scene.getpixel((left + width // 2, top + height // 2)))
        return np.array(found)

    colours = middles(tinted)
    assert colours.min() >= 0.34 * 128 and colours.max() <= 128 and (np.ptp(colours, axis=1) > 10).any()
    greys = middles(brighter)
    assert (np.ptp(greys, axis=1) == 0).all() and greys.min() < 118 and greys.max() > 138
    assert (middles(dataclasses.replace(PLAIN, most=1)) == 128).all()


@pytest.mark.parametrize("size", [(300, 64), (64, 300), (30, 50)])
def test_a_background_of_any_size_fills_the_scene(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size, (10, 20, 30))
    scene, _ = scenes.compose(scenes.Split([cutout("bar", "red")], [photo]), PLAIN, random.Random(0))
    values, counts = np.unique(np.asarray(scene).reshape(-1, 3), axis=0, return_counts=True)
    assert values[counts.argmax()].tolist() == [10, 20, 30] and counts.max() > 64 * 64 / 4


# A directory of scenes


def test_load_detections_reads_the_scenes(tmp_path: Path) -> None:
    said = write(tmp_path / "scenes")
    splits, report = load_detections(tmp_path / "scenes", test_share=0)
    assert report.pictures == {"train": 10, "validation": 5} and not report.dropped and not report.remarked
    assert report.class_names == LABELS
    assert said == [f"{name}: {report.pictures[name]} scenes, {report.boxes[name]} boxes" for name in splits]
    made = two_splits()
    for place, name in enumerate(("train", "validation")):
        annotations = json.loads((tmp_path / "scenes" / "annotations" / f"instances_{name}.json").read_text())
        numbers = [annotation["id"] for annotation in annotations["annotations"]]
        assert numbers == list(range(1, report.boxes[name] + 1))  # pycocotools takes 0 for no match
        for number, row in enumerate(splits[name]):
            _, objects = scenes.compose(made[name], PLAIN, random.Random(f"{(0, place)} {number}"))
            assert row["image"].size == (64, 64)
            assert row["objects"]["bbox"] == [list(box) for _, box in objects]
            assert [LABELS[category] for category in row["objects"]["category"]] == [label for label, _ in objects]
            assert row["objects"]["area"] == [box[2] * box[3] for _, box in objects]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later warn where there are threads
def test_scenes_are_the_same_whatever_the_number_of_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "one")
    monkeypatch.setattr(scenes, "CHUNK", 3)
    write(tmp_path / "two", processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_more_scenes_begin_with_the_same_ones_and_another_seed_makes_others(tmp_path: Path) -> None:
    write(tmp_path / "ten")
    write(tmp_path / "twelve", train=12)
    write(tmp_path / "other", seed=1)
    ten, twelve, other = (contents(tmp_path / name) for name in ("ten", "twelve", "other"))
    pictures = [name for name in ten if name.endswith(".jpg")]
    assert len(pictures) == 15
    assert all(ten[name] == twelve[name] and ten[name] != other[name] for name in pictures)


def test_what_is_there_with_the_same_settings_stays(tmp_path: Path) -> None:
    write(tmp_path / "scenes")
    before = contents(tmp_path / "scenes")

    def fetch() -> None:
        raise AssertionError("nothing is to be fetched")

    assert write(tmp_path / "scenes", fetch) == [f"{tmp_path / 'scenes'}: the scenes are there"]
    for settings in ({"train": 11}, {"seed": 1}):
        with pytest.raises(ValueError, match=r"scenes was not made with these settings; delete it, or choose another"):
            write(tmp_path / "scenes", fetch, **settings)
    assert contents(tmp_path / "scenes") == before


@pytest.mark.parametrize("file", [None, "notes.txt", "settings.json"])
def test_a_directory_of_something_else_is_not_overwritten(file: str | None, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match="was not made with these settings"):
        write(tmp_path)
    assert contents(tmp_path) == ({file: b"{}"} if file else {})


def test_an_error_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(split: Any, composition: Any, draw: random.Random) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(scenes, "compose", fail)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "scenes")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=30), st.sampled_from([0.25, 0.5]))
def test_the_two_lists_have_no_kind_in_common(names: list[str], share: float) -> None:
    first, second = scenes.divided(names, share, kind=lambda name: name[0])
    assert sorted(first + second) == sorted(names)
    assert not {name[0] for name in first} & {name[0] for name in second}
    assert scenes.divided(names[::-1], share, kind=lambda name: name[0]) == (first, second)


def test_every_fourth_of_things_that_have_nothing_in_common_is_in_the_second_list() -> None:
    assert scenes.divided(list("hgfedcba"), 0.25) == (list("bcdfgh"), list("ae"))


# Tiles


@given(st.integers(1, 3000), st.integers(64, 800))
def test_tiles_cover_an_edge_and_have_a_quarter_in_common(length: int, side: int) -> None:
    places = tiles.starts(length, side)
    assert places[0] == 0 and (places[-1] + side == length or length <= side)
    for before, after in itertools.pairwise(places):
        assert 0 < after - before <= 0.75 * side + 1


@given(st.tuples(*[st.integers(0, 900)] * 2), st.tuples(*[st.integers(1, 90)] * 2))
def test_every_small_box_is_whole_in_some_tile(corner: tuple[int, int], size: tuple[int, int]) -> None:
    box = [*corner, corner[0] + size[0], corner[1] + size[1]]
    whole = []
    for left in tiles.starts(1000, 400):
        for top in tiles.starts(1000, 400):
            for x, y, width, height in tiles.boxes_inside([box], (left, top, left + 400, top + 400)):
                assert min(x, y) >= 0 and x + width <= 400 and y + height <= 400
                assert width * height >= 0.4 * size[0] * size[1]
                whole.append((width, height) == size and (left + x, top + y) == corner)
    assert any(whole)


@pytest.mark.parametrize(
    "box, inside",
    [
        ([90, 10, 110, 20], [[90, 10, 10, 10]]),  # half of it
        ([93, 10, 113, 20], []),  # 35 % of it
        ([100, 10, 110, 20], []),
        ([-5, -5, 5, 5], []),  # a quarter
        ([-2, -2, 8, 8], [[0, 0, 8, 8]]),
    ],
)
def test_boxes_are_clipped_and_those_mostly_outside_dropped(box: list[int], inside: list[list[int]]) -> None:
    assert tiles.boxes_inside([box], (0, 0, 100, 100)) == inside


def aerial(name: str, size: tuple[int, int], boxes: list[list[float]]) -> Any:
    return name, noise(len(name), size), boxes


def test_tiles_of_one_photograph_are_for_validation(tmp_path: Path) -> None:
    photos = [
        aerial("large", (250, 180), [[5, 5, 25, 25], [200, 150, 240, 170]]),
        aerial("held", (90, 90), [[1, 2, 3, 4]]),
    ]
    said: list[str] = []
    tiles.write_tiles(tmp_path / "tiles", lambda: photos, "held", 100, "tree", said.append)
    splits, report = load_detections(tmp_path / "tiles", test_share=0)
    assert report.class_names == ["tree"] and not report.dropped and not report.remarked
    assert report.pictures == {"train": 9, "validation": 1}
    assert splits["validation"][0]["objects"]["bbox"] == [[1.0, 2.0, 2.0, 2.0]]
    assert splits["validation"][0]["image"].size == (90, 90)
    assert said == [f"train: 9 tiles, {report.boxes['train']} boxes", "validation: 1 tiles, 1 boxes"]
    tiles.write_tiles(tmp_path / "tiles", pytest.fail, "held", 100, "tree", said.append)
    assert said[-1].endswith("the tiles are there")
    with pytest.raises(ValueError, match="was not made with these settings"):
        tiles.write_tiles(tmp_path / "tiles", pytest.fail, "held", 90, "tree", said.append)


@pytest.mark.parametrize("names, there", [([], "nothing"), (["held"], "held"), (["one", "two"], "one, two")])
def test_photographs_that_cannot_be_split_are_named(names: list[str], there: str, tmp_path: Path) -> None:
    photos = [aerial(name, (90, 90), [[1, 2, 3, 4]]) for name in names]
    with pytest.raises(
        ValueError, match=f"held is to be for validation and others for training, but there is {there}"
    ):
        tiles.write_tiles(tmp_path / "tiles", lambda: photos, "held", 100, "tree")
    assert not list(tmp_path.iterdir())


# The commands


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(detection_scenes.app, [str(argument) for argument in arguments])


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def jpeg(seed: int) -> bytes:
    return picture_file(noise(seed), "JPEG")


def stamp(colour: str) -> bytes:
    picture = Image.new("RGBA", (60, 60))
    picture.paste(cutout("disc", colour).picture, (10, 10))
    return picture_file(picture)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Small packages: 40 + 20 items, 9 backgrounds, a few stamps of each folder."""
    shapes = {name: (40 if "train" in name else 20, *shape[1:]) for name, shape in fashion_mnist.SHAPES.items()}
    monkeypatch.setattr(fashion_mnist, "SHAPES", shapes)
    items = {}
    for name, shape in shapes.items():
        values = np.zeros(shape)
        if len(shape) == 3:
            values[:, 4:24, 8:18] = 200
        else:
            values[:] = np.arange(shape[0]) % 10
        items[f"datasets/fashion-mnist/{name}"] = idx(values)
    nature = ["Aqua", "Blinds", "Dune", "Garden", "Storm"]
    photographs = ["Bridge_by_A", "friends_by_B", "sunset_by_C"]
    folders = detection_scenes.FOLDERS
    stamps = {
        f"tuxpaint/stamps/{folder}/{name}.png": stamp("red")
        for folder in folders
        for name in ("pig", "pig_golden", "pig-2", "fox", "crow", "rose")
    }
    odd = {"tuxpaint/stamps/animals/mammals/hedgehog.png": stamp("blue")}
    mirror = Mirror(
        {
            "dataset-fashion-mnist": items,
            "mate-backgrounds": {
                **{f"backgrounds/mate/nature/{name}.jpg": jpeg(number) for number, name in enumerate(nature)},
                "backgrounds/mate/abstract/Waves.jpg": jpeg(20),
            },
            "lomiri-wallpapers-20.04": {"backgrounds/Fossa_by_D.jpg": jpeg(30)},
            "lomiri-wallpapers-16.04": {f"backgrounds/{name}.jpg": jpeg(len(name)) for name in photographs},
            "tuxpaint-stamps-default": {**stamps, **odd},
        }
    )
    mirror.answer(monkeypatch)
    return mirror


def make(kind: str, tmp_path: Path) -> Any:
    numbers = ("--train", "12", "--validation", "4", "--processes", "1")
    return run(kind, tmp_path / kind, *numbers, "--cache-dir", tmp_path / "cache")


@pytest.mark.parametrize(
    "kind, side, names", [("fashion", 96, fashion_mnist.CLASS_NAMES), ("stamps", 192, detection_scenes.STAMP_CLASSES)]
)
def test_a_command_makes_scenes_once(kind: str, side: int, names: list[str], mirror: Mirror, tmp_path: Path) -> None:
    result = make(kind, tmp_path)
    assert result.exit_code == 0, result.output
    splits, report = load_detections(tmp_path / kind, test_share=0)
    assert report.pictures == {"train": 12, "validation": 4} and report.class_names == names
    assert splits["train"][0]["image"].size == (side, side)
    fetched = list(mirror.downloads)
    assert len(set(fetched)) == len(fetched)
    again = make(kind, tmp_path)
    assert again.exit_code == 0 and "the scenes are there" in again.output and mirror.downloads == fetched


def test_clouds_need_no_photographs_and_are_another_setting(mirror: Mirror, tmp_path: Path) -> None:
    numbers = ("--train", "12", "--validation", "4", "--processes", "1", "--cache-dir", tmp_path / "cache")
    result = run("fashion", tmp_path / "s", *numbers, "--clouds")
    assert result.exit_code == 0, result.output
    assert mirror.downloads and all("fashion-mnist" in package for package in mirror.downloads)
    again = run("fashion", tmp_path / "s", *numbers)
    assert again.exit_code == 1 and "was not made with these settings" in again.output
    (train, validation), other = detection_scenes.clouds(8), detection_scenes.clouds(8, seed=1)
    assert (len(train), len(validation)) == (6, 2)
    assert np.asarray(train[0]).std() > 10  # not of one colour
    pictures = [np.asarray(picture).tobytes() for picture in (*train, *validation, *other[0])]
    assert len(set(pictures)) == len(pictures)


def test_classes_may_be_joined(mirror: Mirror, tmp_path: Path) -> None:
    kinds = {name: "bag" if name == "bag" else "worn" for name in fashion_mnist.CLASS_NAMES}
    scenes, composition = {"train": 20, "validation": 4}, detection_scenes.FASHION
    detection_scenes.write_fashion_scenes(tmp_path / "s", scenes, composition, kinds, 0, 1, tmp_path / "cache")
    splits, report = load_detections(tmp_path / "s", test_share=0)
    assert report.class_names == ["worn", "bag"]
    categories = [category for objects in splits["train"]["objects"] for category in objects["category"]]
    assert 0.3 < categories.count(0) / len(categories) < 0.7  # as often, though nine in ten items are worn


def test_items_are_cut_out_where_they_are_bright() -> None:
    levels = np.zeros((1, 28, 28), dtype=np.uint8)
    levels[0, 3:20, 5:12] = 100
    levels[0, 0, 0] = 10  # noise
    item = detection_scenes.FashionCutouts(levels, ["bag"])[0]
    assert item.label == "bag" and item.picture.size == (7, 17)
    assert np.asarray(item.picture.getchannel("A")).min() == 255


def test_backgrounds_are_divided_by_name_and_some_left_out(mirror: Mirror, tmp_path: Path) -> None:
    train, validation = detection_scenes.backgrounds(tmp_path)  # Aqua Blinds Dune Fossa Garden Storm
    assert (len(train), len(validation)) == (4, 2)
    assert np.array_equal(validation[0], Image.open(io.BytesIO(jpeg(0))))
    without = detection_scenes.SHOW_STAMPS + detection_scenes.NOT_PHOTOGRAPHS
    train, validation = detection_scenes.backgrounds(tmp_path, detection_scenes.STAMP_BACKGROUNDS, without)
    assert (len(train), len(validation)) == (4, 2)  # Aqua Blinds Bridge Dune Storm sunset


def test_stamps_of_one_kind_are_all_in_one_split_and_odd_ones_in_none(mirror: Mirror, tmp_path: Path) -> None:
    transparent = picture_file(Image.new("RGBA", (9, 9)))
    files = {**mirror.packages["tuxpaint-stamps-default"], "tuxpaint/stamps/vehicles/nothing.png": transparent}
    deb = tmp_path / "stamps.deb"
    deb.write_bytes(tar_of(files))
    train, validation = detection_scenes.stamp_cutouts(deb)
    assert (
        {cutout.label for cutout in train}
        == {cutout.label for cutout in validation}
        == set(detection_scenes.STAMP_CLASSES)
    )
    for label in detection_scenes.STAMP_CLASSES:  # kinds: crow, fox, rose, pig
        assert [sum(cutout.label == label for cutout in split) for split in (train, validation)] == [5, 1]
    assert {cutout.picture.size for cutout in train + validation} == {(40, 40)}  # nothing transparent around them


@pytest.mark.parametrize(
    "name, label, kind",
    [
        ("apple_fuji.png", "fruit", "apple"),
        ("Apricot_whole.png", "fruit", "apricot"),
        ("pig_golden2.png", "mammal", "pig"),
        ("garlics.png", "vegetable", "garlic"),
        ("flower10.png", "flower", "flower10.png"),
        ("747.png", "vehicle", "747.png"),
    ],
)
def test_names_tell_what_stamps_show(name: str, label: str, kind: str) -> None:
    assert detection_scenes.kind(name, scenes.Cutout(label, Image.new("RGBA", (1, 1)))) == kind


def test_classes_of_few_cutouts_are_repeated() -> None:
    cutouts = [scenes.Cutout("pig", Image.new("RGBA", (size, 1))) for size in (1, 2, 3, 4)]
    balanced = detection_scenes.Balanced([*cutouts, scenes.Cutout("car", cutouts[0].picture)])
    assert Counter(cutout.label for cutout in balanced) == {"pig": 4, "car": 4}
    assert {cutout.picture.width for cutout in balanced if cutout.label == "pig"} == {1, 2, 3, 4}


def crowns(boxes: list[list[float]]) -> str:
    edges = ("xmin", "ymin", "xmax", "ymax")
    entries = ["".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True)) for box in boxes]
    return (
        "<annotation>" + "".join(f"<object><bndbox>{entry}</bndbox></object>" for entry in entries) + "</annotation>"
    )


def test_trees_come_from_the_photographs_of_the_wheel_that_have_crowns(tmp_path: Path) -> None:
    held = detection_scenes.TREES_FOR_VALIDATION
    (tmp_path / "cache" / "deepforest").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "cache" / "deepforest" / "deepforest-1-py3-none-any.whl", "w") as wheel:
        for name, boxes in ((held, [[10, 20, 40, 50]]), ("other", [[1, 2, 30, 40], [50, 50, 70, 80]]), ("empty", [])):
            wheel.writestr(f"deepforest/data/{name}.png", picture_file(noise(0)))
            wheel.writestr(f"deepforest/data/{name}.xml", crowns(boxes))
        wheel.writestr("deepforest/data/without_picture.xml", crowns([[1, 2, 3, 4]]))
    for said in ("train: 1 tiles, 2 boxes\nvalidation: 1 tiles, 1 boxes", "the tiles are there"):
        result = run("trees", tmp_path / "trees", "--cache-dir", tmp_path / "cache")
        assert result.exit_code == 0 and said in result.output
    splits, report = load_detections(tmp_path / "trees", test_share=0)
    assert report.class_names == ["tree"]
    assert splits["validation"][0]["objects"]["bbox"] == [[10.0, 20.0, 30.0, 30.0]]


@pytest.mark.parametrize("kind", ["fashion", "stamps"])
def test_without_apt_a_command_says_where_the_pictures_come_from(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads.shutil, "which", lambda command: None)
    result = make(kind, tmp_path)
    assert result.exit_code == 1 and "apt-get and dpkg-deb are not here" in result.output
    assert not list(tmp_path.iterdir())


def test_other_scenes_are_not_overwritten_by_a_command(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "stamps").mkdir()
    result = make("stamps", tmp_path)
    assert result.exit_code == 1 and "was not made with these settings" in result.output and not mirror.downloads
