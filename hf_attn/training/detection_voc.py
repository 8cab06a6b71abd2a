"""Pascal VOC's annotations: an XML file for each picture (Everingham et al. 2010).

Annotations/*.xml, JPEGImages and ImageSets/Main/<split>.txt as in VOC, or the XML files beside the pictures. Edges are
numbers of pixels counted from 1, and xmax and ymax belong to the box. Other programs write the same files with edges
counted from 0; they are told by boxes that begin at 0.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from hf_attn.training.detection_folders import (
    ANNOTATION_FOLDERS,
    files_with,
    folder_named,
    pictures_in,
    split_folders,
)
from hf_attn.training.detection_objects import DetectionSplit, ObjectList
from hf_attn.training.picture_files import SPLITS, undecoded, visible

PICTURE_FOLDERS = ("jpegimages", "images", "pictures")
EDGES = ("xmin", "ymin", "xmax", "ymax")


class Place(NamedTuple):
    """Where the annotations and the pictures of a split are."""

    annotations: Path
    pictures: list[Path]
    stems: list[str] | None = None  # of the files; None: all


# Finding


def voc_places(directory: Path) -> dict[str, Place]:
    """Where each split is. Files that belong to no split count as training."""
    parts = _image_sets(directory)
    if parts:
        return parts
    here = _place(directory)
    if here:
        return {"train": here}
    found: dict[str, Place] = {}
    for split, path in split_folders(directory):
        place = _place(path)
        if place and split in found:
            raise ValueError(
                f"{directory} has the folders {found[split].annotations} and {place.annotations} for {split}; leave "
                "one of them"
            )
        if place:
            found[split] = place
    if not found:
        below = [path for path in visible(directory) if path.is_dir() and path.name.lower().startswith("voc")]
        if len(below) > 1:
            names = ", ".join(path.name for path in below)
            raise ValueError(f"{directory} has {names}; give one of them")
        return voc_places(below[0]) if below else {}
    return found


def _image_sets(directory: Path) -> dict[str, Place]:
    place, lists = _place(directory), directory / "ImageSets" / "Main"
    if place is None or not lists.is_dir():
        return {}
    names = {path.stem.lower(): path for path in files_with(lists, ".txt")}
    found = {split: next((names[name] for name in known if name in names), None) for split, known in SPLITS.items()}
    if found["train"] is None:
        found |= {"train": names.get("trainval"), "validation": None}
    return {split: place._replace(stems=_listed(path)) for split, path in found.items() if path}


def _listed(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]


def _place(directory: Path) -> Place | None:
    """The annotations and pictures of a directory, if it has any."""
    annotations = folder_named(directory, ANNOTATION_FOLDERS)
    if annotations:
        annotations = folder_named(annotations, ("xmls",)) or annotations
        pictures = folder_named(directory, PICTURE_FOLDERS)
        if files_with(annotations, ".xml"):
            return Place(annotations, [*([pictures] if pictures else []), annotations, directory])
    if any(_is_annotation(path) for path in files_with(directory, ".xml")):
        return Place(directory, [directory])
    return None


def _is_annotation(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"<annotation" in file.read(1024)


# Reading


def read_voc(directory: Path) -> dict[str, DetectionSplit]:
    """The splits of a directory.

    Raises ValueError if a split has no annotations.
    """
    parsed = {split: _Reader(place) for split, place in voc_places(directory).items()}
    edges = np.concatenate([reader.edges() for reader in parsed.values()])[:, :2]
    first = 0 if (edges == 0).sum() > (edges == 1).sum() else 1  # which of them boxes at the edge begin with
    return {split: reader.split(first) for split, reader in parsed.items()}


class _Reader:
    """The annotations of one split, as they are written."""

    def __init__(self, place: Place):
        files = files_with(place.annotations, ".xml")
        stems = [path.stem for path in files] if place.stems is None else place.stems
        by_stem = {path.stem: path for path in files}
        self.pictures = _by_stem(place.pictures)
        self.objects = ObjectList()
        self.faults: dict[int, str] = {}
        self.paths: list[str | None] = []
        self.places: list[str] = []
        self.object_places: list[str] = []
        self.names: dict[str, int] = {}
        self.difficult: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        for row, stem in enumerate(stems):
            self._read(row, stem, by_stem.get(stem))
        known = set(stems)
        self.unlisted = [] if place.stems else [str(path) for s, path in self.pictures.items() if s not in known]

    def _read(self, row: int, stem: str, path: Path | None) -> None:
        self.paths.append(None)
        self.sizes.append((0, 0))
        self.places.append(str(path or stem))
        picture = self.pictures.get(stem)
        if path is None:
            self.faults[row] = "no file of annotations"
        else:
            try:
                root = ElementTree.parse(path).getroot()
            except ElementTree.ParseError as error:
                self.faults[row] = f"annotations are not XML: {error}"
                return
            if picture is None:
                picture = self.pictures.get(Path((root.findtext("filename") or "").replace("\\", "/")).stem)
            self.sizes[row] = _whole(root, "size/width"), _whole(root, "size/height")
            for number, entry in enumerate(root.iter("object"), start=1):
                self._add(row, entry, f"object {number} of {path}")
        if picture is None:
            self.faults.setdefault(row, "picture is missing")
        else:
            self.paths[row] = self.places[row] = str(picture)

    def _add(self, row: int, entry: ElementTree.Element, place: str) -> None:
        name = (entry.findtext("name") or "").strip()
        category = self.names.setdefault(name, len(self.names)) if name else -1
        difficult = (entry.findtext("difficult") or "").strip() == "1"
        if difficult:
            self.difficult.append(place)
        self.objects.add(row, [_number(entry, f"bndbox/{edge}") for edge in EDGES], category, crowd=difficult)
        self.object_places.append(place)

    def edges(self) -> np.ndarray:
        return self.objects.arrays().boxes

    def split(self, first: int) -> DetectionSplit:
        """With pixels counted from `first`: from 1, a box of one pixel has xmin = xmax; from 0, edges lie between."""
        objects = self.objects.arrays()
        ordered = sorted(self.names)
        places = np.array([ordered.index(name) for name in self.names] + [-1])  # the last for -1
        remarks = {
            "difficult object, taken as a crowd: not learned from, neither right nor wrong to find": self.difficult,
            "picture without a file of annotations, left out": self.unlisted,
        }
        return DetectionSplit(
            images=undecoded(self.paths),
            objects=objects._replace(
                boxes=objects.boxes - np.array([first, first, 0, 0]), categories=places[objects.categories]
            ),
            names=ordered,
            place=self.places.__getitem__,
            object_place=self.object_places.__getitem__,
            box_format="xyxy",
            fractions=False,
            upright=False,
            order="by name",
            sizes=np.array(self.sizes).reshape(-1, 2),
            faults=self.faults,
            remarks={what: where for what, where in remarks.items() if where},
        )


def _by_stem(directories: list[Path]) -> dict[str, Path]:
    """The pictures in the first of the directories that has each."""
    found: dict[str, Path] = {}
    for directory in directories:
        for path in pictures_in(directory):
            found.setdefault(path.stem, path)
    return found


def _number(entry: ElementTree.Element, tag: str) -> float:
    try:
        return float(entry.findtext(tag) or "")
    except ValueError:
        return np.nan


def _whole(entry: ElementTree.Element, tag: str) -> int:
    number = _number(entry, tag)
    return int(number) if number > 0 else 0
