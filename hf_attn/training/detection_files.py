"""Where pictures with boxes lie: COCO's, YOLO's and Pascal VOC's files, and datasets in the layout of the Hub.

`find_detections` says what is there. No picture is opened here.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets

from hf_attn.training.detection_coco import coco_files, read_coco
from hf_attn.training.detection_datasets import read_datasets, read_objects
from hf_attn.training.detection_objects import DetectionSplit
from hf_attn.training.detection_voc import read_voc, voc_places
from hf_attn.training.detection_yolo import read_yolo, yolo_files
from hf_attn.training.picture_files import (
    ARCHIVES,
    Columns,
    as_one_line,
    load_dataset,
    names_of_splits,
    visible,
)

LAYOUTS = ("coco", "yolo", "voc", "datasets")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of datasets' imagefolder
LOOKED_FOR = (
    "COCO (.json files with images, annotations and categories, in it, in annotations or in folders train, validation "
    "or valid or val, and test), YOLO (data.yaml, or .txt files in labels beside images or beside the pictures), "
    "Pascal VOC (.xml files in Annotations or beside the pictures) and datasets (.parquet, metadata.jsonl, or saved "
    "by save_to_disk)"
)

Source: TypeAlias = str | Path | datasets.Dataset | Mapping[str, Any]


class Wanted(NamedTuple):
    """What the user said about the data; None: found out."""

    layout: str | None = None  # of LAYOUTS
    pictures: Path | None = None  # the directory of COCO's pictures
    columns: Columns = Columns()  # of a dataset
    config_name: str | None = None


# Finding


def find_detections(data: Source, wanted: Wanted) -> tuple[str, dict[str, DetectionSplit]]:
    """The layout of the data, and the pictures of each split that they come with; a single one counts as training.

    Raises FileNotFoundError, PermissionError or ValueError, saying what there is instead.
    """
    if wanted.layout not in (None, *LAYOUTS):
        raise ValueError(f"layout {wanted.layout!r} is not known; there are {', '.join(LAYOUTS)}")
    if isinstance(data, Mapping) and not isinstance(data, datasets.DatasetDict):
        return _find_by_split(data, wanted)
    if not isinstance(data, str | os.PathLike):
        return "datasets", read_datasets(data, "the dataset", wanted.columns)
    path = Path(data)
    if path.is_file():
        return _read_file(path, wanted)
    if not path.is_dir():
        return "datasets", read_datasets(load_dataset(path, wanted.config_name), path.as_posix(), wanted.columns)
    layout = _layout_of(path, wanted.layout)
    return layout, READERS[layout](path, wanted)


def _find_by_split(data: Mapping[str, Any], wanted: Wanted) -> tuple[str, dict[str, DetectionSplit]]:
    """{"train": ..., "validation": ...} with the data of a split each."""
    names = names_of_splits(list(data), "the mapping")
    if len(names) < len(data) or not names:
        raise ValueError(f"the mapping has {', '.join(map(str, data))}; name its parts train, validation and test")
    layouts, found = set(), {}
    for split, name in names.items():
        layout, parts = find_detections(data[name], wanted)
        if len(parts) > 1:
            raise ValueError(f"{data[name]}, given for {split}, has splits of its own: {', '.join(parts)}")
        layouts.add(layout)
        found[split] = parts["train"]
    return " and ".join(sorted(layouts)), found


def _read_file(path: Path, wanted: Wanted) -> tuple[str, dict[str, DetectionSplit]]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return "coco", {"train": read_coco(path, wanted.pictures)}
    if suffix in (".yaml", ".yml"):
        return "yolo", read_yolo(path)
    if suffix == ".parquet":
        with as_one_line(path):
            dataset = datasets.Dataset.from_parquet(str(path))
        return "datasets", {"train": read_objects(dataset, str(path), wanted.columns, path.parent)}
    raise ValueError(f"{path}: boxes are read from COCO's .json, YOLO's data.yaml, .parquet files and directories")


def _layout_of(directory: Path, chosen: str | None) -> str:
    """The only layout of which a directory has the files, or the chosen one."""
    found = [layout for layout, look in FINDERS.items() if chosen in (layout, None) and look(directory)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{directory} has annotations of several layouts: {', '.join(found)}; choose one by layout, or give the "
            "file that you mean"
        )
    entries = [path.name for path in visible(directory)]
    there = ", ".join(entries[:10]) + ", ..." * (len(entries) > 10) if entries else "nothing"
    known = f"in the layout {chosen}" if chosen else "that are known"
    raise ValueError(f"{directory} has no annotations {known}; looked for were {LOOKED_FOR}; there is {there}")


def _dataset_files(directory: Path) -> list[Path]:
    places = [directory, *(path for path in visible(directory) if path.is_dir())]
    saved = [directory / name for name in ("dataset_dict.json", "state.json") if (directory / name).is_file()]
    files = [path for place in places for path in visible(place)]
    return saved or [path for path in files if path.suffix in ARCHIVES or path.name in METADATA]


def _read_coco_directory(directory: Path, wanted: Wanted) -> dict[str, DetectionSplit]:
    files = coco_files(directory)
    splits = names_of_splits(list(files), str(directory))
    return {split: read_coco(files[split], wanted.pictures) for split in splits}


def _read_datasets_directory(directory: Path, wanted: Wanted) -> dict[str, DetectionSplit]:
    if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
        return read_datasets(datasets.load_from_disk(str(directory)), str(directory), wanted.columns)
    return read_datasets(load_dataset(directory, wanted.config_name), str(directory), wanted.columns)


FINDERS: dict[str, Callable[[Path], Any]] = {
    "coco": coco_files,
    "yolo": yolo_files,
    "voc": voc_places,
    "datasets": _dataset_files,
}
READERS: dict[str, Callable[[Path, Wanted], dict[str, DetectionSplit]]] = {
    "coco": _read_coco_directory,
    "yolo": lambda directory, _: read_yolo(directory),
    "voc": lambda directory, _: read_voc(directory),
    "datasets": _read_datasets_directory,
}
