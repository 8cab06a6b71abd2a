"""How good a detector's boxes are: COCO's average precision and recall (Lin et al. 2014), picture by picture.

Each picture is matched as soon as it is there, by pycocotools, the code that defines these numbers. What remains of a
detection is its score, its class, and whether it was right at each overlap and in each range of sizes: 23 bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval, Params  # type: ignore[import-untyped]

# COCO's: overlaps 0.5, 0.55 ... 0.95, recalls 0, 0.01 ... 1, ranges of areas in pixels², numbers of detections
COCO = Params(iouType="bbox")
SIZES = tuple(COCO.areaRngLbl)  # all, small, medium, large
FEW, SOME, MOST_DETECTIONS = COCO.maxDets  # of a class in a picture: 1, 10, 100
OVERLAPS = len(COCO.iouThrs)
AT_50, AT_75 = 0, 5  # places among the overlaps

# A detection, once its picture is matched. Of `right` and `counted`, bit t of number a is for overlap t and sizes a.
FOUND = np.dtype(
    [
        ("score", "<f4"),
        ("label", "<u2"),
        ("rank", "u1"),  # among the detections of its class in its picture
        ("right", "<u2", len(SIZES)),
        ("counted", "<u2", len(SIZES)),  # as right or wrong: neither on a crowd nor of another size
    ]
)
BITS = 1 << np.arange(OVERLAPS)

Boxes = Mapping[str, torch.Tensor | NDArray]
Arrays = dict[str, NDArray]


class CocoMetrics:
    """COCO's metrics of pictures that are added one by one; nothing that is added is kept as it was.

    A picture costs `FOUND.itemsize` = 23 bytes a detection, of which the 100 likeliest of a class are kept: 2.3 kB for
    100 detections. Its boxes, and classes that it does not have, cost nothing. `compute` takes up to 75 bytes more a
    detection while it runs.

    Detections of equal score count in the order of their pictures.

    Args:
        names: of the classes, in the order of their numbers.

    Raises:
        ValueError: if there are no names, or one is there twice.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"classes {self.names} must be one or more names, each of them once")
        self.pictures = 0
        self.boxes = 0
        self.there = np.zeros((len(self.names), len(SIZES)), np.int64)  # boxes to be found, by class and size
        self.found = bytearray()  # rows of FOUND
        self.matcher = ClassMatcher()

    def __len__(self) -> int:
        return self.pictures

    def add(self, prediction: Boxes, target: Boxes) -> None:
        """Take in one picture.

        Args:
            prediction: `scores` (k,), `labels` (k,) and `boxes` (k, 4), xyxy in pixels of the original picture, in any
                order. Those that are not finite numbers find nothing.
            target: `labels` (n,), `boxes` (n, 4) likewise, `area` (n,) in pixels², by default that of the boxes, and
                `iscrowd` (n,), by default none. What lies on a crowd of its class is neither right nor wrong.

        Raises:
            ValueError: for numbers that do not belong together, a class without a name, or boxes that are not xyxy.
        """
        place = f"picture {self.pictures}, counted from 0"
        truths = _truths(target, f"{place}: box", len(self.names))
        detections = _detections(prediction, f"{place}: detection", len(self.names))
        to_find = _in_ranges(truths["area"]) & (truths["iscrowd"] == 0)[:, None]
        np.add.at(self.there, truths["labels"], to_find.astype(np.int64))
        self.found += self._matched(detections, truths).tobytes()
        self.boxes += int((truths["iscrowd"] == 0).sum())
        self.pictures += 1

    def _matched(self, detections: Arrays, truths: Arrays) -> NDArray:
        """(detections,) FOUND"""
        labels = detections["labels"]
        right = np.zeros((len(labels), len(SIZES), OVERLAPS), bool)
        counted = np.repeat(_in_ranges(_areas(detections["boxes"]))[..., None], OVERLAPS, axis=-1)
        for label in np.intersect1d(labels, truths["labels"]):
            rows, boxes = np.flatnonzero(labels == label), truths["labels"] == label
            own = {name: values[rows] for name, values in detections.items()}
            near, *match = self.matcher.match(own, {name: values[boxes] for name, values in truths.items()})
            right[rows[near]], counted[rows[near]] = match
        found = np.empty(len(labels), FOUND)
        found["score"], found["label"], found["rank"] = detections["scores"], labels, detections["rank"]
        found["right"], found["counted"] = right @ BITS, counted @ BITS
        return found

    def state(self) -> dict[str, Any]:
        """What another process needs to `merge` these pictures; it can be pickled."""
        return {
            "names": self.names,
            "pictures": self.pictures,
            "boxes": self.boxes,
            "there": self.there,
            "found": bytes(self.found),
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the pictures of another process, by its `state`.

        Raises:
            ValueError: if they were measured by other classes.
        """
        if state["names"] != self.names:
            raise ValueError(f"pictures measured by classes {state['names']} do not go with classes {self.names}")
        self.pictures += state["pictures"]
        self.boxes += state["boxes"]
        self.there = self.there + state["there"]
        self.found += state["found"]

    def compute(self) -> dict[str, Any]:
        """COCO's metrics of the pictures added so far.

        Returns:
            Numbers from 0 to 1, or None where there is nothing to be found, which counts in no mean: `ap`, average
            precision, the mean over overlaps (intersection over union) of 0.5 to 0.95 and over the classes; `ap50` and
            `ap75`, at these overlaps; `ap_small` (areas up to 32² pixels), `ap_medium` and `ap_large` (from 96² on);
            `ar_1`, `ar_10` and `ar_100`, average recall of so many detections of a class in each picture; `ar_small`,
            `ar_medium`, `ar_large`; `class_ap` and `class_ap50` by name. And the numbers of `pictures` and of `boxes`,
            crowds not counted.

        Raises:
            ValueError: if there are no pictures.
        """
        if not self.pictures:
            raise ValueError("0 pictures have no average precision; add at least one")
        precision, recall, recall_of_few = self._averages()
        sizes = list(enumerate(SIZES))[1:]
        return {
            "ap": _mean(precision[:, 0]),
            "ap50": _mean(precision[:, 0, AT_50]),
            "ap75": _mean(precision[:, 0, AT_75]),
            **{f"ap_{size}": _mean(precision[:, place]) for place, size in sizes},
            f"ar_{FEW}": _mean(recall_of_few[:, 0]),
            f"ar_{SOME}": _mean(recall_of_few[:, 1]),
            f"ar_{MOST_DETECTIONS}": _mean(recall[:, 0]),
            **{f"ar_{size}": _mean(recall[:, place]) for place, size in sizes},
            "class_ap": {name: _mean(own[0]) for name, own in zip(self.names, precision, strict=True)},
            "class_ap50": {name: _mean(own[0, AT_50]) for name, own in zip(self.names, precision, strict=True)},
            "pictures": self.pictures,
            "boxes": self.boxes,
        }

    def _averages(self) -> tuple[NDArray, NDArray, NDArray]:
        """Average precision and recall (classes, sizes, overlaps), and the recall of 1 and of 10 detections (classes,
        2, overlaps); NaN where there is nothing to be found."""
        found = np.frombuffer(self.found, FOUND)
        order = np.lexsort((-found["score"], found["label"]))  # class by class, the likeliest first
        ends = np.cumsum(np.bincount(found["label"], minlength=len(self.names)))
        precision, recall = (np.full((*self.there.shape, OVERLAPS), np.nan) for _ in range(2))
        recall_of_few = np.full((len(self.names), 2, OVERLAPS), np.nan)
        for label, size in zip(*self.there.nonzero(), strict=True):
            rows = found[order[ends[label - 1] if label else 0 : ends[label]]]
            for overlap in range(OVERLAPS):
                right, counted = ((rows[name][:, size] >> overlap & 1).astype(bool) for name in ("right", "counted"))
                there = self.there[label, size]
                precision[label, size, overlap] = interpolated_precision(right[counted], there)
                recall[label, size, overlap] = right.sum() / there
                if size == 0:
                    ranks = rows["rank"][right]
                    recall_of_few[label, :, overlap] = [(ranks < most).sum() / there for most in (FEW, SOME)]
        return precision, recall, recall_of_few


class ClassMatcher(COCOeval):
    """pycocotools' matching, of the detections of one class in one picture."""

    def __init__(self) -> None:
        super().__init__(iouType="bbox")

    def match(self, detections: Arrays, truths: Arrays) -> tuple[NDArray, NDArray, NDArray]:
        """Match some detections, in the order of their scores.

        Args:
            detections: `scores` (k,) and `boxes` (k, 4), xyxy.
            truths: `boxes` (n, 4), `area` (n,) and `iscrowd` (n,).

        Returns:
            (near,) the places of those detections that lie on a box well enough for the lowest overlap: the others
            match nothing, and leaving them out saves most of the time. And two of (near, sizes, overlaps): whether
            they are right, and whether they count at all.
        """
        crowd = truths["iscrowd"].tolist()
        ious = np.asarray(mask.iou(_xywh(detections["boxes"]), _xywh(truths["boxes"]), crowd))
        reached = ious >= self.params.iouThrs[0]
        near, touched = (np.flatnonzero(reached.any(axis=axis)) for axis in (1, 0))
        # The fields of COCO's annotations that evaluateImg reads; an id of 0 would be no match
        scores, areas = detections["scores"][near], _areas(detections["boxes"][near])
        self._dts[0, 0] = [
            {"id": place, "score": score, "area": area}
            for place, (score, area) in enumerate(zip(scores, areas, strict=True), 1)
        ]
        self._gts[0, 0] = [
            {"id": place + 1, "area": truths["area"][place], "iscrowd": crowd[place], "ignore": crowd[place]}
            for place in touched
        ]
        self.ious[0, 0] = ious[np.ix_(near, touched)]
        right, counted = (np.zeros((len(near), len(SIZES), OVERLAPS), bool) for _ in range(2))
        for size, area_range in enumerate(self.params.areaRng if len(near) else []):
            found = self.evaluateImg(0, 0, area_range, MOST_DETECTIONS)
            counted[:, size] = ~found["dtIgnore"].T.astype(bool)
            right[:, size] = (found["dtMatches"].T > 0) & counted[:, size]
        return near, right, counted


def interpolated_precision(right: NDArray[np.bool_], there: int) -> float:
    """The mean of the precision at COCO's 101 recalls: at each the best that this recall or a higher one has.

    Args:
        right: (detections,) the likeliest first.
        there: how many there are to be found.
    """
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 at recalls that are never reached
    return float(best[np.searchsorted(found / there, COCO.recThrs)].mean())


# What is added, checked


def _truths(target: Boxes, what: str, classes: int) -> Arrays:
    boxes = _array(target["boxes"]).astype(np.float64).reshape(-1, 4)
    truths: Arrays = {
        "labels": _array(target["labels"]).astype(np.int64),
        "boxes": boxes,
        "area": _array(target["area"]).astype(np.float64) if "area" in target else _areas(boxes),
        "iscrowd": (_array(target["iscrowd"]) != 0).astype(int) if "iscrowd" in target else np.zeros(len(boxes), int),
    }
    _check(truths, what, classes)
    return truths


def _detections(prediction: Boxes, what: str, classes: int) -> Arrays:
    """`scores`, `labels`, `boxes` and `rank` in the class, class by class, of each the 100 likeliest, they first."""
    detections: Arrays = {
        "scores": _array(prediction["scores"]).astype(np.float32),
        "labels": _array(prediction["labels"]).astype(np.int64),
        "boxes": _array(prediction["boxes"]).astype(np.float64).reshape(-1, 4),
    }
    _check_lengths(detections, what)
    finite = np.isfinite(detections["scores"]) & np.isfinite(detections["boxes"]).all(axis=1)
    detections = {name: values[finite] for name, values in detections.items()}
    _check(detections, what, classes)
    order = np.lexsort((-detections["scores"], detections["labels"]))
    labels = detections["labels"][order]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    kept = rank < MOST_DETECTIONS
    return {name: values[order[kept]] for name, values in detections.items()} | {"rank": rank[kept]}


def _check(boxes: Arrays, what: str, classes: int) -> None:
    _check_lengths(boxes, what)
    labels, edges = boxes["labels"], boxes["boxes"]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"{what} {wrong[0]} is of class {labels[wrong[0]]}; there are names for 0 to {classes - 1}")
    wrong = np.flatnonzero(~((edges[:, 2:] >= edges[:, :2]) & np.isfinite(edges[:, :2] + edges[:, 2:])).all(axis=1))
    if len(wrong):
        values = ", ".join(f"{edge:g}" for edge in edges[wrong[0]])
        raise ValueError(f"{what} {wrong[0]} is ({values}), not left, top, right, bottom in pixels")


def _check_lengths(boxes: Arrays, what: str) -> None:
    number = len(boxes["boxes"])
    for name, values in boxes.items():
        if name != "boxes" and values.shape != (number,):
            raise ValueError(f"{what}: {name} are {values.shape} for {number} boxes; they must be ({number},)")


def _array(values: torch.Tensor | NDArray) -> NDArray:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    return (values.double() if values.is_floating_point() else values).detach().cpu().numpy()


def _xywh(boxes: NDArray) -> NDArray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _areas(boxes: NDArray) -> NDArray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _in_ranges(areas: NDArray) -> NDArray[np.bool_]:
    """(n,) → (n, sizes); an area at the border of two ranges is in both, as pycocotools has it."""
    low, high = np.array(COCO.areaRng).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _mean(values: NDArray) -> float | None:
    """Of those that are numbers."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
