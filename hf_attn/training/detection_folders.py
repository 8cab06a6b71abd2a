"""What directories of pictures and their annotations are usually called."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hf_attn.training.picture_files import SPLITS, visible

ANNOTATION_FOLDERS = ("annotations", "annotation")


def split_of(name: str) -> str | None:
    """The split that a file or folder is named after: instances_val2017 after validation."""
    words = re.findall("[a-z]+", name.lower())
    if "trainval" in words:
        return "train"
    return next((split for word in words for split, known in SPLITS.items() if word in known), None)


def split_folders(directory: Path) -> list[tuple[str, Path]]:
    """(split, folder) of each folder with nothing but the name of a split, and perhaps a year."""
    folders = [path for path in visible(directory) if re.fullmatch(r"[A-Za-z]+\d*", path.name) and path.is_dir()]
    return [(split, path) for path in folders if (split := split_of(path.name))]


def folder_named(directory: Path, names: Sequence[str]) -> Path | None:
    """The folder of one of these names, whatever its capitals."""
    return next((path for path in visible(directory) if path.name.lower() in names and path.is_dir()), None)


def pictures_in(directory: Path) -> list[Path]:
    """The files in a directory that Pillow opens, by their names."""
    suffixes = Image.registered_extensions()
    return [path for path in visible(directory) if path.suffix.lower() in suffixes and path.is_file()]


def files_with(directory: Path, suffix: str) -> list[Path]:
    """The files in a directory with this suffix, whatever its capitals."""
    return [path for path in visible(directory) if path.suffix.lower() == suffix and path.is_file()]
