"""YOLO's annotations: beside each picture, or in `labels` beside `images`, a text file with a line for each object.

A line is the number of the class, counted from 0, and centre x, centre y, width and height as fractions of the picture
that one sees. data.yaml says where the splits are and what the classes are called, as Ultralytics reads it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from hf_attn.training.detection_folders import files_with, folder_named, pictures_in, split_folders
from hf_attn.training.detection_objects import FRACTION_ROUNDING, DetectionSplit, ObjectList
from hf_attn.training.picture_files import SPLITS, files_below, names_of_splits, undecoded, visible

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")  # a name in each line
NO_LABELS = (*NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "notes.txt")
LINE = "class, centre x, centre y, width, height"


# Finding


def yolo_files(directory: Path) -> list[Path]:
    """The data.yaml of a directory, or else folders or files by which one knows the format."""
    settings = [path for path in visible(directory) if path.suffix in (".yaml", ".yml") and _has_splits(path)]
    return settings or [labels for _, labels, _ in _folders_of_splits(directory)]


def _has_splits(path: Path) -> bool:
    content = _parsed(path)
    return isinstance(content, dict) and "train" in content and ("names" in content or "nc" in content)


def _folders_of_splits(directory: Path) -> list[tuple[str, Path, Path]]:
    """(split, labels, pictures): images/<split> and labels/<split>, <split>/images and <split>/labels, or without."""
    images, labels = folder_named(directory, ("images",)), folder_named(directory, ("labels",))
    if images and labels:
        parts = [(split, labels / path.name, path) for split, path in split_folders(images)]
        return parts or [("train", labels, images)]
    found = []
    for split, path in [*split_folders(directory), ("train", directory)]:
        images, labels = folder_named(path, ("images",)), folder_named(path, ("labels",))
        if images and labels:
            found.append((split, labels, images))
        elif _has_text_beside_pictures(path):
            found.append((split, path, path))
    return found


def _has_text_beside_pictures(directory: Path) -> bool:
    pictures = {path.stem for path in pictures_in(directory)}
    return any(path.stem in pictures for path in files_with(directory, ".txt"))


# Reading


def read_yolo(place: Path) -> dict[str, DetectionSplit]:
    """The splits that a data.yaml names, or those of a directory without one.

    Raises FileNotFoundError or ValueError if the splits or the names in data.yaml cannot be used.
    """
    settings = [place] if place.is_file() else [path for path in yolo_files(place) if path.is_file()]
    if len(settings) > 1:
        raise ValueError(f"{place} has {', '.join(path.name for path in settings)}; give one of them")
    if settings:
        content = _parsed(settings[0])
        parts = names_of_splits([name for name in content if content[name] and _is_split(name)], str(settings[0]))
        pictures = {split: _pictures_named(settings[0], content, name) for split, name in parts.items()}
        names = _names_in(content, settings[0])
        boxes_first = "kpt_shape" in content
    else:
        found = _folders_of_splits(place)
        parts = names_of_splits([split for split, _, _ in found], str(place))
        pictures = {split: list(_pictures_below(images)) for split, _, images in found}
        names, boxes_first = _names_beside(place), False
    return {split: _read_split(paths, names, split, boxes_first) for split, paths in pictures.items()}


def _is_split(name: Any) -> bool:
    return isinstance(name, str) and any(name.lower() in known for known in SPLITS.values())


def _parsed(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _names_in(content: dict[str, Any], path: Path) -> list[str] | None:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{path}: names has the numbers {', '.join(map(str, names))}; they must count from 0")
        names = [names[number] for number in range(len(names))]
    if names is None:
        return None if count is None else [str(number) for number in range(count)]
    if not isinstance(names, list) or (count is not None and count != len(names)):
        raise ValueError(f"{path}: nc is {count}, but names has {len(names)}: {names}; correct the file")
    return [str(name) for name in names]


def _names_beside(directory: Path) -> list[str] | None:
    for folder in (directory, directory / "labels", directory / "train", directory / "train" / "labels"):
        for name in NAME_FILES:
            if (folder / name).is_file():
                return [line.strip() for line in (folder / name).read_text("utf-8").splitlines() if line.strip()]
    return None


def _pictures_named(settings: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The pictures in the folders, or in the lists of files, that data.yaml names for a split."""
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    bases = [settings.parent / str(content.get("path") or ""), settings.parent]
    found: list[Path] = []
    for entry in map(str, entries):
        # Roboflow writes ../train/images for train/images
        tried = [base / name for base in bases for name in (entry, entry.removeprefix("../"))]
        place = next((path for path in tried if path.exists()), None)
        if place is None:
            places = ", ".join(map(str, dict.fromkeys(tried)))
            raise FileNotFoundError(f"{settings}: {split} is {entry}, but there is no {places}; correct the file")
        if place.is_dir():
            found += _pictures_below(place)
        else:
            lines = [line.strip() for line in place.read_text("utf-8").splitlines()]
            found += [_listed(line, place, bases) for line in lines if line]
    return found


def _listed(line: str, place: Path, bases: list[Path]) -> Path:
    tried = [base / line for base in [place.parent, *bases]]
    return next((path for path in tried if path.is_file()), tried[0])


def _pictures_below(directory: Path) -> Iterator[Path]:
    suffixes = Image.registered_extensions()
    return (path for path in map(Path, files_below(directory)) if path.suffix.lower() in suffixes)


def label_file(picture: Path) -> Path:
    """In `labels` instead of the last `images` of its path, or beside it."""
    parts = list(picture.parts)
    names = [part.lower() for part in parts[:-1]]
    if "images" in names:
        parts[len(names) - 1 - names[::-1].index("images")] = "labels"
        instead = Path(*parts).with_suffix(".txt")
        if instead.is_file() or not picture.with_suffix(".txt").is_file():
            return instead
    return picture.with_suffix(".txt")


def _read_split(pictures: Sequence[Path], names: list[str] | None, split: str, boxes_first: bool) -> DetectionSplit:
    found, faults = ObjectList(), {}
    paths: list[str | None] = [str(path) for path in pictures]
    labels = [label_file(path) for path in pictures]
    places: list[str] = []
    without: list[str] = []
    for row, path in enumerate(labels):
        if not path.is_file():
            without.append(str(pictures[row]))
            continue
        try:
            for line, category, box in _lines(path, boxes_first):
                found.add(row, box, category if names is None or category < len(names) else -1)
                places.append(f"line {line} of {path}")
        except ValueError as error:
            faults[row] = str(error)
    if pictures and len(without) == len(pictures):
        raise ValueError(
            f"none of the {len(pictures):,} {split} pictures has a file of labels: {labels[0]} and the next ones are "
            "not there"
        )
    lost = _without_picture(pictures, labels)
    faults |= dict.fromkeys(range(len(paths), len(paths) + len(lost)), "a file of labels without its picture")
    shown = [*paths, *map(str, lost)]
    objects = found.arrays()
    return DetectionSplit(
        images=undecoded(paths + [None] * len(lost)),
        objects=objects,
        names=names or [str(number) for number in range(int(objects.categories.max(initial=-1)) + 1)],
        place=lambda row: str(shown[row]),
        object_place=places.__getitem__,
        box_format="cxcywh",
        fractions=True,
        order="by number" if names is None else "declared",
        faults=faults,
        remarks={"picture without a file of labels, taken to show no object": without} if without else {},
    )


def _without_picture(pictures: Sequence[Path], labels: Sequence[Path]) -> list[Path]:
    """Files of labels in the folders of these labels that belong to no picture, also of another split."""
    folders: dict[Path, set[Path]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        folders.setdefault(label.parent, set()).add(picture.parent)
    lost = []
    for folder, places in sorted(folders.items()):
        known = {path.stem for place in places for path in pictures_in(place)}
        files = files_with(folder, ".txt") if folder.is_dir() else []
        lost += [path for path in files if path.stem not in known and path.name.lower() not in NO_LABELS]
    return lost


def _lines(path: Path, boxes_first: bool) -> Iterator[tuple[int, int, list[float]]]:
    """(line, class, centre x, centre y, width and height) of each line that is not blank.

    Raises ValueError for one that is not like that.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("labels are not text") from error
    for line, words in enumerate(map(str.split, text.splitlines()), start=1):
        if not words:
            continue
        try:
            category, *values = map(float, words)
        except ValueError as error:
            raise ValueError(f"labels are not numbers: {LINE}") from error
        if not category.is_integer() or category < 0:
            raise ValueError("label's class is not a number counted from 0")
        if min(values, default=0) < -FRACTION_ROUNDING or max(values, default=0) > 1 + FRACTION_ROUNDING:
            raise ValueError(
                "label's values are not fractions of the picture, from 0 to 1; divide pixels by its sides"
            )
        if len(values) >= 6 and len(values) % 2 == 0 and not boxes_first:
            values = _around(values)  # the corners of an outline, or of a box that is turned
        elif len(values) != 4 and not (boxes_first and len(values) > 4):
            raise ValueError(
                f"label of {len(words)} columns; there must be 5 ({LINE}), or a class and 3 or more points"
            )
        yield line, int(category), values[:4]


def _around(points: list[float]) -> list[float]:
    """Centre x, centre y, width and height of the box around points x, y, x, y, ..."""
    (left, right), (top, bottom) = [(min(axis), max(axis)) for axis in (points[::2], points[1::2])]
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
