"""Where the pictures of a user lie, and what they are labelled with: folders, tables, idx files and datasets.

`find_splits` says what is there. No picture is opened here.
"""

import csv
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow  # type: ignore[import-untyped]
from datasets.exceptions import DatasetsError
from datasets.table import InMemoryTable

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TABLES = (".csv", ".tsv", ".jsonl")
ARCHIVES = (".parquet", ".arrow", ".tar", ".zip")  # what datasets reads, in a directory or a folder of it
NOT_DATA = ("thumbs.db", "desktop.ini")  # put beside pictures by Windows; hidden files are ignored too
IMAGE_COLUMNS = ("image", "img", "picture", "file", "path", "file_name", "filename", "image_path")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
IDX_NAME = re.compile(r"(?P<before>.*?)(?P<split>train|t10k|test)-images[-.]idx3-ubyte(?P<gz>\.gz)?")

Label = str | list[str] | None  # the name of the class, the names of several, or nothing


class PictureSplit(NamedTuple):
    """The pictures of a split and the label of each, as they were found."""

    images: datasets.Dataset  # one column `image`, undecoded: {"bytes", "path"}
    labels: list[Label]
    place: Callable[[int], str]  # what to call a row in a message
    class_names: list[str] = []  # in their order, where the data declare one
    faults: dict[int, str] = {}  # rows that hold no picture or label, and why


class Columns(NamedTuple):
    """Names of columns chosen by the user; None: found by the usual names."""

    image: str | None = None
    label: str | None = None
    objects: str | None = None


# Finding


def find_splits(
    data: str | Path | datasets.Dataset | datasets.DatasetDict, columns: Columns, config_name: str | None = None
) -> dict[str, PictureSplit]:
    """The pictures of each split that the data come with, by its name in `SPLITS`; a single one counts as training.

    Raises FileNotFoundError, PermissionError or ValueError, saying what there is instead.
    """
    if not isinstance(data, str | os.PathLike):
        return _read_datasets(data, "the dataset", columns)
    path = Path(data)
    if path.is_file():
        return {"train": _read_file(path, columns)}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_datasets(datasets.load_from_disk(str(path)), str(path), columns)
    return _find_in_directory(path, columns, config_name) if path.is_dir() else _load(path, columns, config_name)


def _find_in_directory(directory: Path, columns: Columns, config_name: str | None) -> dict[str, PictureSplit]:
    entries = visible(directory)
    idx_files = [path for path in entries if IDX_NAME.fullmatch(path.name)]
    if idx_files:
        return _read_idx_directory(idx_files)
    tables = [path for path in entries if path.suffix.lower() in TABLES]
    if tables:
        return _read_tables(directory, tables, columns)
    folders = [path for path in entries if path.is_dir()]
    if any(path.suffix in ARCHIVES for folder in [directory, *folders] for path in visible(folder)):
        return _load(directory, columns, config_name)
    if folders:
        return _read_folders(directory, folders)
    if entries:
        raise ValueError(
            f"{directory} has {len(entries):,} files but no folder for each class; put each picture in a folder named "
            "after its class, or give a CSV file with columns image and label"
        )
    raise ValueError(f"{directory} is empty; pictures are expected in folders named after their classes")


def visible(directory: Path) -> list[Path]:
    """Entries of a directory by name, without hidden ones and those that a desktop puts there."""
    try:
        entries = [path for path in directory.iterdir() if not path.name.startswith(".")]
    except PermissionError as error:
        raise PermissionError(f"{directory} may not be read; give its owner's permission or move it away") from error
    return sorted(path for path in entries if path.name.lower() not in NOT_DATA)


def _read_file(path: Path, columns: Columns) -> PictureSplit:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _read_table(path, columns)
    if suffix == ".parquet":
        with as_one_line(path):
            return _read_dataset(datasets.Dataset.from_parquet(str(path)), str(path), columns, path.parent)
    raise ValueError(
        f"{path}: pictures are read from a directory with a folder for each class, from .csv, .tsv, .jsonl and "
        ".parquet files, from a directory of idx files and from datasets"
    )


def names_of_splits(names: Sequence[str], place: str) -> dict[str, str]:
    """Which of the names stands for which split; empty if none does."""
    found = {split: next((name for name in names if name.lower() in known), None) for split, known in SPLITS.items()}
    chosen = {split: name for split, name in found.items() if name is not None}
    if chosen and "train" not in chosen:
        raise ValueError(f"{place} has {', '.join(names)}, but no train; pictures to train with are needed")
    return chosen


# Folders


def _read_folders(directory: Path, folders: list[Path]) -> dict[str, PictureSplit]:
    """Pictures in class folders, or in class folders inside of folders named after splits."""
    known = {name for names in SPLITS.values() for name in names}
    # Folders of pictures with these names are classes: a train is a vehicle too
    parts = [path.name for path in folders if path.name.lower() in known and any(p.is_dir() for p in visible(path))]
    if not parts:
        return {"train": _read_class_folders(directory)}
    others = [path.name for path in folders if path.name not in parts]
    if others:
        raise ValueError(
            f"{directory} has the folders {', '.join(parts)} for splits beside {', '.join(others)}; move what is a "
            "class into train, and name splits train, validation and test"
        )
    splits = names_of_splits(parts, str(directory))
    return {split: _read_class_folders(directory / name) for split, name in splits.items()}


def _read_class_folders(directory: Path) -> PictureSplit:
    paths: list[str] = []
    labels: list[Label] = []
    for folder in visible(directory):
        if folder.is_dir():
            found = list(files_below(folder))
            paths += found
            labels += [folder.name] * len(found)
    if not paths:
        raise ValueError(f"{directory} has no pictures in folders named after classes; put some there")
    return PictureSplit(undecoded(paths), labels, paths.__getitem__)


def files_below(folder: Path) -> Iterator[str]:
    for path in visible(folder):
        if path.is_dir() and not path.is_symlink():  # which may lead round in a circle
            yield from files_below(path)
        else:
            yield str(path)


def undecoded(paths: Sequence[str | None], contents: Sequence[bytes] | None = None) -> datasets.Dataset:
    """A dataset with the column `image`, not decoded, of paths or of the bytes of picture files."""
    files = [None] * len(paths) if contents is None else contents
    arrays = [pyarrow.array(files, pyarrow.binary()), pyarrow.array(paths, pyarrow.string())]
    table = pyarrow.table({"image": pyarrow.StructArray.from_arrays(arrays, ["bytes", "path"])})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=features))


# Tables with paths


def _read_tables(directory: Path, tables: list[Path], columns: Columns) -> dict[str, PictureSplit]:
    """The tables named after splits, or the only one."""
    if len(tables) == 1 and tables[0].stem.lower() not in (*SPLITS["validation"], *SPLITS["test"]):
        return {"train": _read_table(tables[0], columns)}
    by_stem = {path.stem: path for path in tables}
    splits = names_of_splits(list(by_stem), str(directory))
    if len(splits) < len(tables):
        found = ", ".join(path.name for path in tables)
        raise ValueError(f"{directory} has {found}; give one of them, or name them train, validation and test")
    return {split: _read_table(by_stem[stem], columns) for split, stem in splits.items()}


def _read_table(path: Path, columns: Columns) -> PictureSplit:
    """A file with a picture's path, relative to the file, and a label in each line."""
    try:
        rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; convert the file") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a table of comma or tab separated values: {error}") from error
    names = list(next((row for _, row in rows if row is not None), {}))
    if not names:
        raise ValueError(f"{path} has no pictures; it needs a column for paths and one for labels")
    image = choose_column(names, usual(names, IMAGE_COLUMNS), columns.image, "image", str(path))
    label = choose_column(names, usual(names, LABEL_COLUMNS), columns.label, "label", str(path))
    paths: list[str | None] = []
    faults: dict[int, str] = {}
    for number, (_, row) in enumerate(rows):
        named = row.get(image) if row is not None else None
        if isinstance(named, str) and named.strip():
            paths.append(str(path.parent / named.strip()))
        else:
            paths.append(None)
            faults[number] = "not a JSON object" if row is None else f"no path in column {image}"
    labels = [as_label((row or {}).get(label)) for _, row in rows]
    if path.suffix.lower() != ".jsonl":
        labels = _split_at_bars(labels)

    def place(number: int) -> str:
        line = f"{path}:{rows[number][0]}"
        return line if paths[number] is None else f"{paths[number]} ({line})"

    return PictureSplit(undecoded(paths), labels, place, faults=faults)


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """(line, cells by column name) of each row."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return [(reader.line_num, row) for row in reader]


def _jsonl_rows(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """(line, entries by key) of each line that is not blank; None for the entries of a line that is not an object."""
    rows: list[tuple[int, dict[str, Any] | None]] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    entry = None
                rows.append((number, entry if isinstance(entry, dict) else None))
    return rows


def _split_at_bars(labels: list[Label]) -> list[Label]:
    """Names of several classes between bars, if any cell has one: then all pictures have lists of names."""
    if not any(isinstance(label, str) and "|" in label for label in labels):
        return labels
    return [[name.strip() for name in (label or "").split("|") if name.strip()] for label in labels]  # type: ignore[union-attr]


def usual(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that are among those known, whatever their capitals."""
    return [name for name in names if name.lower() in known]


def choose_column(names: Sequence[str], candidates: Sequence[str], chosen: str | None, what: str, place: str) -> str:
    """The chosen column, or the only candidate."""
    if chosen is not None and chosen not in names:
        raise ValueError(f"{place} has no column {chosen}; there are {', '.join(names)}")
    if chosen is not None:
        return chosen
    if len(candidates) == 1:
        return candidates[0]
    problem = f"no column is known to hold the {what} among {', '.join(names)}"
    if candidates:
        problem = f"the columns {', '.join(candidates)} may all hold the {what}"
    raise ValueError(f"{place}: {problem}; choose one by {what}_column")


def as_label(value: Any) -> Label:
    """Text or a whole number as the name of a class, a list of them as names, anything else as no label."""
    if isinstance(value, list):
        names = [name for name in map(as_label, value) if isinstance(name, str)]
        return names if len(names) == len(value) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None if isinstance(value, str | int) else None


# idx files, as MNIST and its relatives ship


def _read_idx_directory(files: list[Path]) -> dict[str, PictureSplit]:
    splits: dict[str, PictureSplit] = {}
    for path in files:
        match = IDX_NAME.fullmatch(path.name)
        split = "train" if match and match["split"] == "train" else "test"
        if split in splits:
            found = ", ".join(file.name for file in files)
            raise ValueError(f"{path.parent} has several idx files of {split} pictures: {found}; leave one of each")
        splits[split] = _read_idx_split(path)
    if "train" not in splits:
        raise ValueError(f"{files[0].parent} has {files[0].name}, but no train-images-idx3-ubyte.gz; add it")
    return splits


def _read_idx_split(path: Path) -> PictureSplit:
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if not labels_path.is_file():
        raise FileNotFoundError(f"{path} is there, but its labels {labels_path} are not")
    pictures, labels = read_idx(path, 3), read_idx(labels_path, 1)
    if len(pictures) != len(labels):
        raise ValueError(f"{path} has {len(pictures):,} pictures, but {labels_path} has {len(labels):,} labels")
    header = f"P5 {pictures.shape[2]} {pictures.shape[1]} 255\n".encode()  # a PGM file: the pixels, not compressed
    contents = [header + picture.tobytes() for picture in pictures]
    names = [str(number) for number in range(int(labels.max(initial=0)) + 1)]
    images = undecoded([None] * len(contents), contents)
    return PictureSplit(images, [names[label] for label in labels], lambda row: f"{path}:{row + 1}", names)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a file in the idx format, plain or compressed by gzip (LeCun, Cortes and Burges 1998).

    Raises ValueError for a damaged file and for another number of dimensions or type of numbers.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is not an idx file of bytes in {dimensions} dimensions: it begins {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} has {len(content) - start:,} bytes of data, but its shape {shape} needs {math.prod(shape):,}; "
            "fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# Datasets


def _load(path: Path, columns: Columns, config_name: str | None) -> dict[str, PictureSplit]:
    return _read_datasets(load_dataset(path, config_name), path.as_posix(), columns)


def load_dataset(path: Path, config_name: str | None) -> datasets.DatasetDict:
    """A directory or Hub id that `datasets.load_dataset` understands.

    Raises FileNotFoundError or ValueError in one line if it does not, or if there are several configurations.
    """
    name = path.as_posix()
    if not path.is_dir() and (path.suffix in (*TABLES, *ARCHIVES) or path.is_absolute() or len(path.parts) > 2):
        raise FileNotFoundError(f"{path}: no such file or directory")
    with as_one_line(path):
        configs = [config_name] if config_name else datasets.get_dataset_config_names(name)
        if len(configs) > 1:
            raise ValueError(f"{name} has several configurations, choose one by config_name: {', '.join(configs)}")
        return datasets.load_dataset(name, configs[0])


@contextmanager
def as_one_line(path: Path) -> Iterator[None]:
    """Says in one line that datasets could not read something, and why."""
    try:
        yield
    except (FileNotFoundError, ConnectionError, DatasetsError, pyarrow.ArrowInvalid) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        if path.exists():
            raise ValueError(f"{path}: not read as a dataset: {reason}") from error
        missing = "no such file or directory, and not read as a dataset from the Hub"
        raise FileNotFoundError(f"{path}: {missing}: {reason}") from error


def _read_datasets(loaded: Any, name: str, columns: Columns) -> dict[str, PictureSplit]:
    return {
        split: _read_dataset(dataset, place, columns) for split, (dataset, place) in named_splits(loaded, name).items()
    }


def named_splits(loaded: Any, name: str) -> dict[str, tuple[Any, str]]:
    """Each split and what to call it; a dataset with one split, whatever its name, counts as training data."""
    if not isinstance(loaded, datasets.DatasetDict):
        return {"train": (loaded, name)}
    if len(loaded) == 1:
        return {"train": (next(iter(loaded.values())), name)}
    splits = names_of_splits(list(loaded), name)
    if not splits:
        raise ValueError(f"{name} has no split train, but {', '.join(loaded)}")
    return {split: (loaded[own], f"{name}/{own}") for split, own in splits.items()}


def unformatted(dataset: Any, name: str) -> datasets.Dataset:
    """The dataset with rows of plain Python values.

    Raises ValueError for a stream, which has no rows to choose from.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{name} is a {type(dataset).__name__}; give a datasets.Dataset or DatasetDict, not streamed")
    return dataset.with_format(None)


def _read_dataset(dataset: Any, name: str, columns: Columns, base: Path = Path()) -> PictureSplit:
    dataset = unformatted(dataset, name)
    image = image_column(dataset.features, columns.image, name)
    features = dataset.features
    declared = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = choose_column(
        list(features), usual(list(features), LABEL_COLUMNS) or declared, columns.label, "label", name
    )
    labels, class_names = _labels_of(dataset, label, name)
    images = undecoded_column(dataset.select_columns(image), image, name, base)
    return PictureSplit(images, labels, lambda row: f"{name}:{row + 1}", class_names)


def image_column(features: datasets.Features, chosen: str | None, name: str) -> str:
    """The column that holds the pictures: the chosen one, the only one of pictures, or one with a usual name."""
    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(pictures) != 1:
        pictures = usual(pictures or list(features), IMAGE_COLUMNS) or pictures
    return choose_column(list(features), pictures, chosen, "image", name)


def undecoded_column(dataset: datasets.Dataset, column: str, name: str, base: Path) -> datasets.Dataset:
    """The column as undecoded pictures named `image`; paths are relative to `base`."""
    feature = dataset.features[column]
    kind = getattr(feature, "dtype", None)
    if kind in ("string", "large_string"):
        return undecoded([None if path is None else str(base / path) for path in dataset[column]])
    if not (isinstance(feature, datasets.Image | dict) or kind in ("binary", "large_binary")):
        raise ValueError(f"{name}: column {column} holds {feature}, not pictures, their files' bytes or paths")
    dataset = dataset if column == "image" else dataset.rename_column(column, "image")
    return dataset.cast_column("image", datasets.Image(decode=False))


def _labels_of(dataset: datasets.Dataset, column: str, name: str) -> tuple[list[Label], list[str]]:
    """The label of each row, and the names of the classes in their order if the data declare it."""
    values, feature = dataset[column][:], dataset.features[column]
    several = isinstance(feature, datasets.List | datasets.LargeList)
    single = feature.feature if several else feature
    if isinstance(single, datasets.ClassLabel):
        names = [*single.names, None]  # -1 stands for no label
        if several:
            return [None if row is None else [names[number] for number in row] for row in values], single.names
        return [None if number is None else names[number] for number in values], single.names
    kind = getattr(single, "dtype", "")
    if several and kind.startswith("float"):  # a one for each class that is there
        names = [str(number) for number in range(max((len(row) for row in values if row), default=0))]
        return [None if row is None else [n for n, v in zip(names, row, strict=False) if v] for row in values], names
    if not kind.startswith(("int", "uint", "string", "large_string", "float", "bool")):
        raise ValueError(
            f"{name}: column {column} holds {feature}, not class numbers or names; choose by label_column"
        )
    return [as_label(value) for value in values], []
