"""Labelled pictures: found, opened one by one to see that they can be, and split in train, validation and test.

`load_pictures` never drops a picture silently: its `PictureReport` counts the bad ones by reason and names the first.
"""

import hashlib
import io
import itertools
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image, UnidentifiedImageError

from hf_attn.image_processing_inputs import EXIF_ORIENTATION
from hf_attn.training.picture_files import SPLITS, Columns, Label, PictureSplit, find_splits

PLACES_SHOWN = 3
CLASSES_SHOWN = 20
PICTURES_PER_TASK = 32  # of a thread: for small pictures, handing them over takes longer than opening them
# What Pillow's readers let out when a file is damaged; the last two when its header names absurd sizes
DECODING_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError)
DECODING_ERRORS += (struct.error, zlib.error, OverflowError, MemoryError)


@dataclass
class DataReport:
    """What was kept of data made of pictures, what was dropped and why, and how it was split."""

    data: str
    class_names: list[str] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)  # of each split
    by_class: dict[str, Counter[str]] = field(default_factory=dict)  # how many of each split and class
    dropped: Counter[str] = field(default_factory=Counter)  # pictures by reason
    first_dropped: dict[str, list[str]] = field(default_factory=dict)  # the first files by reason
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, place: str) -> None:
        """Count a bad picture."""
        self.dropped[reason] += 1
        places = self.first_dropped.setdefault(reason, [])
        if len(places) < PLACES_SHOWN:
            places.append(place)

    def faults(self) -> list[str]:
        """One text for each reason, the most frequent first."""
        return counted(self.dropped, self.first_dropped)

    def class_lines(self) -> list[str]:
        """A line for each of the first classes."""
        lines = [
            f"  {name}: " + ", ".join(f"{count[name]:,} {split}" for split, count in self.by_class.items())
            for name in self.class_names[:CLASSES_SHOWN]
        ]
        if len(self.class_names) > CLASSES_SHOWN:
            lines.append(f"  and {len(self.class_names) - CLASSES_SHOWN:,} classes more")
        return lines


@dataclass
class PictureReport(DataReport):
    """What `load_pictures` kept of the data, what it dropped and why, and how it was split."""

    multi_label: bool = False

    def __str__(self) -> str:
        kept = ", ".join(f"{count:,} {split}" for split, count in self.pictures.items())
        several = ", several of them a picture" if self.multi_label else ""
        first = f"{self.data}: pictures of {len(self.class_names):,} classes{several}: {kept}"
        return "\n".join([first, *self.class_lines(), *self.notes, *(f"dropped {fault}" for fault in self.faults())])


def counted(counts: Counter[str], first: Mapping[str, Sequence[str]]) -> list[str]:
    """One text for each thing that was counted, with its first places, the most frequent first."""
    return [
        f"{count:,} x {what}: {', '.join(first[what])}{', ...' * (count > len(first[what]))}"
        for what, count in counts.most_common()
    ]


class Checked(NamedTuple):
    """The good pictures of a split."""

    split: PictureSplit
    rows: list[int]
    digests: dict[int, bytes]  # of the content of each row: equal pictures have equal ones


def load_pictures(
    data: str | Path | datasets.Dataset | datasets.DatasetDict,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
    max_bad_share: float = 0.0,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    config_name: str | None = None,
) -> tuple[datasets.DatasetDict, PictureReport]:
    """Read labelled pictures into the splits train, validation and test.

    Their columns are `image` (decoded when a row is read), `label` (a ClassLabel, or a list of them for pictures with
    several labels) and `index`, the picture's number in its source, from which augmentation is drawn. `data` is

    - a directory with a folder for each class, or of folders train, validation (valid, val, dev) and test with those;
    - a `.csv`, `.tsv` or `.jsonl` file with a column of paths, relative to the file, and one of labels: names or
      numbers, several separated by "|", or in a list in JSON; or a directory of such files named after splits;
    - a `.parquet` file with pictures, the bytes of their files, or paths;
    - a directory of `train-images-idx3-ubyte.gz` and so on, as MNIST and Fashion-MNIST ship;
    - a dataset, one saved by `save_to_disk`, a directory that `datasets.load_dataset` reads, or the id of a dataset on
      the Hub, of which `config_name` chooses a configuration.

    Columns are found by their usual names (image, img, picture, file, path, ...; label, labels, class, target,
    fine_label) or chosen by `image_column` and `label_column`. Names of classes are sorted, numbers by value, unless
    the data declare their order; `class_names` gives names to numbers.

    Every picture is read and decoded once to see that it can be. Splits that are missing are cut from train: a share
    of each class, chosen by the content of the pictures and `seed`, hence the same whatever their files are called and
    equal pictures on the same side. With `test_share=0` no test split is cut.

    Bad pictures (damaged, no pictures, missing, too large, without label) are an error that names the first, unless
    they are at most `max_bad_share` of a split, or `skip_bad`: then they are left out and reported.

    Raises FileNotFoundError or PermissionError if there is no such data or it may not be read, and ValueError for
    data without labels or with one class only, and for labels of validation or test that train does not have.
    """
    check_shares(validation_share, test_share, max_bad_share)
    report = PictureReport(str(data) if isinstance(data, str | os.PathLike) else "the dataset")
    found = find_splits(data, Columns(image_column, label_column), config_name)
    _leave_out_unlabelled(found, report)
    if class_names is not None:
        found = {name: _renamed(split, class_names) for name, split in found.items()}
    report.multi_label = any(isinstance(label, list) for split in found.values() for label in split.labels)
    checked = {
        name: _check_pictures(name, split, report, seed, 1.0 if skip_bad else max_bad_share)
        for name, split in found.items()
    }
    report.class_names = _class_names(checked, report)
    train = checked["train"]
    missing = missing_splits(found, validation_share, test_share)
    cut = cut_splits(_rows_by_class(train, report), train.digests, missing, report, seed)
    rows = {name: split.rows for name, split in checked.items()} | cut
    note_repeated({name: split.digests for name, split in checked.items()}, rows, report)
    splits = datasets.DatasetDict()
    for name in SPLITS:
        if name in rows:
            source = checked.get(name, train).split
            splits[name] = _as_dataset(source, report).select(rows[name])
            report.pictures[name] = len(rows[name])
            report.by_class[name] = Counter(label for row in rows[name] for label in _names(source.labels[row]))
    return splits, report


def check_shares(validation_share: float, test_share: float, max_bad_share: float) -> None:
    """Raises ValueError for a share out of its range."""
    if not 0 < validation_share < 0.5 or not 0 <= test_share < 0.5 or not 0 <= max_bad_share <= 1:
        raise ValueError(
            f"validation_share {validation_share} and test_share {test_share} must be shares below 0.5 and "
            f"max_bad_share {max_bad_share} one up to 1"
        )


def _names(label: Label) -> list[str]:
    return label if isinstance(label, list) else [label or ""]


# Labels


def _leave_out_unlabelled(found: dict[str, PictureSplit], report: PictureReport) -> None:
    """Test sets of competitions come without labels."""
    for name in [name for name in found if name != "train"]:
        if found[name].labels and all(label is None for label in found[name].labels):
            report.notes.append(f"{name}: left out, for none of its {len(found[name].labels):,} pictures has a label")
            del found[name]


def _renamed(split: PictureSplit, names: Sequence[str]) -> PictureSplit:
    """Class numbers as names."""

    def name(label: Label) -> Label:
        if label is None:
            return None
        if isinstance(label, list):
            return [str(name(single)) for single in label]
        if not label.isdigit() or int(label) >= len(names):
            raise ValueError(f"label {label} is not the number of one of the {len(names)} class_names, counted from 0")
        return names[int(label)]

    return split._replace(labels=[name(label) for label in split.labels], class_names=list(names))


def _class_names(checked: dict[str, Checked], report: PictureReport) -> list[str]:
    """Names of all classes in their order; checks that there are several, and no others in validation and test."""
    train = checked["train"]
    there = {name for row in train.rows for name in _names(train.split.labels[row])}
    if len(there) < 2:
        found = f"the only class is {min(there)}" if there else "there are no pictures"
        raise ValueError(f"{report.data}: {found}; to tell classes apart, pictures of at least two are needed")
    declared = train.split.class_names
    for split, pictures in checked.items():
        for row in pictures.rows:
            unknown = set(_names(pictures.split.labels[row])) - {*declared, *there}
            if unknown:
                raise ValueError(
                    f"{pictures.split.place(row)}: {split} has the label {min(unknown)}, but train does not; add "
                    "pictures of it to train or remove it"
                )
    without = [name for name in declared if name not in there]
    if without:
        report.notes.append(f"train: no pictures of {', '.join(without)}")
    numbers = all(name.isdecimal() for name in there)
    return list(declared) or sorted(there, key=lambda name: (int(name) if numbers else 0, name))


def _as_dataset(split: PictureSplit, report: PictureReport) -> datasets.Dataset:
    """All rows of a split with labels as class numbers, those of bad pictures as 0."""
    numbers = {name: number for number, name in enumerate(report.class_names)}
    feature: Any = datasets.ClassLabel(names=report.class_names)
    if report.multi_label:
        labels: list = [[numbers.get(name, 0) for name in _names(label)] for label in split.labels]
        feature = datasets.List(feature)
    else:
        labels = [numbers.get(label, 0) for label in split.labels]  # type: ignore[arg-type]
    dataset = split.images.add_column("label", labels, feature=feature)
    dataset = dataset.add_column("index", list(range(len(labels))), feature=datasets.Value("int64"))
    return dataset.cast_column("image", datasets.Image())


# Opening every picture


def _check_pictures(name: str, split: PictureSplit, report: PictureReport, seed: int, allowed: float) -> Checked:
    """The good pictures of a split; reports the bad ones, or raises ValueError if they are more than allowed."""
    findings = inspect_all(split.images, seed, f"Checking {name} pictures")
    faults = [
        (split.faults.get(row) or finding.reason or "label is missing" * (split.labels[row] is None), finding.detail)
        for row, finding in enumerate(findings)
    ]
    rows = good_rows(name, faults, split.place, report, allowed)
    return Checked(split, rows, {row: findings[row].digest for row in rows})


def good_rows(
    name: str,
    faults: Sequence[tuple[str, str]],
    place: Callable[[int], str],
    report: DataReport,
    allowed: float,
) -> list[int]:
    """The rows of a split without a fault, of (reason, detail) for each row; reports the others.

    Raises ValueError if the bad pictures are more than the `allowed` share, or if there is no good one.
    """
    bad = DataReport(report.data)
    rows = []
    for row, (reason, detail) in enumerate(faults):
        if reason:
            where = place(row) + (f" ({detail})" if detail else "")
            bad.drop(reason, where)
            report.drop(reason, where)
        else:
            rows.append(row)
    count, total = bad.dropped.total(), len(faults)
    if count > allowed * total:
        raise ValueError(
            f"{report.data}: {count:,} of {total:,} {name} pictures are bad: {'; '.join(bad.faults())}; correct or "
            "remove them, or leave them out with skip_bad or max_bad_share"
        )
    if not rows:
        raise ValueError(f"{report.data}: {name} has no pictures that can be used of {total:,}; add some")
    return rows


class Finding(NamedTuple):
    """What opening a picture showed: a reason if it is bad."""

    digest: bytes = b""
    reason: str = ""
    detail: str = ""
    size: tuple[int, int] = (0, 0)  # (width, height) as stored
    orientation: int = 1  # of EXIF: how the stored picture is to be turned


def inspect_all(images: datasets.Dataset, seed: int, description: str) -> list[Finding]:
    """Decode every picture, in threads, for Pillow decodes without holding Python's lock; keeps no pixels."""
    findings: list[Finding] = []
    threads = 4 * (os.cpu_count() or 1)  # waiting for the disk, some of them
    with (
        warnings.catch_warnings(),  # here and not in the threads, which share it
        ThreadPoolExecutor(threads) as pool,
        datasets.utils.tqdm(total=len(images), desc=description, unit=" pictures") as progress,
    ):
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for batch in images.iter(batch_size=PICTURES_PER_TASK * threads):
            pictures = batch["image"]
            tasks = [
                pictures[first : first + PICTURES_PER_TASK] for first in range(0, len(pictures), PICTURES_PER_TASK)
            ]
            for found in pool.map(lambda task: [inspect_picture(picture, seed) for picture in task], tasks):
                findings += found
            progress.update(len(pictures))
    return findings


def inspect_picture(image: dict[str, Any] | None, seed: int = 0) -> Finding:
    """Read and decode a picture of {"bytes", "path"}: a digest of its content and `seed`, or why it is bad."""
    if image is None or (image["bytes"] is None and image["path"] is None):
        return Finding(reason="picture is missing")
    try:
        content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    except OSError as error:
        return Finding(reason=f"cannot be read: {error.strerror}")
    digest = hashlib.blake2b(content, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return _decode(content)._replace(digest=digest)


def _decode(content: bytes) -> Finding:
    if not content:
        return Finding(reason="empty file")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            size = picture.size
            picture.draft(None, (1, 1))  # a JPEG is read to its end, but computed at an eighth of its size
            picture.load()
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
            return Finding(size=size, orientation=orientation if orientation in range(1, 9) else 1)
    except UnidentifiedImageError:
        drawing = b"<svg" in content[:1000]
        return Finding(reason="an SVG drawing; convert it to PNG" if drawing else "not a picture")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "none"
        return Finding(
            reason=f"more pixels than Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS {limit}; make it smaller",
            detail=str(error).partition(",")[0],
        )
    except DECODING_ERRORS as error:
        return Finding(reason="truncated or damaged", detail=str(error).partition("\n")[0])


# Splitting


def missing_splits(found: Container[str], validation_share: float, test_share: float) -> dict[str, float]:
    """The share of each split that must be cut from train."""
    shares = {"validation": validation_share, "test": test_share}
    return {name: share for name, share in shares.items() if name not in found and share}


def _rows_by_class(train: Checked, report: PictureReport) -> list[list[int]]:
    by_class: dict[str, list[int]] = {}
    for row in train.rows:  # pictures with several labels count as one class: their combinations are too many
        label = "" if report.multi_label else str(train.split.labels[row])
        by_class.setdefault(label, []).append(row)
    return list(by_class.values())


def cut_splits(
    classes: Sequence[list[int]],
    digests: dict[int, bytes],
    missing: dict[str, float],
    report: DataReport,
    seed: int,
) -> dict[str, list[int]]:
    """Rows of the missing splits and of what is left of train: a share of each class, chosen by the digests.

    Raises ValueError if there are too few pictures.
    """
    parts = [_divide(rows, digests, missing) for rows in classes]
    cut = {name: sorted(row for part in parts for row in part[name]) for name in [*missing, "train"]}
    for name in missing:
        if not cut[name]:
            total = sum(map(len, classes))
            different = len({digests[row] for rows in classes for row in rows})
            of_these = "" if different == total else f", {different} of them different,"
            raise ValueError(f"{report.data}: {total} pictures{of_these} are too few to cut {name} from; give more")
        report.notes.append(f"{name}: {len(cut[name]):,} pictures cut from the training data with seed {seed}")
    return cut


def _divide(rows: list[int], digests: dict[int, bytes], shares: dict[str, float]) -> dict[str, list[int]]:
    """Rows of one class in shares, at least one picture each while one is left for train; equal ones together."""
    ordered = sorted(rows, key=digests.__getitem__)
    groups = [list(group) for _, group in itertools.groupby(ordered, key=digests.__getitem__)]
    parts: dict[str, list[int]] = {}
    for name, share in shares.items():
        parts[name] = []
        while len(groups) > 1 and len(parts[name]) < max(1, round(share * len(rows))):
            parts[name] += groups.pop()
    return {**parts, "train": [row for group in groups for row in group]}


def note_repeated(digests: dict[str, dict[int, bytes]], rows: dict[str, list[int]], report: DataReport) -> None:
    """Note how many pictures of validation and test occur in training: scores on them say nothing about new ones."""
    training = {digests["train"][row] for row in rows["train"]}
    for name in [name for name in rows if name != "train"]:
        of_split = digests.get(name, digests["train"])
        seen = sum(of_split[row] in training for row in rows[name])
        if seen:
            report.notes.append(f"{name}: {seen:,} of {len(rows[name]):,} pictures also occur in train")
