"""Directories of JPEG files and COCO JSON that are made once, whole or not at all. Used by scenes.py and tiles.py."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_attn.training.checkpoints import whole_directory

SETTINGS_FILE = "settings.json"

Size = tuple[str, int, int]  # file name, width, height of a picture
Object = tuple[int, int, Sequence[float]]  # place of its picture, number of its class, box: left, top, width, height


def is_there(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether a directory has what was made with these settings.

    Raises:
        ValueError: if it has anything else.
    """
    if not directory.is_dir():
        return False
    file = directory / SETTINGS_FILE
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        raise ValueError(f"{directory} was not made with these settings; delete it, or choose another directory")
    return True


@contextmanager
def made_whole(directory: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """A temporary directory with a folder for annotations, which becomes `directory` once all is written."""
    with whole_directory(directory) as temporary:
        (temporary / "annotations").mkdir()
        yield temporary
        (temporary / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_annotations(
    directory: Path, split: str, labels: Sequence[str], pictures: Sequence[Size], objects: Iterable[Object]
) -> int:
    """Write annotations/instances_<split>.json for the pictures in <split>/ and return how many boxes it has."""
    annotations = [
        {
            "id": number,
            "image_id": picture,
            "category_id": label,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (picture, label, box) in enumerate(objects, start=1)
    ]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, width, height) in enumerate(pictures)
        ],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
        "annotations": annotations,
    }
    file = directory / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return len(annotations)
