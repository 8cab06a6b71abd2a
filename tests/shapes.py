"""Pictures to learn from in seconds: discs, squares and crosses in any colour and place, on a noisy ground."""

from collections.abc import Sequence

import datasets
import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disc", "square", "cross")
SIDE = 16  # pixels


def draw_shapes(shapes: Sequence[str], seed: int) -> Image.Image:
    """Shapes in colours and places drawn at random, the same for the same seed."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(random.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(picture)
    for shape in shapes:
        colour = tuple(random.integers(150, 256, 3).tolist())
        left, top = random.integers(1, SIDE - 10, 2).tolist()
        box = (left, top, left + 8, top + 8)
        if shape == "disc":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, outline=colour, width=2)
        else:
            draw.line(box, fill=colour, width=2)
            draw.line((left, top + 8, left + 8, top), fill=colour, width=2)
    return picture


def pictures(number: int, first_seed: int = 0, names: Sequence[str] = SHAPES) -> datasets.Dataset:
    """So many pictures, with each shape in turn; `names` are those of the classes, in the order of their numbers."""
    shapes = [SHAPES[row % 3] for row in range(number)]
    columns = {
        "image": [draw_shapes([shape], first_seed + row) for row, shape in enumerate(shapes)],
        "label": [names.index(shape) for shape in shapes],
    }
    return _dataset(columns, datasets.ClassLabel(names=list(names)))


def pictures_of_several(number: int, first_seed: int = 0) -> datasets.Dataset:
    """Pictures with none, one or two of the shapes, and the list of them."""
    sets = [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 2)]
    labels = [list(sets[row % len(sets)]) for row in range(number)]
    columns = {
        "image": [draw_shapes([SHAPES[each] for each in label], first_seed + row) for row, label in enumerate(labels)],
        "label": labels,
    }
    return _dataset(columns, datasets.List(datasets.ClassLabel(names=list(SHAPES))))


def _dataset(columns: dict, label: object) -> datasets.Dataset:
    rows = list(range(len(columns["label"])))
    features = datasets.Features({"image": datasets.Image(), "label": label, "index": datasets.Value("int64")})
    return datasets.Dataset.from_dict({**columns, "index": rows}, features)
