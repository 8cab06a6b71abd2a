"""Pictures with boxes: found, checked one by one, and split in train, validation and test.

`load_detections` never drops a picture or a box silently: its `DetectionReport` counts what is bad by reason and what
was changed, and names the first.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow  # type: ignore[import-untyped]

from hf_attn.training.detection_checks import CheckedSplit, check_split
from hf_attn.training.detection_classes import unified_classes
from hf_attn.training.detection_files import Source, Wanted, find_detections
from hf_attn.training.detection_objects import DetectionSplit
from hf_attn.training.detection_report import DetectionReport
from hf_attn.training.picture_data import (
    CLASSES_SHOWN,
    PLACES_SHOWN,
    check_shares,
    cut_splits,
    missing_splits,
    note_repeated,
)
from hf_attn.training.picture_files import SPLITS, Columns


def load_detections(
    data: Source,
    *,
    layout: str | None = None,
    pictures: str | Path | None = None,
    box_format: str | None = None,
    class_names: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
    max_bad_share: float = 0.0,
    image_column: str | None = None,
    objects_column: str | None = None,
    config_name: str | None = None,
) -> tuple[datasets.DatasetDict, DetectionReport]:
    """Read pictures with boxes into the splits train, validation and test.

    Their columns are `image` (decoded and turned upright when a row is read), `image_id`, `index` (the picture's
    number in its source, from which augmentation is drawn), `width` and `height` in pixels, and `objects`: a dict of
    the lists `bbox` ([x, y, width, height] in pixels of the upright picture), `category` (ClassLabel), `area` (in
    pixels²) and `iscrowd`. `data` is

    - COCO: a directory with annotations/instances_<split>.json, or with a .json file in each of the folders train,
      valid and test, or such a file itself; its pictures lie beside it or in folders named after splits, or in
      `pictures`;
    - YOLO: data.yaml, a directory with it, or one with labels/*.txt beside images/*; also outlines, of which the box
      around them is taken;
    - Pascal VOC: a directory with Annotations/*.xml, JPEGImages and ImageSets, or with .xml files beside the pictures;
    - a dataset, one saved by `save_to_disk`, a .parquet file, a directory that `datasets.load_dataset` reads, or the
      id of a dataset on the Hub, of which `config_name` chooses a configuration: with a column of pictures, and one
      of objects with `bbox` and `category`;
    - {"train": ..., "validation": ..., "test": ...}, each of them one of these.

    Args:
        layout: "coco", "yolo", "voc" or "datasets", if a directory has files of several.
        box_format: of COCO and datasets: "xywh" (left, top, width, height), "xyxy" (left, top, right, bottom) or
            "cxcywh" (centre, width, height). None: "xywh", unless the boxes only fit into the pictures as "xyxy",
            which is noted. Boxes of numbers up to 1 are taken as fractions of the picture.
        class_names: the names of the classes in their order: the same names as in the data, perhaps in another order
            and with more, or new names for all. Numbers of classes are places among them, counted from 0. Without it,
            classes keep the order of their numbers in the data, and of their names where there are no numbers.
        validation_share, test_share: of the pictures, cut from train where these splits are missing: chosen by the
            content of the pictures and `seed`, with equal pictures on the same side. A test_share of 0 cuts none.

    Pictures without objects stay: they show what is no object. Every picture is read and decoded once to see that it
    can be. Of what annotations may hold, these are counted in the report and changed: boxes that reach beyond their
    picture are cut off at its edge, those without area are left out; areas that are missing or not positive become
    the boxes' own. Crowds are kept and counted, and so are the difficult objects of VOC, as crowds.

    Pictures that EXIF turns: boxes belong to the picture as it is stored or as one sees it, whichever has the width
    and height in the annotations; where those leave it open, as most other pictures of the split do, else as it is
    stored (COCO, VOC) or as one sees it (YOLO, datasets).

    Bad pictures (damaged, missing, too large, of another size than annotated, or with an annotation that cannot be
    right) are an error that names the first, unless they are at most `max_bad_share` of a split, or `skip_bad`: then
    they are left out whole and reported, for a picture with some of its objects would teach that the others are none.
    Annotations of pictures that are not in the data are an error, too, unless `skip_bad`.

    Raises FileNotFoundError or PermissionError if there is no such data or it may not be read, and ValueError for
    data without boxes, and for classes in validation or test that train does not have.
    """
    check_shares(validation_share, test_share, max_bad_share)
    columns = Columns(image_column, objects=objects_column)
    wanted = Wanted(layout, None if pictures is None else Path(pictures), columns, config_name)
    report = DetectionReport(str(data) if isinstance(data, str | os.PathLike) else "the dataset")
    report.layout, found = find_detections(data, wanted)
    _leave_out_unlabelled(found, report)
    report.class_names, found = unified_classes(found, class_names, report)
    for split in found.values():
        _judge_without_picture(split, report, skip_bad)
    allowed = 1.0 if skip_bad else max_bad_share
    checked = {name: check_split(name, split, box_format, report, seed, allowed) for name, split in found.items()}
    train, boxes = checked["train"], {name: _boxes_by_row(split, checked[name]) for name, split in found.items()}
    if not boxes["train"]:
        raise ValueError(f"{report.data}: train has {len(train.rows):,} pictures, but no boxes to learn from")
    missing = missing_splits(found, validation_share, test_share)
    cut = cut_splits([train.rows], train.digests, missing, report, seed)
    rows = {name: split.rows for name, split in checked.items()} | cut
    note_repeated({name: split.digests for name, split in checked.items()}, rows, report)
    splits, wholes = datasets.DatasetDict(), {}
    for name in SPLITS:
        if name in rows:
            source = name if name in found else "train"
            if source not in wholes:
                wholes[source] = _as_dataset(found[source], checked[source], report.class_names)
            splits[name] = wholes[source].select(rows[name])
            _count(name, rows[name], boxes[source], report)
    return splits, report


def _leave_out_unlabelled(found: dict[str, DetectionSplit], report: DetectionReport) -> None:
    """Test sets of competitions come without annotations."""
    for name in [name for name in found if name != "train"]:
        total = len(found[name].images)
        if total and not len(found[name].objects.rows) and len(found[name].faults) == total:
            report.notes.append(f"{name}: left out, for none of its {total:,} pictures has annotations")
            del found[name]


def _judge_without_picture(split: DetectionSplit, report: DetectionReport, skip: bool) -> None:
    report.remark("annotation of a picture that is not in the data, left out", split.without_picture)
    if split.without_picture and not skip:
        shown = ", ".join(split.without_picture[:PLACES_SHOWN])
        raise ValueError(
            f"{report.data}: {len(split.without_picture):,} annotations belong to no picture of the data: {shown}; "
            "add the pictures, remove the annotations, or leave them out with skip_bad"
        )


def _boxes_by_row(split: DetectionSplit, checked: CheckedSplit) -> dict[int, Counter[int]]:
    """How many boxes of each class the pictures with boxes have; crowds are none."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    chosen = checked.kept & ~split.objects.crowd
    for row, category in zip(
        split.objects.rows[chosen].tolist(), split.objects.categories[chosen].tolist(), strict=True
    ):
        found[row][category] += 1
    return found


def _count(name: str, rows: list[int], boxes: dict[int, Counter[int]], report: DetectionReport) -> None:
    by_class: Counter[str] = Counter()
    for row in rows:
        for category, count in boxes.get(row, {}).items():
            by_class[report.class_names[category]] += count
    report.pictures[name] = len(rows)
    report.boxes[name] = by_class.total()
    report.empty[name] = sum(row not in boxes for row in rows)
    report.by_class[name] = by_class
    without = [class_name for class_name in report.class_names if not by_class[class_name]]
    if without:
        more = f" and {len(without) - CLASSES_SHOWN:,} classes more" * (len(without) > CLASSES_SHOWN)
        report.notes.append(f"{name}: no boxes of {', '.join(without[:CLASSES_SHOWN])}{more}")


# Rows


def _as_dataset(split: DetectionSplit, checked: CheckedSplit, class_names: list[str]) -> datasets.Dataset:
    """All rows of a split with the kept objects."""
    objects, boxes, count = split.objects, checked.boxes, len(checked.sizes)
    own_areas = boxes[:, 2] * boxes[:, 3]
    areas = np.where(objects.areas > 0, objects.areas, own_areas)
    areas = np.where(checked.cut_off, np.minimum(areas, own_areas), areas)
    chosen = np.flatnonzero(checked.kept)
    chosen = chosen[np.argsort(objects.rows[chosen], kind="stable")]
    offsets = np.searchsorted(objects.rows[chosen], np.arange(count + 1)).astype(np.int32)

    def lists(values: Any) -> pyarrow.ListArray:
        return pyarrow.ListArray.from_arrays(offsets, values)

    corners = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(boxes[chosen].ravel()), 4)
    parts = {
        "bbox": lists(corners),
        "category": lists(pyarrow.array(objects.categories[chosen])),
        "area": lists(pyarrow.array(areas[chosen])),
        "iscrowd": lists(pyarrow.array(objects.crowd[chosen])),
    }
    rows = np.arange(count)
    columns = {
        "image_id": rows if split.ids is None else np.array(split.ids, dtype=np.int64),
        "index": rows,
        "width": checked.sizes[:, 0],
        "height": checked.sizes[:, 1],
        "objects": pyarrow.StructArray.from_arrays(list(parts.values()), list(parts)),
    }
    dataset = split.images
    features = detection_features(class_names)
    for name, column in columns.items():
        dataset = dataset.add_column(name, column, feature=features[name])
    return dataset.cast_column("image", datasets.Image())


def detection_features(class_names: Sequence[str]) -> datasets.Features:
    """The features of rows of `load_detections`."""
    number, whole = datasets.Value("float64"), datasets.Value("int64")
    objects = {
        "bbox": datasets.List(datasets.List(number, length=4)),
        "category": datasets.List(datasets.ClassLabel(names=list(class_names))),
        "area": datasets.List(number),
        "iscrowd": datasets.List(datasets.Value("bool")),
    }
    columns = {"image_id": whole, "index": whole, "width": whole, "height": whole, "objects": objects}
    return datasets.Features({"image": datasets.Image(), **columns})
