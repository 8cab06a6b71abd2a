"""COCO's annotations of pictures, checked, and as the labels that a detector learns from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .boxes import xyxy_to_cxcywh

Label = dict[str, torch.Tensor]
Annotations = Mapping[str, Any]


def read_annotations(
    annotations: Annotations | Sequence[Annotations], sizes: Sequence[tuple[int, int]]
) -> list[Label]:
    """The objects of each picture that count: no crowds, none without area; clipped to the picture.

    Args:
        annotations: {"image_id", "annotations": [{"bbox": [x, y, width, height], "category_id", ...}]} for each
            picture, or for the only one.
        sizes: (height, width) of the pictures in pixels.

    Returns:
        For each picture `image_id` (1,), `class_labels` (n,), `boxes` (n, 4) left, top, right, bottom in pixels, as
        float64, `area` (n,) in pixels and `iscrowd` (n,).

    Raises:
        ValueError: that names the picture and what is wrong.
    """
    given = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(given) != len(sizes):
        raise ValueError(f"there are annotations of {len(given)} pictures for {len(sizes)} pictures; give as many")
    return [_read_one(one, size) for one, size in zip(given, sizes, strict=True)]


def _read_one(annotation: Annotations, size: tuple[int, int]) -> Label:
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= set(annotation):
        raise ValueError(
            f'an annotation must be {{"image_id": ..., "annotations": [...]}}, and one is {_kind(annotation)}'
        )
    if not _is_whole(annotation["image_id"]):
        raise ValueError(f"image_id {annotation['image_id']!r} is no whole number; number the pictures")
    picture = f"image_id {annotation['image_id']}"
    classes, boxes, areas = [], [], []
    for entry in annotation["annotations"]:
        _check(entry, picture)
        left, top, right, bottom = _clipped(entry["bbox"], size)
        if entry.get("iscrowd") or right <= left or bottom <= top:
            continue
        area = entry.get("area")
        classes.append(int(entry["category_id"]))
        boxes.append((left, top, right, bottom))
        areas.append((right - left) * (bottom - top) if area is None else float(area))
    return {
        "image_id": torch.tensor([int(annotation["image_id"])]),
        "class_labels": torch.tensor(classes, dtype=torch.long),
        "boxes": torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        "area": torch.tensor(areas, dtype=torch.float32),
        "iscrowd": torch.zeros(len(classes), dtype=torch.long),
    }


def _check(entry: Any, picture: str) -> None:
    if not isinstance(entry, Mapping) or not {"bbox", "category_id"} <= set(entry):
        raise ValueError(f"an object of {picture} is {_kind(entry)}; it must have bbox and category_id")
    number, box, area = entry["category_id"], entry["bbox"], entry.get("area")
    if not _is_whole(number) or int(number) < 0:
        raise ValueError(
            f"category_id {number!r} of {picture} is no whole number from 0; number the classes 0, 1, 2, ... in the "
            "order of id2label"
        )
    if not _are_finite(box) or len(box) != 4:
        raise ValueError(f"bbox {box} of {picture} is not four finite numbers; give x, y, width, height in pixels")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"bbox {box} of {picture} has a negative width or height; give x, y, width, height, not two corners"
        )
    if area is not None and (not _are_finite([area]) or area < 0):
        raise ValueError(f"area {area!r} of an object of {picture} is no number from 0; give pixels, or leave it out")


def _is_whole(number: Any) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool)


def _are_finite(numbers: Any) -> bool:
    try:
        return all(math.isfinite(number) for number in numbers)
    except (TypeError, ValueError):
        return False


def _kind(value: Any) -> str:
    """What an error says of something that should have been a dictionary with other keys."""
    return f"{{{', '.join(map(str, value))}}}" if isinstance(value, Mapping) else f"of type {type(value).__name__}"


def _clipped(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom within a picture of (height, width)."""
    x, y, width, height = map(float, box)
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))


def fractions_of_boxes(label: Label, original: tuple[int, int], resized: tuple[int, int]) -> Label:
    """What `read_annotations` gives as a detector learns it: cxcywh, fractions of the visible picture.

    Fractions are those of the original picture, which resizing does not change; padding does not count.
    """
    height, width = original
    fractions = xyxy_to_cxcywh(label["boxes"]) / torch.tensor([width, height] * 2)
    return {
        **label,
        "boxes": fractions.float(),
        "area": label["area"] * (resized[0] * resized[1] / (height * width)),
        "orig_size": torch.tensor(original),
        "size": torch.tensor(resized),
    }
