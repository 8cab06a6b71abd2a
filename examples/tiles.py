"""Large photographs with boxes, cut in overlapping tiles, as COCO JSON. Used by detection_scenes.py."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from hf_attn.training.checkpoints import whole_directory

LEAST_INSIDE = 0.4  # share of a box that must be in a tile for it to count there
OVERLAP = 0.25  # share of its side that a tile has in common with the next
Photo = tuple[str, Image.Image, list[list[float]]]  # name, photograph, boxes left, top, right, bottom


def write_tiles(
    output_dir: Path, photos: Sequence[Photo], side: int, say: Callable[[str], None] = print, label: str = "tree"
) -> Path:
    """Tiles of (side, side) pixels at most: those of one photograph for validation, all others for training.

    For validation it is the photograph with the second fewest boxes: enough to measure, and few to lose.

    Raises:
        ValueError: if there are fewer than two photographs.
    """
    if len(photos) < 2:
        raise ValueError(f"{len(photos)} photographs cannot be split in training and validation; give two or more")
    if output_dir.is_dir():
        say(f"{output_dir}: the tiles are there")
        return output_dir
    held_out = sorted(photos, key=lambda photo: len(photo[2]))[1][0]
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(output_dir) as temporary:
        (temporary / "annotations").mkdir()
        for split in ("train", "validation"):
            chosen = [photo for photo in photos if (photo[0] == held_out) == (split == "validation")]
            tiles, boxes = _write_split(temporary, split, chosen, side, label)
            say(f"{split}: {tiles:,} tiles, {boxes:,} boxes")
    return output_dir


def _write_split(directory: Path, split: str, photos: Sequence[Photo], side: int, label: str) -> tuple[int, int]:
    (directory / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for name, photo, boxes in photos:
        for left in starts(photo.width, side):
            for top in starts(photo.height, side):
                frame = (left, top, min(left + side, photo.width), min(top + side, photo.height))
                file_name = f"{name}_{left}_{top}.jpg"
                photo.crop(frame).save(directory / split / file_name, quality=95)
                image = {
                    "id": len(images),
                    "file_name": file_name,
                    "width": frame[2] - left,
                    "height": frame[3] - top,
                }
                images.append(image)
                for x, y, width, height in boxes_inside(boxes, frame):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image["id"],
                            "category_id": 0,
                            "bbox": [x, y, width, height],
                            "area": width * height,
                            "iscrowd": 0,
                        }
                    )
    content = {"images": images, "categories": [{"id": 0, "name": label}], "annotations": annotations}
    (directory / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return len(images), len(annotations)


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin along an edge: at even distances, the last one at the end."""
    if length <= side:
        return [0]
    number = 1 + -(-(length - side) // int(side * (1 - OVERLAP)))
    return [round(place * (length - side) / (number - 1)) for place in range(number)]


def boxes_inside(boxes: Sequence[Sequence[float]], frame: tuple[int, int, int, int]) -> list[list[float]]:
    """[x, y, width, height] in pixels of the tile of what of the boxes is in it."""
    left, top, right, bottom = frame
    inside = []
    for x0, y0, x1, y1 in boxes:
        a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        if c > a and d > b and (c - a) * (d - b) >= LEAST_INSIDE * (x1 - x0) * (y1 - y0):
            inside.append([a - left, b - top, c - a, d - b])
    return inside
