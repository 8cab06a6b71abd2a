"""Objects in a column of a dataset, in the layouts that object detection has on the Hub.

Either lists side by side, {"bbox": [[x, y, width, height], ...], "category": [...]}, or a list of objects, each
{"bbox": [x, y, width, height], "category": ...}; with `area` and `iscrowd` or without.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_attn.training.detection_objects import DetectionSplit, ObjectList
from hf_attn.training.picture_files import (
    Columns,
    choose_column,
    image_column,
    named_splits,
    undecoded_column,
    unformatted,
    usual,
)

OBJECT_COLUMNS = ("objects", "object", "annotations", "annotation")
FIELDS = {  # of an object, and what they are called
    "box": ("bbox", "bboxes", "box", "boxes"),
    "category": ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id"),
    "area": ("area", "areas"),
    "crowd": ("iscrowd", "is_crowd", "crowd"),
}
ONLY_CLASS = "object"  # what the class is called where objects have none


def read_datasets(loaded: Any, name: str, columns: Columns) -> dict[str, DetectionSplit]:
    """The splits of a Dataset or DatasetDict.

    Raises ValueError if no column holds objects, or if several may.
    """
    return {
        split: read_objects(dataset, place, columns) for split, (dataset, place) in named_splits(loaded, name).items()
    }


def read_objects(dataset: Any, name: str, columns: Columns, base: Path = Path()) -> DetectionSplit:
    """The pictures and objects of a Dataset; paths of pictures are relative to `base`."""
    dataset = unformatted(dataset, name)
    features = dataset.features
    image = image_column(features, columns.image, name)
    column = _objects_column(features, columns.objects, name)
    parts = _parts(features[column])
    chosen = [next(iter(usual(list(parts), known)), None) for known in FIELDS.values()]
    if chosen[0] is None:
        raise ValueError(
            f"{name}: column {column} holds {features[column]}, no objects with {' or '.join(FIELDS['box'])}; choose "
            "another by objects_column"
        )
    found, faults, places = ObjectList(), {}, []
    labels: list[Any] = []
    for row, objects in enumerate(dataset[column]):
        values = [[]] if objects is None else _columns_of(objects, chosen)
        if objects is None or len({len(value) for value in values}) > 1:
            faults[row] = "objects are missing" if objects is None else "objects have lists of different lengths"
            continue
        for number, (box, label, area, crowd) in enumerate(zip(*values, strict=True), start=1):
            found.add(row, box, -1, area, crowd)
            labels.append(label)
            places.append(f"object {number} of {name}:{row + 1}")
    names, order, categories = _classes(labels, parts[chosen[1]] if chosen[1] else None)
    numbers = {key: dataset[key][:] for key in ("image_id", "width", "height") if _is_whole(features.get(key))}
    ids = numbers.get("image_id", [])
    return DetectionSplit(
        images=undecoded_column(dataset.select_columns(image), image, name, base),
        objects=found.arrays()._replace(categories=categories),
        names=names,
        place=lambda row: f"{name}:{row + 1}",
        object_place=places.__getitem__,
        order=order,
        sizes=_sizes(numbers["width"], numbers["height"]) if {"width", "height"} <= set(numbers) else None,
        ids=ids if len(set(ids) - {None}) == len(dataset) else None,
        faults=faults,
    )


def _objects_column(features: datasets.Features, chosen: str | None, name: str) -> str:
    candidates = [column for column, feature in features.items() if usual(list(_parts(feature)), FIELDS["box"])]
    if len(candidates) > 1:
        candidates = usual(candidates, OBJECT_COLUMNS) or candidates
    return choose_column(list(features), candidates, chosen, "objects", name)


def _parts(feature: Any) -> dict[str, Any]:
    """The parts of each object in a column: one feature for each name."""
    lists = datasets.List | datasets.LargeList
    if isinstance(feature, lists) and isinstance(feature.feature, dict):
        return feature.feature
    if isinstance(feature, dict):
        return {name: part.feature for name, part in feature.items() if isinstance(part, lists)}
    return {}


def _columns_of(objects: Any, chosen: Sequence[str | None]) -> list[list[Any]]:
    """A list of each chosen part with a value for each object, None where it is not there."""
    if isinstance(objects, list):
        return [[entry.get(name) for entry in objects] for name in chosen]
    count = len(objects[chosen[0]] or [])
    return [[None] * count if name is None else objects[name] or [] for name in chosen]


def _classes(labels: list[Any], feature: Any) -> tuple[list[str], str, np.ndarray]:
    """Names of the classes, how they are ordered, and the place of each label's name among them, or -1."""
    if feature is None:
        return [ONLY_CLASS], "declared", np.zeros(len(labels), dtype=np.int64)
    known: dict[Any, int]
    if isinstance(feature, datasets.ClassLabel):
        names, order = feature.names, "declared"
        known = {number: number for number in range(len(names))}
    else:
        there = {label for label in labels if label is not None}
        order = "by number" if _is_whole(feature) else "by name"
        ordered = sorted(there)
        names, known = [str(label) for label in ordered], {label: place for place, label in enumerate(ordered)}
    return names, order, np.array([known.get(label, -1) for label in labels], dtype=np.int64)


def _is_whole(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "uint"))


def _sizes(widths: list[int | None], heights: list[int | None]) -> np.ndarray:
    """(pictures, 2), 0 where one is not known."""
    return np.array([(width or 0, height or 0) for width, height in zip(widths, heights, strict=True)])
