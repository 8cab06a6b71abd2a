"""Detection data as training and evaluation read them: pictures, and boxes in the numbers of the model's classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from torch.utils.data import Dataset

PARTS = ("bbox", "category")
NAMES_SHOWN = 20  # in an error


def check_detection_columns(split: datasets.Dataset, name: str) -> None:
    """Raise a ValueError unless a split has pictures in `image`, and in `objects` boxes of classes with names."""
    for column in ("image", "objects"):
        if column not in split.column_names:
            raise ValueError(
                f"the {name} split has no column {column!r}, only {', '.join(split.column_names)}; load the data by "
                "load_detections"
            )
    if not isinstance(split.features["image"], datasets.Image):
        raise ValueError(
            f"the column 'image' of the {name} split holds {split.features['image']}, not pictures; cast it: "
            'data.cast_column("image", datasets.Image())'
        )
    missing = [part for part in PARTS if part not in _parts(split)]
    if missing:
        raise ValueError(f"the column 'objects' of the {name} split has no {missing[0]!r}; load it by load_detections")
    if not hasattr(_class_feature(split), "names"):
        raise ValueError(
            f"the categories of the {name} split are {_class_feature(split)}, not classes with names; load the data "
            "by load_detections"
        )


def class_names(split: datasets.Dataset) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    return list(_class_feature(split).names)


def count_boxes(split: datasets.Dataset) -> dict[str, int]:
    """How many boxes each class has, by name."""
    counted = Counter(number for objects in split["objects"] for number in objects["category"])
    return {name: counted[number] for number, name in enumerate(class_names(split))}


def objects_to_find(objects: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """`label` and `box`, xyxy in pixels, of each of a row's objects, without crowds, which nothing has to find.

    Args:
        names: of the classes, by number.
    """
    categories, boxes = objects["category"], objects["bbox"]
    crowds = objects.get("iscrowd") or [False] * len(boxes)
    return [
        {"label": names[number], "box": (x, y, x + width, y + height)}
        for number, (x, y, width, height), is_crowd in zip(categories, boxes, crowds, strict=True)
        if not is_crowd
    ]


class DetectionRows(Dataset):
    """Rows of a split, with the categories numbered as a model numbers the classes of these names.

    Args:
        split: in the layout of `load_detections`.
        name: of the split, for errors.
        label2id: the model's number of each class.

    Raises:
        ValueError: if a box is of a class that the model does not know.
    """

    def __init__(self, split: datasets.Dataset, name: str, label2id: Mapping[str, int]):
        self.split = split
        names = class_names(split)
        self.to_model = [label2id.get(each, -1) for each in names]
        self.same = self.to_model == list(range(len(names)))
        if -1 in self.to_model:
            _check_known(split, name, label2id)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        columns = self.split[rows]
        read = [{name: values[place] for name, values in columns.items()} for place in range(len(rows))]
        for place, row in enumerate(read):
            row.setdefault("index", rows[place])
            row.setdefault("image_id", rows[place])
            if not self.same:
                categories = [self.to_model[number] for number in row["objects"]["category"]]
                row["objects"] = {**row["objects"], "category": categories}
        return read


def _parts(split: datasets.Dataset) -> dict[str, Any]:
    """The features of what a picture's objects have."""
    feature = split.features["objects"]
    if isinstance(feature, datasets.List):
        feature = feature.feature
    return dict(feature) if isinstance(feature, dict) else {}


def _class_feature(split: datasets.Dataset) -> Any:
    feature = _parts(split)["category"]
    return feature.feature if isinstance(feature, datasets.List) else feature


def _check_known(split: datasets.Dataset, name: str, label2id: Mapping[str, int]) -> None:
    seen = [f"{each!r} ({boxes:,})" for each, boxes in count_boxes(split).items() if boxes and each not in label2id]
    if seen:
        shown = ", ".join(seen[:NAMES_SHOWN]) + (f" and {len(seen) - NAMES_SHOWN} more" if seen[NAMES_SHOWN:] else "")
        known = ", ".join(map(repr, sorted(label2id, key=label2id.__getitem__)[:NAMES_SHOWN])) + (
            " ..." if len(label2id) > NAMES_SHOWN else ""
        )
        raise ValueError(
            f"the {name} split has classes (and boxes of them) that the model does not know: {shown}; it knows {known}"
        )
