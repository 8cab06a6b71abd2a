"""The classes of a detection data set: one list of names for all splits, from whatever each of them calls them."""

from collections.abc import Sequence

import numpy as np

from hf_attn.training.detection_objects import DetectionSplit
from hf_attn.training.picture_data import DataReport


def unified_classes(
    found: dict[str, DetectionSplit], class_names: Sequence[str] | None, report: DataReport
) -> tuple[list[str], dict[str, DetectionSplit]]:
    """Names of the classes in their order, and the splits with places among these as categories.

    Raises ValueError if validation or test have objects of a class that neither train nor `class_names` know, or if
    `class_names` are neither those of the data nor new names for all of them.
    """
    known = _ordered({name: None for split in found.values() for name in split.names}, found["train"].order)
    if class_names is None:
        names, places = known, {name: place for place, name in enumerate(known)}
        for name, split in found.items():
            _check_known(name, split, found["train"], report)
    else:
        names = [str(name) for name in class_names]
        if len(set(names)) < len(names):
            raise ValueError(f"class_names has a name twice: {', '.join(names)}")
        places = _places(known, names, found["train"].order)
    return names, {
        name: split._replace(objects=split.objects._replace(categories=_in_all(split, places)))
        for name, split in found.items()
    }


def _ordered(names: dict[str, None], order: str) -> list[str]:
    if order == "by number":
        return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return sorted(names) if order == "by name" else list(names)


def _places(known: list[str], names: list[str], order: str) -> dict[str, int]:
    """Where each class of the data is among the names that the user gave."""
    if set(known) <= set(names):
        return {name: names.index(name) for name in known}
    if order == "by number" and all(name.isdigit() and int(name) < len(names) for name in known):
        return {name: int(name) for name in known}
    moved = [name for place, name in enumerate(known) if name in names and names.index(name) != place]
    if len(known) != len(names) or moved:
        raise ValueError(
            f"class_names are {', '.join(names)}, but the classes of the data {', '.join(known)}; give all of these "
            f"in any order, or {len(known)} new names in this order"
        )
    return {name: place for place, name in enumerate(known)}


def _check_known(name: str, split: DetectionSplit, train: DetectionSplit, report: DataReport) -> None:
    for place, class_name in enumerate(split.names):
        there = np.flatnonzero(split.objects.categories == place)
        if class_name not in train.names and len(there):
            raise ValueError(
                f"{report.data}: {split.object_place(there[0])}: {name} has the class {class_name}, but train does "
                "not; add pictures of it to train or remove it"
            )


def _in_all(split: DetectionSplit, places: dict[str, int]) -> np.ndarray:
    own = np.array([places[name] for name in split.names] + [-1], dtype=np.int64)  # the last for -1
    return own[split.objects.categories]
