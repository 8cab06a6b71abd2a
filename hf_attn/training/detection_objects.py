"""Objects in pictures as their annotations give them, and what makes boxes of them: [x, y, width, height] in pixels.

A split holds its objects in flat arrays, whatever the format of their file; checks and conversions are over all of
them at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np

BOX_FORMATS = ("xywh", "xyxy", "cxcywh")  # left, top, width, height; left, top, right, bottom; centre, width, height
ROUNDING = 0.01  # pixels that a box may reach beyond its picture without being counted: files hold rounded numbers
FRACTION_ROUNDING = 1e-3  # the same for fractions of a side
NUMBERS = frozenset((int, float))  # and not bool, which Python counts among them


class Objects(NamedTuple):
    """All objects of a split, n of them, in the order of their pictures."""

    rows: np.ndarray  # (n,) the picture of each
    boxes: np.ndarray  # (n, 4) float64 in the format of the split, nan where there were not four numbers
    categories: np.ndarray  # (n,) the place of its class in the names of the split, -1 if that is not one of them
    areas: np.ndarray  # (n,) float64 in pixels², nan where the data do not say
    crowd: np.ndarray  # (n,) whether it is a crowd, whose single objects are not marked


class DetectionSplit(NamedTuple):
    """The pictures of a split and the objects in them, as they were found."""

    images: datasets.Dataset  # one column `image`, undecoded: {"bytes", "path"}
    objects: Objects
    names: list[str]  # of the classes, in the order of their numbers where they have any
    place: Callable[[int], str]  # what to call a row in a message
    object_place: Callable[[int], str]  # what to call an object
    box_format: str | None = None  # of BOX_FORMATS; None: xywh or xyxy, as they fit
    fractions: bool | None = None  # boxes are fractions of the sides; None: if none exceeds 1
    upright: bool = True  # boxes are of the picture as EXIF turns it, where the data leave that open
    order: str = "declared"  # of the names; "by name" or "by number" where the data have nothing else
    sizes: np.ndarray | None = None  # (pictures, 2) width and height as annotated, 0 where they are not
    ids: Sequence[int] | None = None  # of the pictures, where they are numbers and the data have them
    faults: dict[int, str] = {}  # rows that hold no picture or no annotation that can be read, and why
    remarks: dict[str, list[str]] = {}  # what was met that is no fault, and where
    without_picture: list[str] = []  # annotations whose picture is not in the data


class ObjectList:
    """Collects the objects of a split one by one."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.boxes: list[Any] = []
        self.categories: list[int] = []
        self.areas: list[Any] = []
        self.crowd: list[bool] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, box: Any, category: int, area: Any = None, crowd: Any = False) -> None:
        """`box` should be four numbers, and `area` one if the data have it."""
        self.rows.append(row)
        self.boxes.append(box)
        self.categories.append(category)
        self.areas.append(area)
        self.crowd.append(bool(crowd))

    def arrays(self) -> Objects:
        boxes = np.array([_four_numbers(box) for box in self.boxes], dtype=np.float64).reshape(-1, 4)
        boxes[~np.isfinite(boxes).all(1)] = np.nan
        rows, categories = np.array(self.rows, dtype=np.int64), np.array(self.categories, dtype=np.int64)
        areas = np.array([area if type(area) in NUMBERS else np.nan for area in self.areas], dtype=np.float64)
        return Objects(rows, boxes, categories, areas, np.array(self.crowd, dtype=bool))


def _four_numbers(box: Any) -> Sequence[float]:
    is_box = isinstance(box, list | tuple) and len(box) == 4 and NUMBERS.issuperset(map(type, box))
    return box if is_box else [np.nan] * 4


# Boxes in pixels


def boxes_in_pixels(boxes: np.ndarray, box_format: str, fractions: bool, sizes: np.ndarray) -> np.ndarray:
    """(n, 4) [x, y, width, height] of (n, 4) boxes in pictures of (n, 2) width and height."""
    scaled = boxes * np.tile(sizes, 2) if fractions else boxes
    first, second = scaled[:, :2], scaled[:, 2:]
    if box_format == "xyxy":
        return np.hstack([first, second - first])
    if box_format == "cxcywh":
        return np.hstack([first - second / 2, second])
    return scaled


def likely_format(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """ "xyxy" for boxes in pixels that fit as such and not as "xywh" into their pictures of (n, 2) width and height.

    Read as [x, y, width, height], a box [left, top, right, bottom] whose centre is in the right or lower half of its
    picture ends outside of it; and read the other way round, few boxes have a right edge that is right of their left.
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    fits = (first + second <= 1.05 * sizes).all(1), ((second >= first) & (second <= 1.05 * sizes)).all(1)
    return "xyxy" if len(boxes) and fits[0].mean() < 0.75 and fits[1].mean() > 0.95 else "xywh"


def turned_boxes(boxes: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """(n, 4) boxes [x, y, width, height] in the pictures after EXIF has turned them.

    Args:
        sizes: (n, 2) width and height of the pictures before.
        orientations: (n,) 1 to 8, EXIF's number of the turn.
    """
    x, y, width, height = boxes.T
    right, bottom = sizes[:, 0] - x - width, sizes[:, 1] - y - height  # distances from the other edges
    turned = {
        2: (right, y, width, height),
        3: (right, bottom, width, height),
        4: (x, bottom, width, height),
        5: (y, x, height, width),
        6: (bottom, x, height, width),
        7: (bottom, right, height, width),
        8: (y, right, height, width),
    }
    result = boxes.copy()
    for orientation, edges in turned.items():
        chosen = orientations == orientation
        result[chosen] = np.stack(edges, axis=1)[chosen]
    return result


def clipped_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) boxes [x, y, width, height] without what is outside of their pictures; (n,) how many pixels that was."""
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    beyond = np.maximum(-first, last - sizes).max(1, initial=0)
    first = np.clip(first, 0, sizes)
    inside = np.hstack([first, np.clip(last, 0, sizes) - first])
    return np.where(beyond[:, None] > 0, inside, boxes), beyond  # x + width - x need not be the width again


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Which (n, 4) boxes [x, y, width, height] in pixels cannot be right, by reason."""
    x, y, width, height = boxes.T
    outside = (x >= sizes[:, 0]) | (y >= sizes[:, 1]) | (x + width <= 0) | (y + height <= 0)
    with_area = (width > 0) & (height > 0)
    return {
        "box is not four finite numbers": ~np.isfinite(boxes).all(1),
        "box of negative width or height": (width < 0) | (height < 0),
        "box lies outside of its picture": outside & with_area,
    }
