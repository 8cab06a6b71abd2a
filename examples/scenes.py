"""Scenes with exact boxes: cut-outs of objects pasted on crops of photographs, as COCO JSON and JPEG files.

Objects and backgrounds of one split are in no other, so that validation says how a detector does on things, and before
things, that it has never seen. Used by detection_scenes.py.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from hf_attn.training.checkpoints import whole_directory

QUALITY = 92  # of the JPEG files
SETTINGS_FILE = "scenes.json"
TRIES = 20  # to find a place for an object
CHUNK = 100  # scenes that a process makes at a time


@dataclass(frozen=True)
class Cutout:
    """An object, and how much of each pixel it covers."""

    label: str
    picture: Image.Image  # RGBA, no wider than the object


@dataclass(frozen=True)
class Composition:
    """How scenes are made. Lengths are shares of the side of a scene unless they are said to be pixels.

    Args:
        side: pixels of a scene, which is square.
        most: objects in a scene, at least 1.
        scale: length of an object's longer edge, from and to.
        turn: degrees, each way.
        overlap: share of an object that another may cover.
        brightness: change of an object's brightness, each way.
        tint: darkest value, from 0 to 1, of a random colour that a grey object is multiplied by; 1 leaves it as it is.
    """

    side: int
    most: int
    scale: tuple[float, float]
    turn: float = 15.0
    overlap: float = 0.3
    brightness: float = 0.2
    tint: float = 1.0


@dataclass
class Split:
    """What the scenes of a split are made of."""

    cutouts: Sequence[Cutout]
    backgrounds: Sequence[Image.Image]
    scenes: int


def write_scenes(
    output_dir: Path,
    splits: dict[str, Split],
    labels: Sequence[str],
    composition: Composition,
    seed: int = 0,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> Path:
    """A directory with a folder of JPEG files and annotations/instances_<split>.json for each split.

    Each scene follows from the seed, its split and its number, however many processes there are. What is there with
    the same settings stays.

    Raises:
        ValueError: if the directory holds scenes of other settings.
    """
    record = {
        "composition": asdict(composition),
        "labels": list(labels),
        "seed": seed,
        "scenes": {name: split.scenes for name, split in splits.items()},
    }
    if output_dir.is_dir():
        before = (
            json.loads((output_dir / SETTINGS_FILE).read_text()) if (output_dir / SETTINGS_FILE).is_file() else None
        )
        if before != json.loads(json.dumps(record)):
            raise ValueError(f"{output_dir} holds other scenes; delete it, or choose another directory")
        say(f"{output_dir}: the scenes are there")
        return output_dir
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(output_dir) as temporary:
        (temporary / "annotations").mkdir()
        for place, (name, split) in enumerate(splits.items()):
            boxes = _write_split(temporary, name, split, labels, composition, (seed, place), processes)
            say(f"{name}: {split.scenes:,} scenes, {boxes:,} boxes")
        (temporary / SETTINGS_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return output_dir


def _write_split(
    directory: Path,
    name: str,
    split: Split,
    labels: Sequence[str],
    composition: Composition,
    seed: tuple[int, int],
    processes: int,
) -> int:
    (directory / name).mkdir()
    starts = range(0, split.scenes, CHUNK)
    work = partial(_write_chunk, directory / name, composition, seed)
    _made_of.append(split)
    try:
        if processes == 1:
            chunks = list(map(work, starts))
        else:
            with ProcessPoolExecutor(processes, get_context("fork")) as pool:
                chunks = list(pool.map(work, starts))
    finally:
        _made_of.clear()
    numbers = {label: number for number, label in enumerate(labels)}
    annotations = [
        {
            "id": 0,
            "image_id": number,
            "category_id": numbers[label],
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for chunk in chunks
        for number, label, box in chunk
    ]
    for place, annotation in enumerate(annotations, start=1):
        annotation["id"] = place
    content = {
        "images": [
            {"id": number, "file_name": file_name(number), "width": composition.side, "height": composition.side}
            for number in range(split.scenes)
        ],
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
        "annotations": annotations,
    }
    (directory / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return len(annotations)


Box = tuple[int, int, int, int]  # left, top, width, height in pixels
_made_of: list[Split] = []  # the split at hand, which processes inherit: it is too large to be sent with each chunk


def _write_chunk(
    folder: Path, composition: Composition, seed: tuple[int, int], start: int
) -> list[tuple[int, str, Box]]:
    (split,), rows = _made_of, []
    for number in range(start, min(start + CHUNK, split.scenes)):
        scene, objects = compose(split, composition, random.Random(f"{seed} {number}"))
        scene.save(folder / file_name(number), quality=QUALITY)
        rows += [(number, label, box) for label, box in objects]
    return rows


def file_name(number: int) -> str:
    return f"{number:06}.jpg"


# --- one scene -------------------------------------------------------------------------------------------------------


def compose(split: Split, composition: Composition, draw: random.Random) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """A scene and the objects in it, with boxes as tight as their pixels."""
    scene = _background(draw.choice(split.backgrounds), composition.side, draw)
    objects: list[tuple[str, Box]] = []
    for _ in range(draw.randint(1, composition.most)):
        cutout = draw.choice(split.cutouts)
        drawn = _drawn(cutout, composition, draw)
        solid = drawn.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if solid is None:
            continue
        place = _place(drawn.size, solid, [box for _, box in objects], composition, draw)
        if place is not None:
            scene.paste(drawn, place, drawn)
            left, top, right, bottom = solid
            objects.append((cutout.label, (place[0] + left, place[1] + top, right - left, bottom - top)))
    return scene, objects


def _background(photo: Image.Image, side: int, draw: random.Random) -> Image.Image:
    """A square part of a photograph, mirrored half of the time."""
    edge = draw.randint(min(side, *photo.size), min(photo.size))
    left, top = draw.randint(0, photo.width - edge), draw.randint(0, photo.height - edge)
    part = photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + edge, top + edge))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else part.copy()


def _drawn(cutout: Cutout, composition: Composition, draw: random.Random) -> Image.Image:
    """The object as it is pasted: mirrored, turned, tinted, at a random size, with a soft edge."""
    picture = cutout.picture
    if draw.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    longer = draw.uniform(*composition.scale) * composition.side
    factor = longer / max(picture.size)
    size = max(2, round(picture.width * factor)), max(2, round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if composition.turn:
        degrees = draw.uniform(-composition.turn, composition.turn)
        picture = picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    alpha = picture.getchannel("A").filter(ImageFilter.GaussianBlur(0.5))
    colours = picture.convert("RGB")
    if composition.tint < 1:
        tint = np.array([draw.uniform(composition.tint, 1.0) for _ in range(3)])
        colours = Image.fromarray((np.asarray(colours) * tint).astype(np.uint8))
    change = draw.uniform(1 - composition.brightness, 1 + composition.brightness)
    colours = ImageEnhance.Brightness(colours).enhance(change)
    colours.putalpha(alpha)
    return colours


def _place(
    size: tuple[int, int], solid: Box, others: Sequence[Box], composition: Composition, draw: random.Random
) -> tuple[int, int] | None:
    """Left and top of an object whose `solid` part lies wholly in the scene and hides little of the others."""
    left, top, right, bottom = solid
    width, height = right - left, bottom - top
    if width > composition.side or height > composition.side:
        return None
    for _ in range(TRIES):
        x, y = draw.randint(0, composition.side - width), draw.randint(0, composition.side - height)
        if all(_covered((x, y, width, height), other) <= composition.overlap for other in others):
            return x - left, y - top
    return None


def _covered(box: Box, other: Box) -> float:
    """The largest share of one of two boxes that is in both."""
    across = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    down = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    common = max(0, across) * max(0, down)
    return common / min(box[2] * box[3], other[2] * other[3])


def divided(things: Sequence[Any], share: float, key: Callable[[Any], str] = str) -> Iterator[list[Any]]:
    """Two lists: of the things, by the order of their keys, every so many are in the second."""
    ordered = sorted(things, key=key)
    every = round(1 / share)
    yield [thing for place, thing in enumerate(ordered) if place % every]
    yield [thing for place, thing in enumerate(ordered) if not place % every]
