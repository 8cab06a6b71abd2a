"""Boxes stay on their objects whatever is changed, and changes are the same again whoever makes them."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import datasets
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from detection_shapes import SHAPES, draw_scene, features, row_of, scenes
from hypothesis import given, settings
from PIL import Image, ImageEnhance
from torch.testing import assert_close
from torch.utils.data import DataLoader

from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.training.detection_augmentation import (
    AUTHORS_SCALES,
    DetectionCollator,
    detection_transform,
)

NOTHING: dict[str, Any] = {"scales": None, "longest_edge": None, "crop": False, "flip": False}


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def bright_box(picture: Image.Image) -> list[float]:
    """[x, y, width, height] of what is brighter than half."""
    bright = np.array(picture.convert("L")) > 127
    left, right = np.flatnonzero(bright.any(0))[[0, -1]]
    top, bottom = np.flatnonzero(bright.any(1))[[0, -1]]
    return [left, top, right - left + 1, bottom - top + 1]


def rectangle(size: tuple[int, int], box: list[int]) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    return Image.fromarray(pixels)


# Boxes


CHANGES = {
    "nothing": NOTHING,
    "flip": {**NOTHING, "flip": True},
    "one scale": {**NOTHING, "scales": (64,)},
    "scales": {**NOTHING, "scales": (40, 96, 150), "longest_edge": 160, "flip": True},
    "crop by shares": {**NOTHING, "crop": (0.3, 0.9), "flip": True},
    "crop by pixels": {**NOTHING, "crop": (20, 60), "crop_scales": None},
    "crop of a scale": {**NOTHING, "crop": (40, 60), "crop_scales": (50, 70), "flip": True},
    "crop and scales": {"scales": (64, 96), "longest_edge": 130, "crop": (0.4, 1.0)},
    "recipe": {},
    "recipe for small pictures": {"scales": (96,), "longest_edge": 128},
}


@pytest.mark.parametrize("name", CHANGES)
def test_boxes_stay_on_what_they_are_around(name: str) -> None:
    transform = detection_transform(**CHANGES[name])
    numbers, cut = np.random.default_rng(0), 0
    for seed in range(40 if name != "recipe" else 8):
        size = tuple(numbers.integers(50, 200, 2).tolist())
        width, height = (int(numbers.integers(side // 4, side // 2)) for side in size)
        box = [int(numbers.integers(size[0] - width + 1)), int(numbers.integers(size[1] - height + 1)), width, height]
        framed = transform(rectangle(size, box), np.array([box], float), random.Random(seed))
        assert framed.kept.tolist() == [0]
        seen = framed.boxes[0]
        if seen[2:].min() < 2:
            continue  # a sliver that may be too faint to see
        assert np.abs(seen[:2] - bright_box(framed.picture)[:2]).max() <= 1
        ends = seen[:2] + seen[2:], np.add(bright_box(framed.picture)[:2], bright_box(framed.picture)[2:])
        assert np.abs(ends[0] - ends[1]).max() <= 1
        assert seen.min() >= 0 and (ends[0] <= np.array(framed.picture.size) + 1e-9).all()
        cut += seen[2] / seen[3] > 1.1 * width / height or seen[3] / seen[2] > 1.1 * height / width
    assert cut or "crop" not in name


def test_nothing_is_nothing_and_a_flip_is_a_mirror_image() -> None:
    picture, boxes, shapes = draw_scene(3, 50)
    framed = detection_transform(**NOTHING)(picture, np.array(boxes), random.Random(0))
    assert framed.picture is picture and framed.boxes.tolist() == boxes
    assert framed.kept.tolist() == list(range(len(shapes)))
    flip, flipped = detection_transform(**{**NOTHING, "flip": True}), 0
    for seed in range(100):
        framed = flip(picture, np.array(boxes), random.Random(seed))
        if not np.array_equal(np.array(framed.picture), np.array(picture)):
            assert np.array_equal(np.array(framed.picture), np.array(picture)[:, ::-1])
            assert framed.boxes.tolist() == [[50 - x - w, y, w, h] for x, y, w, h in boxes]
            flipped += 1
    assert 35 < flipped < 65


@given(st.integers(40, 3000), st.integers(40, 3000), st.sampled_from([None, 600, 1333]))
@settings(max_examples=50, deadline=None)
def test_training_and_evaluation_resize_alike(width: int, height: int, longest: int | None) -> None:
    edges = {"shortest_edge": 480, **({"longest_edge": longest} if longest else {})}
    transform = detection_transform(scales=(480,), longest_edge=longest, crop=False)
    picture = Image.new("L", (width, height))
    framed = transform(picture, np.zeros((0, 4)), random.Random(0))
    expected = AttnDetrImageProcessor(size=edges).resized_size((height, width))
    assert framed.picture.size == expected[::-1]


def strips(size: tuple[int, int]) -> np.ndarray:
    """A box for each column and each row of pixels, by which one sees what part was cut out."""
    columns = [[x, 0, 1, size[1]] for x in range(size[0])]
    return np.array(columns + [[0, y, size[0], 1] for y in range(size[1])], dtype=np.float64)


@pytest.mark.parametrize(
    ("crop", "least", "most"),
    [
        ({"crop": (0.3, 0.6)}, (0.3, 0.3), (0.6, 0.6)),
        ({"crop": (30, 50), "crop_scales": None}, (30 / 120, 30 / 80), (50 / 120, 50 / 80)),
        ({"crop": (100, 200), "crop_scales": None}, (100 / 120, 1.0), (1.0, 1.0)),  # at most the whole picture
        ({"crop": True, "crop_scales": (500,)}, (384 / 750, 384 / 500), (600 / 750, 1.0)),
        ({"crop": True}, (384 / 900, 384 / 600), (1.0, 1.0)),
    ],
)
def test_crops_have_the_sides_asked_for_and_reach_everywhere(crop: dict, least: tuple, most: tuple) -> None:
    size = (120, 80)
    transform = detection_transform(**{**NOTHING, **crop})
    parts, seen = [], np.zeros(200, dtype=int)
    for seed in range(400):
        framed = transform(Image.new("RGB", size), strips(size), random.Random(seed))
        columns = int((framed.kept < size[0]).sum())
        parts.append((columns / size[0], (len(framed.kept) - columns) / size[1]))
        seen[framed.kept] += 1
    shares = np.array([part for part in parts if part != (1.0, 1.0)])
    assert 0.38 * 400 < len(shares) < 0.62 * 400  # half of the time
    for axis, side in enumerate(size):
        assert (least[axis] - 0.5 / side <= shares[:, axis]).all() and (shares[:, axis] <= most[axis] + 2 / side).all()
        if most[axis] - least[axis] > 0.2:
            assert shares[:, axis].min() < least[axis] + 0.05 and shares[:, axis].max() > most[axis] - 0.05
    assert seen.min() > 200


@pytest.mark.parametrize("size", [(640, 480), (300, 400), (1000, 150)])
def test_the_recipe_gives_the_scales_of_the_paper(size: tuple[int, int]) -> None:
    transform, found = detection_transform(), set()
    for seed in range(60):
        framed = transform(Image.new("L", size), np.zeros((0, 4)), random.Random(seed))
        shortest, longest = sorted(framed.picture.size)
        assert longest <= 1333 and (shortest in AUTHORS_SCALES or longest in (1332, 1333))
        found.add(shortest)
    assert len(found & {*AUTHORS_SCALES}) >= 5 or size == (1000, 150)


def test_a_crop_keeps_an_object_and_empty_pictures_are_cropped_too() -> None:
    transform = detection_transform(**{**NOTHING, "crop": (0.2, 0.5)})
    picture, cropped = Image.new("RGB", (60, 60)), 0
    for seed in range(200):
        framed = transform(picture, np.array([[0.0, 0, 4, 4], [57, 57, 3, 3]]), random.Random(seed))
        assert len(framed.kept)
        empty = transform(picture, np.zeros((0, 4)), random.Random(seed))
        assert empty.boxes.shape == (0, 4) and empty.kept.shape == (0,)
        cropped += empty.picture.size != (60, 60)
    assert 70 < cropped < 130


def test_jitter_changes_colours_as_far_as_asked_for_and_no_boxes() -> None:
    grey, boxes = Image.new("RGB", (20, 20), (100, 100, 100)), np.array([[1.0, 2, 3, 4]])
    levels = set()
    for seed in range(100):
        transform = detection_transform(**NOTHING, colour_jitter=(0.4, 0.0, 0.0))
        framed = transform(grey, boxes, random.Random(seed))
        levels.add(framed.picture.getpixel((0, 0))[0])
        assert framed.boxes.tolist() == boxes.tolist()
    assert 60 <= min(levels) < 70 and 130 < max(levels) <= 140
    scene, saturations = draw_scene(0, 40).picture, set()
    for seed in range(20):
        changed = detection_transform(**NOTHING, colour_jitter=(0.0, 0.0, 0.9))(scene, boxes, random.Random(seed))
        difference = np.array(changed.picture.convert("L"), int) - np.array(scene.convert("L"), int)
        assert np.abs(difference).mean() < 6  # brightness stays
        saturations.add(np.array(changed.picture.convert("HSV"))[..., 1].mean())
    assert len(saturations) == 20
    all_three = [detection_transform(**NOTHING, colour_jitter=0.3)(scene, boxes, random.Random(n)) for n in range(9)]
    assert len({framed.picture.tobytes() for framed in all_three}) == 9


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_each_jitter_is_that_of_pillow(mode: str) -> None:
    enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    scene, boxes = draw_scene(0, 40).picture.convert(mode), np.zeros((0, 4))
    for place, enhancer in enumerate(enhancers):
        shares = [0.0, 0.0, 0.0]
        shares[place] = 0.8
        transform = detection_transform(**NOTHING, colour_jitter=tuple(shares))
        for seed in range(10):
            changed = transform(scene, boxes, random.Random(seed)).picture
            factor = random.Random(seed).uniform(0.2, 1.8)  # nothing is drawn before
            assert changed.tobytes() == enhancer(scene).enhance(factor).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, r"scales \(\) must be one or more shortest edges of at least 1 pixel, or None"),
        ({"crop_scales": (0,)}, r"crop_scales \(0,\) must be one or more shortest edges"),
        ({"scales": (800,), "longest_edge": 600}, "longest_edge 600 is shorter than the scale 800; raise it"),
        (
            {"crop": (0.5, 1.2)},
            r"crop \(0.5, 1.2\) must be two sides, smaller and larger: whole numbers of pixels, or",
        ),
        ({"crop": (0.5, 2)}, r"crop \(0.5, 2\) must be two sides"),
        ({"crop": (60, 50)}, r"crop \(60, 50\) must be two sides"),
        ({"crop": (0.5,)}, r"crop \(0.5,\) must be two sides"),
        ({"colour_jitter": 1.0}, r"colour_jitter \(1.0, 1.0, 1.0\) must be a share in \[0, 1\), or three of them"),
        ({"colour_jitter": (0.1, 0.2)}, r"colour_jitter \(0.1, 0.2\) must be a share"),
    ],
)
def test_settings_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection_transform(**arguments)


# Batches


def processor(side: int = 32, **settings: Any) -> AttnDetrImageProcessor:
    return AttnDetrImageProcessor(size={"shortest_edge": side, "longest_edge": 2 * side}, **settings)


def collator(seed: int = 0, **settings: Any) -> DetectionCollator:
    changes = {"scales": (24, 32, 40), "longest_edge": 64, "crop": (0.4, 1.0), "colour_jitter": 0.2, **settings}
    return DetectionCollator(processor(), detection_transform(**changes), seed=seed)


def rows(count: int = 12) -> datasets.Dataset:
    """Scenes of two sizes; every fifth is empty."""
    found = [row_of(draw_scene(n, size=((48, 36), (36, 36))[n % 2]), n) for n in range(count)]
    for number in range(0, count, 5):
        found[number]["objects"] = {part: [] for part in found[number]["objects"]}
    return datasets.Dataset.from_list(found, features=features())


def single(batches: Any) -> list[tuple[bytes, list, list]]:
    """(visible pixels, classes, boxes) of each picture, whatever the padding."""
    found = []
    for batch in batches:
        for pixels, mask, label in zip(batch["pixel_values"], batch["pixel_mask"], batch["labels"], strict=True):
            height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
            assert mask[:height, :width].all() and mask.sum() == height * width
            visible = pixels[:, :height, :width].contiguous().numpy().tobytes()
            found.append((visible, label["class_labels"].tolist(), label["boxes"].tolist()))
    return found


def test_without_a_transform_batches_are_what_the_processor_makes() -> None:
    prepare, data = processor(), list(rows(4))
    batch = DetectionCollator(prepare)(data)
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"}
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_values"].shape == (4, 3, 32, 42)
    for row, label in zip(data, batch["labels"], strict=True):
        x, y, width, height = np.array(row["objects"]["bbox"]).reshape(-1, 4).T
        expected = [(x + width / 2) / row["width"], (y + height / 2) / row["height"]]
        expected += [width / row["width"], height / row["height"]]
        assert_close(label["boxes"], torch.tensor(np.stack(expected, 1), dtype=torch.float32))
        assert label["class_labels"].tolist() == row["objects"]["category"]
        assert label["image_id"].tolist() == [row["image_id"]]


def test_a_transform_that_changes_nothing_gives_what_the_processor_gives() -> None:
    data = list(rows())
    nothing = detection_transform(scales=(32,), longest_edge=64, crop=False, flip=False)
    assert single([DetectionCollator(processor(), nothing)(data)]) == single([DetectionCollator(processor())(data)])


def coloured_row(number: int) -> dict[str, Any]:
    """Rectangles whose class is the channel that is bright, a crowd of grey among them."""
    numbers = np.random.default_rng(number)
    pixels, boxes, classes = np.zeros((60, 80, 3), dtype=np.uint8), [], []
    for column in range(4):
        left, top = 20 * column + int(numbers.integers(4)), int(numbers.integers(30))
        width, height = int(numbers.integers(8, 16)), int(numbers.integers(8, 30))
        category = int(numbers.integers(3)) if column else -1
        pixels[top : top + height, left : left + width, category if column else slice(None)] = 255
        boxes.append([float(left), float(top), float(width), float(height)])
        classes.append(max(category, 0))
    areas = [width * height / 2 for *_, width, height in boxes]
    objects = {"bbox": boxes, "category": classes, "area": areas, "iscrowd": [True, False, False, False]}
    numbers_of = {"image_id": number, "index": number, "width": 80, "height": 60}
    return {"image": Image.fromarray(pixels), **numbers_of, "objects": objects}


def test_labels_stay_with_their_objects_through_to_the_batch() -> None:
    prepare = processor(48, do_normalize=False)
    transform = detection_transform(scales=(40, 48, 64), longest_edge=96, crop=(0.4, 1.0))
    batches = [DetectionCollator(prepare, transform, seed)([coloured_row(n) for n in range(6)]) for seed in range(6)]
    objects, dropped = 0, 0
    for batch in batches:
        for pixels, mask, label in zip(batch["pixel_values"], batch["pixel_mask"], batch["labels"], strict=True):
            height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
            dropped += 3 - len(label["boxes"])
            for (cx, cy, w, h), category, area in zip(
                label["boxes"].tolist(), label["class_labels"].tolist(), label["area"].tolist(), strict=True
            ):
                assert area == pytest.approx(w * width * h * height / 2, rel=1e-3)  # half of the box, as before
                if w * width > 3 and h * height > 3:
                    colour = pixels[:, int(cy * height), int(cx * width)]
                    assert colour.argmax() == category and colour.max() > 0.9 and colour.sum() < 1.5  # not the crowd
                    objects += 1
    assert objects > 60 and dropped > 5


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_kind(mode: str) -> None:
    data = [{**row, "image": row["image"].convert("L").convert(mode)} for row in rows(3)]
    for channels in (1, 3):
        prepare = processor(num_channels=channels, image_mean=[0.5] * channels, image_std=[0.5] * channels)
        batch = DetectionCollator(prepare, detection_transform(scales=(32,), longest_edge=64, colour_jitter=0.1))(data)
        assert batch["pixel_values"].shape[:2] == (3, channels)


def test_rows_without_objects_make_batches_without_labels() -> None:
    data = list(rows(3).remove_columns("objects"))
    for collate in (collator(), DetectionCollator(processor())):
        assert set(collate(data)) == {"pixel_values", "pixel_mask"}


def test_objects_without_area_and_crowd() -> None:
    data = list(rows(4))
    bare = [{**row, "objects": {key: row["objects"][key] for key in ("bbox", "category")}} for row in data]
    assert single([collator()(bare)]) == single([collator()(data)])


def test_rows_without_numbers_are_refused_with_the_remedy() -> None:
    data = list(rows(3).remove_columns("index"))
    with pytest.raises(ValueError, match=r'no "index".*load_detections, or add it: dataset.add_column\("index", '):
        collator()(data)
    assert DetectionCollator(processor())(data)["pixel_values"].shape == (3, 3, 32, 42)
    with pytest.raises(ValueError, match="seed -1 is negative"):
        DetectionCollator(processor(), seed=-1)


# Reproducible


def test_workers_change_nothing_and_persistent_ones_follow_the_epochs() -> None:
    data, epochs = rows(), {}
    for workers in (0, 2):
        collate = collator()
        loader = DataLoader(
            data, batch_size=5, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
        )
        epochs[workers] = []
        for epoch in (0, 1, 0):
            collate.set_epoch(epoch)
            epochs[workers].append(single(loader))
    assert epochs[0] == epochs[2]
    assert epochs[0][0] == epochs[0][2]
    assert all(first != second for first, second in zip(*epochs[0][:2], strict=True))


def test_a_picture_changes_alike_in_any_batch_and_leaves_no_trace() -> None:
    data, before = rows(), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    together = single([collator()(list(data))])
    order = [7, 0, 3, 11]
    assert single([collator()([data[n]]) for n in order]) == [together[n] for n in order]
    other = single([collator(seed=1)(list(data))])
    assert all(first != second for first, second in zip(together, other, strict=True))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_equal_pictures_with_other_numbers_change_differently() -> None:
    row = rows(2)[1]
    changed = single([collator()([{**row, "index": number} for number in range(10)])])
    assert len({pixels for pixels, *_ in changed}) > 8


def test_a_transform_of_ones_own() -> None:
    """Anything that takes picture, boxes and random numbers."""
    mirror: Callable = detection_transform(**{**NOTHING, "flip": True})

    def shifted(picture: Image.Image, boxes: np.ndarray, draw: random.Random) -> Any:
        framed = mirror(picture, boxes, draw)
        return framed._replace(boxes=framed.boxes + np.array([draw.randint(0, 1), 0, 0, 0]))

    found = itertools.chain.from_iterable(
        single([DetectionCollator(processor(), shifted, seed)(list(rows(4)))]) for seed in range(3)
    )
    assert len({pixels for pixels, *_ in found}) > 4


def test_scenes_of_the_helper_go_straight_into_batches() -> None:
    batch = collator()(list(scenes(6, 40)))
    assert all(len(label["boxes"]) for label in batch["labels"])
    assert max(int(label["class_labels"].max()) for label in batch["labels"]) < len(SHAPES)
