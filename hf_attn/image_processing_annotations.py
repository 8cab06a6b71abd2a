"""COCO's annotations of pictures, checked, and as the labels that a detector learns from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
        For each picture `image_id` (1,), `class_labels` (n,), `boxes` (n, 4) left, top, right, bottom in pixels,
        `area` (n,) in pixels and `iscrowd` (n,).

    Raises:
        ValueError: that names the picture and what is wrong.
    """
    given = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(given) != len(sizes):
        raise ValueError(f"there are annotations of {len(given)} pictures for {len(sizes)} pictures; give as many")
    return [_read_one(one, size) for one, size in zip(given, sizes, strict=True)]


def _read_one(annotation: Annotations, size: tuple[int, int]) -> Label:
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= set(annotation):
        found = ", ".join(map(str, annotation)) if isinstance(annotation, Mapping) else type(annotation).__name__
        raise ValueError(f'an annotation must be {{"image_id": ..., "annotations": [...]}}, and one is {found}')
    picture = f"image_id {annotation['image_id']}"
    classes, boxes, areas = [], [], []
    for entry in annotation["annotations"]:
        number, box = _checked(entry, picture)
        edges = _clipped(box, size)
        if entry.get("iscrowd") or edges[2] <= edges[0] or edges[3] <= edges[1]:
            continue
        classes.append(number)
        boxes.append(edges)
        areas.append(float(entry.get("area", box[2] * box[3])))
    return {
        "image_id": torch.tensor([annotation["image_id"]]),
        "class_labels": torch.tensor(classes, dtype=torch.long),
        "boxes": torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        "area": torch.tensor(areas, dtype=torch.float32),
        "iscrowd": torch.zeros(len(classes), dtype=torch.long),
    }


def _checked(entry: Any, picture: str) -> tuple[int, list[float]]:
    if not isinstance(entry, Mapping) or not {"bbox", "category_id"} <= set(entry):
        found = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"an object of {picture} has {found}; it must have bbox and category_id")
    number, box = entry["category_id"], [float(edge) for edge in entry["bbox"]]
    if isinstance(number, bool) or not hasattr(number, "__index__") or int(number) < 0:
        raise ValueError(f"category_id {number!r} of {picture} is no whole number from 0; number the classes from 0")
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"bbox {box} of {picture} is not four finite numbers: x, y, width, height in pixels")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"bbox {box} of {picture} has a negative width or height; boxes are x, y, width, height, not two corners"
        )
    return int(number), box


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """Left, top, right, bottom within a picture of (height, width)."""
    x, y, width, height = box
    return [max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))]


def fractions_of_boxes(label: Label, original: tuple[int, int], resized: tuple[int, int]) -> Label:
    """What `read_annotations` gives as a detector learns it: cxcywh, fractions of the visible picture.

    Fractions are those of the original picture, which resizing does not change; padding does not count.
    """
    low, high = label["boxes"][:, :2], label["boxes"][:, 2:]
    sides = torch.tensor([original[1], original[0]], dtype=torch.float64)
    scale = resized[0] * resized[1] / (original[0] * original[1])
    return {
        **label,
        "boxes": torch.cat([(low + high) / 2 / sides, (high - low) / sides], dim=-1).float(),
        "area": label["area"] * scale,
        "orig_size": torch.tensor(original),
        "size": torch.tensor(resized),
    }
