"""The classes of a picture data set: known by their names, because every data set numbers them differently."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

NAMES_SHOWN = 20  # in an error


def check_columns(split: datasets.Dataset, name: str) -> None:
    """Raise a ValueError unless a split has pictures in the column `image` and classes with names in `label`."""
    for column in ("image", "label"):
        if column not in split.column_names:
            raise ValueError(f"the {name} split has no column {column!r}, only {', '.join(split.column_names)}")
    if not isinstance(split.features["image"], datasets.Image):
        raise ValueError(
            f"the column 'image' of the {name} split holds {split.features['image']}, not pictures; cast it: "
            'data.cast_column("image", datasets.Image())'
        )
    if not isinstance(_class_feature(split), datasets.ClassLabel):
        raise ValueError(
            f"the column 'label' of the {name} split holds {split.features['label']}, not classes with names; encode "
            'it: data.class_encode_column("label")'
        )


def class_names(split: datasets.Dataset) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    return list(_class_feature(split).names)


def is_multi_label(split: datasets.Dataset) -> bool:
    """Whether a picture has a list of classes instead of one."""
    return not isinstance(split.features["label"], datasets.ClassLabel)


def count_labels(split: datasets.Dataset) -> dict[str, int]:
    """How many pictures each class has, by name."""
    labels = split["label"][:]
    counted = Counter(number for numbers in labels for number in numbers) if is_multi_label(split) else Counter(labels)
    return {name: counted[number] for number, name in enumerate(class_names(split))}


class LabelledPictures(Dataset):
    """Rows of a split with `image`, `index` and `label`, numbered as a model numbers the classes of these names.

    Args:
        split: with the columns `image`, `label` and perhaps `index`, otherwise the rows are counted.
        name: of the split, for errors.
        label2id: the model's number of each class.

    Raises:
        ValueError: if a picture has a class that the model does not know, or none where it must have one.
    """

    def __init__(self, split: datasets.Dataset, name: str, label2id: Mapping[str, int]):
        self.split = split
        self.multi_label = is_multi_label(split)
        names = class_names(split)
        self.to_model = np.array([label2id.get(each, -1) for each in names], np.int64)
        _check_known(split, name, [each for each in names if each not in label2id], label2id)
        self.labels = [self._of_model(label) for label in split["label"][:]]
        self.index = split["index"][:] if "index" in split.column_names else list(range(len(split)))

    def _of_model(self, label: Any) -> Any:
        return self.to_model[label].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.split[row]["image"], "label": self.labels[row], "index": self.index[row]}

    def paths(self) -> list[str | None]:
        """The file that each picture was read from, if the data say it."""
        plain = self.split.select_columns("image").cast_column("image", datasets.Image(decode=False))
        batches = plain.with_format("arrow").iter(batch_size=1000)
        return [path for batch in batches for path in batch["image"].combine_chunks().field("path").to_pylist()]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        pictures = self.split[rows]["image"]
        return [
            {"image": picture, "label": self.labels[row], "index": self.index[row]}
            for picture, row in zip(pictures, rows, strict=True)
        ]


def _class_feature(split: datasets.Dataset) -> Any:
    feature = split.features["label"]
    return feature.feature if isinstance(feature, datasets.List) else feature


def _check_known(split: datasets.Dataset, name: str, unknown: list[str], label2id: Mapping[str, int]) -> None:
    if not is_multi_label(split):
        without = sum(label is None or label < 0 for label in split["label"])
        if without:
            raise ValueError(
                f"{without:,} of {len(split):,} pictures of the {name} split have no label; leave them out"
            )
    counts = count_labels(split)
    seen = [f"{each!r} ({counts[each]:,})" for each in unknown if counts[each]]
    if seen:
        shown = ", ".join(seen[:NAMES_SHOWN]) + (f" and {len(seen) - NAMES_SHOWN} more" if seen[NAMES_SHOWN:] else "")
        known = ", ".join(map(repr, sorted(label2id, key=label2id.__getitem__)[:NAMES_SHOWN])) + (
            " ..." if len(label2id) > NAMES_SHOWN else ""
        )
        raise ValueError(
            f"the {name} split has labels (and pictures of them) that the model does not know: {shown}; it knows "
            f"{known}"
        )
