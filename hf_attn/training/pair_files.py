"""Where the sentence pairs of a user lie, and the lines of each format: TSV, JSON lines, parallel files, datasets.

`find_splits` says what is there; the readers turn it into `Line`s, good or bad. Nothing is judged by its text here.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.exceptions import DatasetsError

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


class Line(NamedTuple):
    """A line of a file or row of a table: the two sides of a pair, or the fault that keeps it from being one."""

    place: str  # file:line
    source: Any = ""
    target: Any = ""
    fault: str = ""


class Languages(NamedTuple):
    """The names that the columns or files of the two sides have."""

    source: str
    target: str


# Finding


def find_splits(path: Path, languages: Languages, config_name: str | None = None) -> dict[str, Iterator[Line]]:
    """The lines of each split that the data come with, by its name in `SPLITS`; a single file counts as training data.

    Raises FileNotFoundError or ValueError, saying what there is instead.
    """
    if path.is_file():
        return {"train": _read_file(path, languages)}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_datasets(datasets.load_from_disk(str(path)), str(path), languages)
    if path.is_dir():
        return _find_in_directory(path, languages) or _load_dataset(path, languages, config_name)
    candidates = _files_of(path, languages)
    if candidates:
        return {"train": _read_only(candidates, languages)}
    return _load_dataset(path, languages, config_name)


def _find_in_directory(directory: Path, languages: Languages) -> dict[str, Iterator[Line]]:
    """The lines of the files of a directory that are named after splits, or of its only file of pairs."""
    splits = {}
    for split, names in SPLITS.items():
        candidates = [paths for name in names for paths in _files_of(directory / name, languages)]
        if candidates:
            splits[split] = _read_only(candidates, languages)
    others = sorted(path for path in directory.iterdir() if path.suffix in (".tsv", ".jsonl"))
    if not splits and len(others) == 1:
        return {"train": _read_file(others[0], languages)}
    if "train" not in splits and (splits or others):
        found = ", ".join(sorted(path.name for path in directory.iterdir()))
        raise ValueError(f"{directory} has no train.tsv, train.jsonl or parallel files train.*, but {found}")
    return splits


def _files_of(prefix: Path, languages: Languages) -> list[tuple[Path, ...]]:
    """What a name without suffix may mean: `(prefix.tsv,)`, `(prefix.jsonl,)`, `(prefix.de, prefix.en)`."""
    parallel = tuple(prefix.with_name(f"{prefix.name}.{language}") for language in languages)
    for half, other in itertools.permutations(parallel):
        if half.is_file() and not other.is_file():
            raise FileNotFoundError(f"{half} is there, but its other half {other} is not")
    candidates = [(prefix.with_name(prefix.name + suffix),) for suffix in (".tsv", ".jsonl")]
    return [paths for paths in (*candidates, parallel) if paths[0].is_file()]


def _read_only(candidates: list[tuple[Path, ...]], languages: Languages) -> Iterator[Line]:
    """The lines of the only candidate."""
    if len(candidates) > 1:
        found = ", ".join(str(path) for paths in candidates for path in paths)
        raise ValueError(f"{found} all hold the same split; leave one")
    paths = candidates[0]
    return _read_parallel(paths[0], paths[1]) if len(paths) == 2 else _read_file(paths[0], languages)


def _read_file(path: Path, languages: Languages) -> Iterator[Line]:
    if path.suffix == ".tsv":
        return _read_tsv(path, languages)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, languages)
    raise ValueError(
        f"{path}: sentence pairs are read from .tsv and .jsonl files, from two parallel files by their common prefix "
        f"(prefix.{languages.source}, prefix.{languages.target}), from directories of those and from datasets"
    )


# Text files


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines of a UTF-8 file, which end at line feeds only; skips a byte order mark."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                likely = "utf-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                raise ValueError(
                    f"{path}:{number}: byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8; "
                    f"convert the file, for example with: iconv -f {likely} -t utf-8 {path} > converted{path.suffix}"
                ) from error
            yield number, text.rstrip("\r\n")


def _read_tsv(path: Path, languages: Languages) -> Iterator[Line]:
    lines = _text_lines(path)
    first = next(lines, None)
    if first is None:
        return
    header = _header(first[1].split("\t"), languages)
    if header:
        source, target = _columns(header, languages, str(path))
    else:
        lines, source, target = itertools.chain([first], lines), 0, 1
    expected = len(header) or 2
    rule = f"instead of {expected}" if header else "instead of 2, and no header line naming them"
    for number, text in lines:
        cells, place = text.split("\t"), f"{path}:{number}"
        if len(cells) == expected:
            yield Line(place, cells[source], cells[target])
        else:
            yield Line(place, fault=f"{len(cells)} columns {rule}" if text else "empty line")


def _header(cells: list[str], languages: Languages) -> list[str]:
    """The column names, if a file's first line holds names: one asked for, or nothing but codes of two letters."""
    names = [cell.strip() for cell in cells]
    if {"source", "target"} <= set(names) or set(languages) & set(names):
        return names
    return names if all(len(name) == 2 and name.isascii() and name.islower() for name in names) else []


def _columns(names: list[str], languages: Languages, place: str) -> tuple[int, int]:
    """Positions of source and target among the names of columns or keys."""
    for source, target in (languages, ("source", "target")):
        if source in names and target in names:
            return names.index(source), names.index(target)
    missing = " and ".join(language for language in languages if language not in names)
    raise ValueError(f"{place}: no {missing} in the data; there are {', '.join(names) or 'no columns'}")


def _read_jsonl(path: Path, languages: Languages) -> Iterator[Line]:
    names: tuple[str, ...] = ()
    for number, text in _text_lines(path):
        place = f"{path}:{number}"
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            yield Line(place, fault="not JSON" if text.strip() else "empty line")
            continue
        entry = entry.get("translation", entry) if isinstance(entry, dict) else None
        if not isinstance(entry, dict):
            yield Line(place, fault="not a JSON object")
            continue
        if not names:  # the first entry decides which keys are read
            names = tuple(list(entry)[position] for position in _columns(list(entry), languages, place))
        source, target = map(entry.get, names)
        yield Line(place, source, target)


def _read_parallel(source_path: Path, target_path: Path) -> Iterator[Line]:
    sources, targets = _text_lines(source_path), _text_lines(target_path)
    for common, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            longer, shorter = (target_path, source_path) if source is None else (source_path, target_path)
            more = 1 + sum(1 for _ in itertools.chain(sources, targets))
            raise ValueError(
                f"{longer} has {common + more:,} lines, but {shorter} has {common:,}; parallel files need as many each"
            )
        yield Line(f"{source_path}:{source[0]}", source[1], target[1])


# Datasets


def _load_dataset(path: Path, languages: Languages, config_name: str | None) -> dict[str, Iterator[Line]]:
    """Splits of a directory or Hub id that `datasets.load_dataset` understands."""
    name = path.as_posix()
    sought = f"no such file or directory, and no parallel files {path}.{languages.source}, {path}.{languages.target}"
    if not path.is_dir() and (path.suffix in (".tsv", ".jsonl") or path.is_absolute() or len(path.parts) > 2):
        raise FileNotFoundError(f"{path}: {sought}")
    try:
        configs = [config_name] if config_name else datasets.get_dataset_config_names(name)
        loaded = datasets.load_dataset(name, _choose_config(configs, languages, name))
    except (FileNotFoundError, ConnectionError, DatasetsError) as error:
        reason = str(error).splitlines()[0]
        problem = "not read as a dataset" if path.is_dir() else f"{sought}, and not read as a dataset from the Hub"
        raise FileNotFoundError(f"{path}: {problem}: {reason}") from error
    return _read_datasets(loaded, name, languages)


def _choose_config(configs: list[str], languages: Languages, name: str) -> str:
    """The only configuration of a dataset, or that of the two languages in either order."""
    wanted = [f"{languages.source}-{languages.target}", f"{languages.target}-{languages.source}"]
    chosen = configs if len(configs) == 1 else [config for config in wanted if config in configs]
    if not chosen:
        raise ValueError(f"{name} has several configurations, choose one by config_name: {', '.join(configs)}")
    return chosen[0]


def _read_datasets(
    loaded: datasets.Dataset | datasets.DatasetDict, name: str, languages: Languages
) -> dict[str, Iterator[Line]]:
    """Lines of each split; a dataset with one split, whatever its name, counts as training data."""
    if isinstance(loaded, datasets.Dataset):
        return {"train": _read_dataset(loaded, name, languages)}
    if len(loaded) == 1:
        return {"train": _read_dataset(next(iter(loaded.values())), name, languages)}
    found = {split: next((n for n in names if n in loaded), None) for split, names in SPLITS.items()}
    if found["train"] is None:
        raise ValueError(f"{name} has no split train, but {', '.join(loaded)}")
    return {split: _read_dataset(loaded[n], f"{name}/{n}", languages) for split, n in found.items() if n}


def _read_dataset(dataset: datasets.Dataset, name: str, languages: Languages) -> Iterator[Line]:
    if "translation" in dataset.column_names:
        dataset = dataset.select_columns("translation").flatten()
        short_names = {column: column.removeprefix("translation.") for column in dataset.column_names}
        dataset = dataset.rename_columns(short_names)
    names = dataset.column_names
    source, target = (names[position] for position in _columns(names, languages, name))
    rows = itertools.count(1)
    for batch in dataset.select_columns([source, target]).iter(batch_size=1000):
        for pair in zip(batch[source], batch[target], strict=True):
            yield Line(f"{name}:{next(rows)}", *pair)
