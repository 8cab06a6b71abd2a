"""Whether annotations fit their pictures, and the boxes in one form: pixels of the upright picture, inside of it."""

from typing import NamedTuple

import numpy as np

from hf_attn.training.detection_objects import (
    BOX_FORMATS,
    ROUNDING,
    DetectionSplit,
    box_faults,
    boxes_in_pixels,
    clipped_boxes,
    likely_format,
    turned_boxes,
)
from hf_attn.training.detection_report import DetectionReport
from hf_attn.training.picture_data import good_rows, inspect_all

SIDEWAYS = 5  # EXIF's turns from here on exchange width and height


class CheckedSplit(NamedTuple):
    """The good pictures of a split and their boxes."""

    rows: list[int]
    digests: dict[int, bytes]  # of the content of each row: equal pictures have equal ones
    sizes: np.ndarray  # (all pictures, 2) width and height of the upright pictures
    boxes: np.ndarray  # (n, 4) [x, y, width, height] of all objects in pixels inside of the upright pictures
    cut_off: np.ndarray  # (n,) where that changed more than rounding does
    kept: np.ndarray  # (n,) objects of good pictures that have an area


def check_split(
    name: str, split: DetectionSplit, box_format: str | None, report: DetectionReport, seed: int, allowed: float
) -> CheckedSplit:
    """Open every picture of a split and compare it with its annotations; reports what is bad and what is changed.

    Raises ValueError if more than the `allowed` share of the pictures is bad.
    """
    findings = inspect_all(split.images, seed, f"Checking {name} pictures")
    stored = np.array([finding.size for finding in findings], dtype=np.int64).reshape(-1, 2)
    orientations = np.array([finding.orientation for finding in findings], dtype=np.int64)
    sizes = np.where((orientations >= SIDEWAYS)[:, None], stored[:, ::-1], stored)
    faults = [
        (split.faults[row], "") if row in split.faults else (finding.reason, finding.detail)
        for row, finding in enumerate(findings)
    ]
    _compare_sizes(split, stored, sizes, faults)
    boxes = _upright_boxes(name, split, box_format, stored, orientations, report)
    object_rows = split.objects.rows
    _judge_objects(split, boxes, sizes[object_rows], faults)
    rows = good_rows(name, faults, split.place, report, allowed)
    good = np.isin(object_rows, rows)
    boxes, beyond = clipped_boxes(boxes, sizes[object_rows])
    with_area = (boxes[:, 2:] > 0).all(1)
    cut_off, kept = beyond > ROUNDING, good & with_area
    for what, chosen in {
        "box reaches beyond its picture, cut off at the edge": cut_off & kept,
        "box without area, left out": good & ~with_area,
        "crowd, kept as such": split.objects.crowd & kept,
    }.items():
        report.remark(what, [split.object_place(number) for number in np.flatnonzero(chosen).tolist()])
    for what, places in split.remarks.items():
        report.remark(what, places)
    return CheckedSplit(rows, {row: findings[row].digest for row in rows}, sizes, boxes, cut_off, kept)


def _compare_sizes(
    split: DetectionSplit, stored: np.ndarray, sizes: np.ndarray, faults: list[tuple[str, str]]
) -> None:
    """Faults of pictures that are neither stored nor seen in the size that their annotations name."""
    if split.sizes is None:
        return
    named = (split.sizes > 0).all(1)
    differ = named & (split.sizes != stored).any(1) & (split.sizes != sizes).any(1)
    for row in np.flatnonzero(differ).tolist():
        if not faults[row][0]:
            (width, height), (own_width, own_height) = split.sizes[row], sizes[row]
            detail = f"{width}x{height} annotated, {own_width}x{own_height} in the file"
            faults[row] = "width and height differ from the annotated ones", detail


def _upright_boxes(
    name: str,
    split: DetectionSplit,
    box_format: str | None,
    stored: np.ndarray,
    orientations: np.ndarray,
    report: DetectionReport,
) -> np.ndarray:
    """(n, 4) [x, y, width, height] in pixels of the upright pictures."""
    turned = _are_as_stored(split, stored, orientations)
    rows = split.objects.rows
    annotated_in = np.where((~turned & (orientations >= SIDEWAYS))[:, None], stored[:, ::-1], stored)[rows]
    boxes = _in_pixels(name, split, box_format, annotated_in, report)
    report.remark(
        "picture turned as its EXIF says, and its boxes with it",
        [split.place(row) for row in np.intersect1d(np.flatnonzero(turned), rows).tolist()],
    )
    return turned_boxes(boxes, stored[rows], np.where(turned, orientations, 1)[rows])


def _are_as_stored(split: DetectionSplit, stored: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """(pictures,) True where EXIF turns the picture, and annotations are of the picture before."""
    turned = orientations > 1
    named = np.zeros_like(stored) if split.sizes is None else split.sizes
    tells = turned & (orientations >= SIDEWAYS) & (stored[:, 0] != stored[:, 1]) & (named > 0).all(1)
    as_stored = tells & (named == stored).all(1)
    as_seen = tells & (named == stored[:, ::-1]).all(1)
    usual = as_stored.sum() > as_seen.sum() or (as_stored.sum() == as_seen.sum() and not split.upright)
    return turned & (as_stored | (~as_seen & usual))


def _in_pixels(
    name: str, split: DetectionSplit, box_format: str | None, sizes: np.ndarray, report: DetectionReport
) -> np.ndarray:
    """(n, 4) [x, y, width, height] in pixels of pictures of (n, 2) width and height."""
    if box_format is not None and (box_format not in BOX_FORMATS or split.box_format):
        there = "is known for this layout" if split.box_format else f"is not one of {', '.join(BOX_FORMATS)}"
        raise ValueError(f"box_format {box_format!r}: the format {there}")
    boxes = split.objects.boxes
    known = np.isfinite(boxes).all(1) & (sizes > 0).all(1)
    fractions = split.fractions
    if fractions is None:
        fractions = bool(known.any()) and bool((boxes[known] <= 1).all())
        if fractions:
            report.notes.append(f"{name}: no number of a box exceeds 1, so they are taken as fractions of the picture")
    chosen = split.box_format or box_format
    if chosen is None:
        chosen = likely_format(boxes[known] * (np.tile(sizes[known], 2) if fractions else 1), sizes[known])
        if chosen != "xywh":
            report.notes.append(
                f"{name}: boxes are taken as left, top, right, bottom, for as left, top, width, height most are not "
                "inside of their pictures; box_format chooses"
            )
    return boxes_in_pixels(boxes, chosen, fractions, sizes)


def _judge_objects(split: DetectionSplit, boxes: np.ndarray, sizes: np.ndarray, faults: list[tuple[str, str]]) -> None:
    """Faults of pictures with an object that cannot be right."""
    opened = (sizes > 0).all(1)
    reasons = {"class of an object is unknown": split.objects.categories < 0, **box_faults(boxes, sizes)}
    for reason, wrong in reasons.items():
        for number in np.flatnonzero(wrong & opened).tolist():
            row = split.objects.rows[number]
            if not faults[row][0]:
                values = ", ".join(f"{value:g}" for value in split.objects.boxes[number])
                faults[row] = reason, f"{split.object_place(number)}: [{values}]"
