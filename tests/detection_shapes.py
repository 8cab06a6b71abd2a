"""Pictures with boxes to learn from in seconds: one to four discs, squares and crosses on a noisy ground.

`scenes` gives them in the layout of `load_detections`; `save_coco`, `save_yolo` and `save_voc` write such rows in
files.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import datasets
import numpy as np
from PIL import Image

SHAPES = ("disc", "square", "cross")
COCO_IDS = (3, 18, 90)  # of the categories in a file, with gaps as in COCO


class Scene(NamedTuple):
    """A picture and what is in it."""

    picture: Image.Image
    boxes: list[list[float]]  # (shapes, 4) x, y, width, height in pixels: a shape touches all four edges of its box
    shapes: list[int]  # numbers of SHAPES


def shape_mask(shape: str, side: int) -> np.ndarray:
    """(side, side) True where the shape is."""
    row, column = np.mgrid[0:side, 0:side] - (side - 1) / 2
    if shape == "disc":
        return row**2 + column**2 <= side**2 / 4
    if shape == "cross":
        return np.minimum(abs(row - column), abs(row + column)) <= side / 8
    return np.ones((side, side), dtype=bool)


def draw_scene(seed: int, side: int = 64, most: int = 4, size: tuple[int, int] | None = None) -> Scene:
    """Up to `most` shapes that do not overlap, the same for the same seed; `size` is (width, height), not a square."""
    random = np.random.default_rng(seed)
    width, height = size or (side, side)
    pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
    taken = np.zeros((height, width), dtype=bool)
    boxes, shapes = [], []
    shortest = min(width, height)
    for _ in range(random.integers(1, most + 1)):
        for _ in range(50):  # tries to find a free place
            edge = int(random.integers(max(shortest // 6, 5), max(shortest // 3, 6) + 1))
            top, left = int(random.integers(height - edge + 1)), int(random.integers(width - edge + 1))
            place = slice(top, top + edge), slice(left, left + edge)
            if not taken[place].any():
                shape = int(random.integers(len(SHAPES)))
                pixels[place][shape_mask(SHAPES[shape], edge)] = random.integers(150, 256, 3)
                taken[place] = True
                boxes.append([float(left), float(top), float(edge), float(edge)])
                shapes.append(shape)
                break
    return Scene(Image.fromarray(pixels), boxes, shapes)


def features(names: Sequence[str] = SHAPES) -> datasets.Features:
    """Those of the rows of `load_detections`."""
    number, whole = datasets.Value("float64"), datasets.Value("int64")
    objects = {
        "bbox": datasets.List(datasets.List(number, length=4)),
        "category": datasets.List(datasets.ClassLabel(names=list(names))),
        "area": datasets.List(number),
        "iscrowd": datasets.List(datasets.Value("bool")),
    }
    columns = {"image_id": whole, "index": whole, "width": whole, "height": whole, "objects": objects}
    return datasets.Features({"image": datasets.Image(), **columns})


def row_of(scene: Scene, number: int) -> dict[str, Any]:
    """A scene as a row of `load_detections`."""
    objects = {
        "bbox": scene.boxes,
        "category": scene.shapes,
        "area": [box[2] * box[3] for box in scene.boxes],
        "iscrowd": [False] * len(scene.boxes),
    }
    width, height = scene.picture.size
    numbers = {"image_id": number, "index": number, "width": width, "height": height}
    return {"image": scene.picture, **numbers, "objects": objects}


def scenes(number: int, side: int = 64, first_seed: int = 0, most: int = 4) -> datasets.Dataset:
    """So many scenes as rows of `load_detections`: image, image_id, index, width, height, objects."""
    rows = [row_of(draw_scene(first_seed + row, side, most), row) for row in range(number)]
    return datasets.Dataset.from_list(rows, features=features())


def splits(train: int, validation: int, side: int = 64, most: int = 4) -> datasets.DatasetDict:
    """Scenes to train with and other ones to validate with."""
    parts = {"train": scenes(train, side, 0, most), "validation": scenes(validation, side, 1_000_000, most)}
    return datasets.DatasetDict(parts)


def save_coco(rows: datasets.Dataset, directory: Path, split: str = "train") -> Path:
    """`directory`/<split>/*.png and `directory`/annotations/instances_<split>.json."""
    images, annotations = [], []
    for name, row in _saved(rows, directory / split, split):
        size = {"width": row["width"], "height": row["height"]}
        images.append({"id": row["image_id"], "file_name": name, **size})
        for box, category, area, crowd in zip(*row["objects"].values(), strict=True):
            kind = {"id": len(annotations) + 1, "image_id": row["image_id"], "category_id": COCO_IDS[category]}
            annotations.append({**kind, "bbox": box, "area": area, "iscrowd": int(crowd), "segmentation": []})
    categories = [{"id": number, "name": name} for number, name in zip(COCO_IDS, SHAPES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = directory / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return directory


def save_yolo(rows: datasets.Dataset, directory: Path, split: str = "train") -> Path:
    """`directory`/images/<split>/*.png, `directory`/labels/<split>/*.txt and `directory`/data.yaml."""
    labels = directory / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for name, row in _saved(rows, directory / "images" / split, split):
        lines = []
        for (left, top, width, height), category in zip(
            row["objects"]["bbox"], row["objects"]["category"], strict=True
        ):
            centre = (left + width / 2) / row["width"], (top + height / 2) / row["height"]
            values = *centre, width / row["width"], height / row["height"]
            lines.append(" ".join([str(category), *(f"{value:.10g}" for value in values)]))
        (labels / name).with_suffix(".txt").write_text("\n".join(lines))
    parts = sorted(path.name for path in (directory / "images").iterdir())
    lines = [f"{'val' if part == 'validation' else part}: images/{part}" for part in parts]
    names = [f"  {number}: {name}" for number, name in enumerate(SHAPES)]
    (directory / "data.yaml").write_text("\n".join(["path: .", *lines, "names:", *names]))
    return directory


def save_voc(rows: datasets.Dataset, directory: Path, split: str = "train") -> Path:
    """`directory`/JPEGImages/*.png, `directory`/Annotations/*.xml and `directory`/ImageSets/Main/<split>.txt."""
    for folder in ("Annotations", "ImageSets/Main"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    stems = []
    for name, row in _saved(rows, directory / "JPEGImages", split):
        stems.append(Path(name).stem)
        objects = []
        for (left, top, width, height), category in zip(
            row["objects"]["bbox"], row["objects"]["category"], strict=True
        ):
            edges = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}  # counted from 1
            box = "".join(f"<{edge}>{value:g}</{edge}>" for edge, value in edges.items())
            objects.append(f"<object><name>{escape(SHAPES[category])}</name><bndbox>{box}</bndbox></object>")
        size = f"<size><width>{row['width']}</width><height>{row['height']}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"
        (directory / "Annotations" / f"{stems[-1]}.xml").write_text(text)
    (directory / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return directory


def _saved(rows: datasets.Dataset, directory: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name that the picture of each row was saved under, and the row."""
    directory.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = f"{split}_{row['image_id']:05d}.png"
        row["image"].save(directory / name)
        yield name, row
