"""COCO's annotations: a JSON file with the lists `images`, `annotations` and `categories` (Lin et al. 2014)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hf_attn.training.detection_folders import ANNOTATION_FOLDERS, files_with, folder_named, split_folders, split_of
from hf_attn.training.detection_objects import DetectionSplit, ObjectList
from hf_attn.training.picture_files import SPLITS, undecoded

LISTS = ("images", "annotations", "categories")
OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")  # files that COCO ships too
LOOKED_AT = 4096  # bytes of a file, to see whether it may be COCO's
PICTURE_FOLDERS = ("images", "data")
NAMES_TRIED = 50  # of pictures, to find their directory


# Finding


def coco_files(directory: Path) -> dict[str, Path]:
    """COCO's file of each split: named after it, or in a folder named after it. A single file counts as training.

    Raises ValueError if several may be meant.
    """
    folder = folder_named(directory, ANNOTATION_FOLDERS)
    places = [directory, *([folder] if folder else [])]
    files = [(split_of(path.stem), path) for place in places for path in _json_files(place)]
    for named, place in split_folders(directory):
        inside = folder_named(place, ANNOTATION_FOLDERS)
        inside_json = _json_files(inside) if inside else []
        files += [(named, path) for path in [*_json_files(place), *inside_json]]
    if len(files) == 1 and files[0][0] is None:
        return {"train": files[0][1]}
    found: dict[str, Path] = {}
    for split, path in files:
        if split is None or split in found:
            names = ", ".join(str(path.relative_to(directory)) for _, path in files)
            raise ValueError(
                f"{directory} has several COCO files: {names}; give one of them, name them train, validation and "
                "test, or say which is which: {'train': ..., 'validation': ...}"
            )
        found[split] = path
    return found


def _json_files(directory: Path) -> list[Path]:
    files = files_with(directory, ".json")
    of_objects = [path for path in files if path.name.startswith("instances_")]
    files = of_objects or [path for path in files if not path.name.startswith(OTHER_TASKS)]
    return [path for path in files if _may_be_coco(path)]


def _may_be_coco(path: Path) -> bool:
    with open(path, "rb") as file:
        beginning = file.read(LOOKED_AT)
    return any(f'"{name}"'.encode() in beginning for name in (*LISTS, "licenses"))


# Reading


def read_coco(path: Path, pictures: Path | None = None) -> DetectionSplit:
    """The pictures and objects of a file.

    Pictures lie in `pictures`, or where they usually do: beside the file, beside its directory `annotations`, in a
    folder `images` or `data` or one named after the split there.

    Raises FileNotFoundError if they are in none of these, and ValueError for a file that is not COCO's, two pictures
    or categories with the same number, or two categories with the same name.
    """
    content = _parsed(path)
    categories = _used_categories(content, path)
    numbers = {entry["id"]: number for number, entry in enumerate(categories)}
    images = content["images"]
    rows = _rows_by_id(images, path)
    names = [_file_name(entry, path) for entry in images]
    directory = _picture_directory(path, names, pictures)
    found, ids, without_picture = ObjectList(), [], []
    for entry in content["annotations"]:
        row = rows.get(entry.get("image_id"))
        if row is None:
            without_picture.append(f"{path}: annotation {entry.get('id')} of image_id {entry.get('image_id')}")
            continue
        category = numbers.get(entry.get("category_id"), -1)
        found.add(row, entry.get("bbox"), category, entry.get("area"), entry.get("iscrowd"))
        ids.append(entry.get("id"))
    paths = [str(directory / name) for name in names]
    return DetectionSplit(
        images=undecoded(paths),
        objects=found.arrays(),
        names=[entry["name"] for entry in categories],
        place=paths.__getitem__,
        object_place=lambda number: f"annotation {ids[number]} of {path.name}",
        fractions=None,
        upright=False,  # pycocotools and the authors' code open pictures as they are stored
        sizes=np.array([[_whole(entry.get(side)) for side in ("width", "height")] for entry in images]).reshape(-1, 2),
        ids=[entry["id"] for entry in images] if all(isinstance(entry["id"], int) for entry in images) else None,
        remarks=_repeated_ids(ids, path),
        without_picture=without_picture,
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}; was it written to its end?") from error
    keys = list(content) if isinstance(content, dict) else []
    missing = [name for name in LISTS if not isinstance(dict.get(content, name), list)] if keys else list(LISTS)
    if missing:
        there = f"it has {', '.join(map(str, keys[:10]))}" if keys else f"it is a {type(content).__name__}"
        raise ValueError(f"{path} is not a file of COCO: the list {missing[0]} is missing; {there}")
    wrong = next((name for name in LISTS for entry in content[name] if not isinstance(entry, dict)), None)
    if wrong:
        raise ValueError(f"{path} is not a file of COCO: an entry of {wrong} is not an object with keys")
    return content


def _used_categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The categories by their numbers, without those that only stand above others, as Roboflow writes them."""
    categories = content["categories"]
    for key in ("id", "name"):
        values = [entry.get(key) for entry in categories]
        if None in values:
            raise ValueError(f"{path}: category {categories[values.index(None)]} has no {key}; add it")
    used = {entry.get("category_id") for entry in content["annotations"]}
    above = {entry.get("supercategory") for entry in categories if entry.get("supercategory") != entry["name"]}
    above |= {entry.get("supercategory") for entry in categories if entry["id"] in used}
    kept = [entry for entry in categories if entry["id"] in used or not _is_above(entry, above)]
    for key in ("id", "name"):
        value, count = Counter(entry[key] for entry in kept).most_common(1)[0] if kept else (None, 0)
        if count > 1:
            others = [entry["name" if key == "id" else "id"] for entry in kept if entry[key] == value]
            raise ValueError(
                f"{path}: {count} categories have the {key} {value}: {', '.join(map(str, others))}; correct the file"
            )
    return sorted(kept, key=lambda entry: (str(type(entry["id"])), entry["id"]))


def _is_above(entry: dict[str, Any], above: set) -> bool:
    return entry["name"] in above and entry.get("supercategory") in (None, "", "none")


def _rows_by_id(images: list[dict[str, Any]], path: Path) -> dict[Any, int]:
    rows: dict[Any, int] = {}
    for row, entry in enumerate(images):
        number = entry.get("id")
        if number is None or number in rows:
            problem = (
                "has no id" if number is None else f"has the id {number} as {_file_name(images[rows[number]], path)}"
            )
            raise ValueError(
                f"{path}: picture {entry.get('file_name')} {problem}; to which the annotations belong cannot be "
                "told, so correct the file"
            )
        rows[number] = row
    return rows


def _file_name(entry: dict[str, Any], path: Path) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: picture {entry.get('id')} has no file_name; add it")
    return name.replace("\\", "/")


def _picture_directory(path: Path, names: list[str], pictures: Path | None) -> Path:
    """The directory in which most of the first files are."""
    tried = names[:NAMES_TRIED]
    candidates = [pictures] if pictures else _usual_directories(path)
    found = [sum((directory / name).is_file() for name in tried) for directory in candidates]
    if tried and not max(found):
        places = ", ".join(str(directory) for directory in candidates)
        raise FileNotFoundError(
            f"{path} names the picture {tried[0]}, but neither it nor the next ones are in {places}; say where the "
            "pictures are by pictures"
        )
    return candidates[found.index(max(found))]


def _usual_directories(path: Path) -> list[Path]:
    bases = [path.parent, *([path.parent.parent] if path.parent.name.lower() in ANNOTATION_FOLDERS else [])]
    split = split_of(path.stem) or ""
    parts = [path.stem.removeprefix("instances_"), *SPLITS.get(split, ())]
    candidates = []
    for base in bases:
        folders = [base, *(base / name for name in PICTURE_FOLDERS)]
        candidates += [*folders, *(folder / part for folder in folders for part in parts)]
        candidates += [base / part / name for part in parts for name in PICTURE_FOLDERS]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate.is_dir()]


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _repeated_ids(ids: list[Any], path: Path) -> dict[str, list[str]]:
    repeated = [number for number, count in Counter(ids).items() if count > 1 and number is not None]
    if not repeated:
        return {}
    places = [f"annotation {number} of {path.name}" for number in repeated]
    return {"id of several annotations, all of which were read": places}
