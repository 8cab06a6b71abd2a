"""Scenes with exact boxes: cut-outs of objects pasted on crops of photographs, as COCO JSON and JPEG files.

Objects and backgrounds of one split are in no other, so that validation says how a detector does on things, and before
things, that it has never seen. Used by detection_scenes.py.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from coco_json import is_there, made_whole, write_annotations
from PIL import Image, ImageEnhance, ImageFilter

QUALITY = 92  # of the JPEG files
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


def write_scenes(
    output_dir: Path,
    scenes: dict[str, int],
    make_splits: Callable[[], dict[str, Split]],
    labels: Sequence[str],
    composition: Composition,
    seed: int = 0,
    processes: int = 1,
    say: Callable[[str], None] = print,
    backgrounds: str = "photographs",
) -> Path:
    """A directory with a folder of JPEG files and annotations/instances_<split>.json for each split.

    Each scene follows from the seed, its split and its number, however many processes there are. What is there with
    the same settings stays, and then `make_splits` is not called.

    Args:
        scenes: how many, by split.
        make_splits: fetches what the scenes of each split are made of.
        labels: the classes by number.
        backgrounds: what they are, which is a setting too.

    Raises:
        ValueError: if the directory holds anything else.
    """
    settings = {
        "composition": asdict(composition),
        "labels": list(labels),
        "backgrounds": backgrounds,
        "seed": seed,
        "scenes": scenes,
    }
    if is_there(output_dir, settings):
        say(f"{output_dir}: the scenes are there")
        return output_dir
    splits = make_splits()
    with made_whole(output_dir, settings) as temporary:
        for place, (name, number) in enumerate(scenes.items()):
            (temporary / name).mkdir()
            work = partial(_write_chunk, temporary / name, composition, (seed, place), number)
            found = _in_processes(work, range(0, number, CHUNK), splits[name], processes)
            objects = [(scene, labels.index(label), box) for chunk in found for scene, label, box in chunk]
            pictures = [(file_name(scene), composition.side, composition.side) for scene in range(number)]
            boxes = write_annotations(temporary, name, labels, pictures, objects)
            say(f"{name}: {number:,} scenes, {boxes:,} boxes")
    return output_dir


Box = tuple[int, int, int, int]  # left, top, width, height in pixels
_made_of: list[Split] = []  # the split at hand, which processes inherit: it is too large to be sent with each chunk


def _in_processes(work: Callable[[int], Any], starts: Sequence[int], split: Split, processes: int) -> list[Any]:
    _made_of.append(split)
    try:
        if processes == 1:
            return list(map(work, starts))
        with ProcessPoolExecutor(processes, get_context("fork")) as pool:
            return list(pool.map(work, starts))
    finally:
        _made_of.clear()


def _write_chunk(
    folder: Path, composition: Composition, seed: tuple[int, int], scenes: int, start: int
) -> list[tuple[int, str, Box]]:
    (split,), rows = _made_of, []
    for number in range(start, min(start + CHUNK, scenes)):
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


def divided(
    things: Sequence[Any], share: float, key: Callable[[Any], str] = str, kind: Callable[[Any], str] | None = None
) -> tuple[list[Any], list[Any]]:
    """Two lists, the second with about a share of the things, that have no `kind` (by default, no key) in common.

    Kinds of few things come first and then the order of keys decides: every so many kinds go into the second list.
    """
    kinds: dict[str, list[Any]] = {}
    for thing in sorted(things, key=key):
        kinds.setdefault((kind or key)(thing), []).append(thing)
    every = round(1 / share)
    lists: tuple[list[Any], list[Any]] = ([], [])
    for place, alike in enumerate(sorted(kinds.values(), key=len)):
        lists[place % every == 0].extend(alike)
    return lists
