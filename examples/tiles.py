"""Large photographs with boxes, cut in overlapping tiles, as COCO JSON. Used by detection_scenes.py."""

from collections.abc import Callable, Sequence
from pathlib import Path

from coco_json import Object, Size, is_there, made_whole, write_annotations
from PIL import Image

LEAST_INSIDE = 0.4  # share of a box that must be in a tile for it to count there
OVERLAP = 0.25  # share of its side that a tile has in common with the next, at least
QUALITY = 95  # of the JPEG files

Photo = tuple[str, Image.Image, list[list[float]]]  # name, photograph, boxes left, top, right, bottom


def write_tiles(
    output_dir: Path,
    make_photos: Callable[[], Sequence[Photo]],
    held_out: str,
    side: int,
    label: str,
    say: Callable[[str], None] = print,
) -> Path:
    """Tiles of (side, side) pixels at most: of the photograph `held_out` for validation, of all others for training.

    What is there with the same settings stays, and then `make_photos` is not called.

    Raises:
        ValueError: if there is no such photograph or no other, or if the directory holds anything else.
    """
    settings = {"side": side, "held_out": held_out, "label": label, "least_inside": LEAST_INSIDE, "overlap": OVERLAP}
    if is_there(output_dir, settings):
        say(f"{output_dir}: the tiles are there")
        return output_dir
    photos = make_photos()
    splits = {
        "train": [photo for photo in photos if photo[0] != held_out],
        "validation": [photo for photo in photos if photo[0] == held_out],
    }
    if not all(splits.values()):
        names = ", ".join(name for name, _, _ in photos) or "nothing"
        raise ValueError(f"{held_out} is to be for validation and others for training, but there is {names}")
    with made_whole(output_dir, settings) as temporary:
        for split, chosen in splits.items():
            (temporary / split).mkdir()
            pictures, objects = _save_tiles(temporary / split, chosen, side)
            boxes = write_annotations(temporary, split, [label], pictures, objects)
            say(f"{split}: {len(pictures):,} tiles, {boxes:,} boxes")
    return output_dir


def _save_tiles(folder: Path, photos: Sequence[Photo], side: int) -> tuple[list[Size], list[Object]]:
    pictures: list[Size] = []
    objects: list[Object] = []
    for name, photo, boxes in photos:
        for left in starts(photo.width, side):
            for top in starts(photo.height, side):
                frame = (left, top, min(left + side, photo.width), min(top + side, photo.height))
                file_name = f"{name}_{left}_{top}.jpg"
                photo.crop(frame).save(folder / file_name, quality=QUALITY)
                objects += [(len(pictures), 0, box) for box in boxes_inside(boxes, frame)]
                pictures.append((file_name, frame[2] - left, frame[3] - top))
    return pictures, objects


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin along an edge: at even distances, the last one so that it ends with the edge."""
    if length <= side:
        return [0]
    number = 1 + -(-(length - side) // int(side * (1 - OVERLAP)))
    return [round(place * (length - side) / (number - 1)) for place in range(number)]


def boxes_inside(boxes: Sequence[Sequence[float]], frame: tuple[int, int, int, int]) -> list[list[float]]:
    """[left, top, width, height] in pixels of the tile of what is in it of those boxes that are mostly in it.

    Args:
        boxes: left, top, right, bottom in pixels of the photograph.
        frame: left, top, right, bottom of the tile.
    """
    left, top, right, bottom = frame
    inside = []
    for x0, y0, x1, y1 in boxes:
        a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        if c > a and d > b and (c - a) * (d - b) >= LEAST_INSIDE * (x1 - x0) * (y1 - y0):
            inside.append([a - left, b - top, c - a, d - b])
    return inside
