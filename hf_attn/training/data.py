"""Sentence pairs: read, checked line by line, split, and turned into token ids.

`load_pairs` never drops a line silently: its `PairReport` counts the bad ones by reason and names the first of each.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_attn.training.pair_files import SPLITS, Languages, Line, find_splits
from hf_attn.training.sampler import TokenBatchSampler, TranslationCollator

__all__ = ["PairReport", "TokenBatchSampler", "TranslationCollator", "encode_pairs", "load_pairs", "token_lengths"]

logger = logging.get_logger(__name__)

PLACES_SHOWN = 3

Pairs = list[tuple[str, str]]


@dataclass
class PairReport:
    """What `load_pairs` kept of the data, what it dropped and why, and how it was split."""

    data: str
    source_language: str
    target_language: str
    pairs: dict[str, int] = field(default_factory=dict)  # of each split
    dropped: Counter[str] = field(default_factory=Counter)  # lines by reason
    first_dropped: dict[str, list[str]] = field(default_factory=dict)  # file:line of the first ones by reason
    notes: list[str] = field(default_factory=list)

    def drop(self, line: Line) -> None:
        """Count a bad line."""
        self.dropped[line.fault] += 1
        places = self.first_dropped.setdefault(line.fault, [])
        if len(places) < PLACES_SHOWN:
            places.append(line.place)

    def faults(self) -> list[str]:
        """One text for each reason, the most frequent first."""
        return [
            f"{count:,} x {fault} ({', '.join(self.first_dropped[fault])}{', ...' * (count > PLACES_SHOWN)})"
            for fault, count in self.dropped.most_common()
        ]

    def __str__(self) -> str:
        kept = ", ".join(f"{count:,} {split}" for split, count in self.pairs.items())
        lines = [f"{self.data}: {self.source_language}-{self.target_language} pairs: {kept}", *self.notes]
        lines += [f"dropped {fault}" for fault in self.faults()]
        return "\n".join(lines)


def load_pairs(
    data: str | Path,
    source_language: str,
    target_language: str,
    *,
    validation_size: int = 1000,
    test_size: int = 1000,
    seed: int = 0,
    max_bad_share: float = 0.1,
    config_name: str | None = None,
) -> tuple[datasets.DatasetDict, PairReport]:
    """Read sentence pairs into the splits train, validation and test with the text columns `source` and `target`.

    `data` is one of

    - a `.tsv` file: two columns, source and target, or a header line that names the languages (`de<TAB>en`), or
      `source` and `target`, and then any further columns; quotation marks have no meaning;
    - a `.jsonl` file: `{"de": ..., "en": ...}`, `{"source": ..., "target": ...}` or `{"translation": {"de": ...}}`;
    - the prefix of two parallel files: `corpus` for `corpus.de` and `corpus.en`;
    - a directory of those, named train, validation (valid, dev) and test;
    - a dataset saved by `save_to_disk`, a directory that `datasets.load_dataset` reads, or the id of a dataset on the
      Hub, with a feature `translation` or columns as above. Of several configurations that of the two languages is
      taken, or `config_name`.

    Splits that are missing are cut from the training pairs, without leaving a source sentence on both sides:
    `validation_size` and `test_size` pairs, but at most a tenth of all, chosen by `seed`. Text files are UTF-8.

    Raises FileNotFoundError if there is no such data, and ValueError for another encoding (with file, line and byte),
    parallel files of different length, a language that is not in the data, and a split with a share of more than
    `max_bad_share` bad lines; up to that share they are dropped and reported.
    """
    if source_language == target_language:
        raise ValueError(f"source and target language are both {source_language}")
    if min(validation_size, test_size) < 1:
        raise ValueError(f"validation_size {validation_size} and test_size {test_size} must be at least 1")
    report = PairReport(str(data), source_language, target_language)
    found = find_splits(Path(data), Languages(source_language, target_language), config_name)
    splits = {name: _keep_good_lines(lines, report, max_bad_share) for name, lines in found.items()}
    _cut_missing_splits(splits, {"validation": validation_size, "test": test_size}, seed, report)
    _check_held_out(splits, report)
    report.pairs = {name: len(splits[name]) for name in SPLITS}
    return datasets.DatasetDict({name: _as_dataset(splits[name]) for name in SPLITS}), report


def _as_dataset(pairs: Pairs) -> datasets.Dataset:
    columns = {"source": [source for source, _ in pairs], "target": [target for _, target in pairs]}
    return datasets.Dataset.from_dict(columns)


# Checking and splitting


def _keep_good_lines(lines: Iterator[Line], report: PairReport, max_bad_share: float) -> Pairs:
    """The pairs among the lines; drops and reports the bad ones, or raises ValueError if they are too many."""
    pairs, bad = [], PairReport(report.data, report.source_language, report.target_language)
    for line in lines:
        fault = line.fault or _fault(line.source, "source") or _fault(line.target, "target")
        if fault:
            bad.drop(line._replace(fault=fault))
            report.drop(line._replace(fault=fault))
        else:
            pairs.append((line.source.strip(), line.target.strip()))
    count = bad.dropped.total()
    if count > max_bad_share * (len(pairs) + count):
        raise ValueError(
            f"{report.data}: {count:,} of {len(pairs) + count:,} lines are bad, more than {max_bad_share:.0%}: "
            f"{'; '.join(bad.faults())}; correct them or raise max_bad_share"
        )
    return pairs


def _fault(text: object, side: str) -> str:
    """Why one side of a pair cannot be used, or an empty string."""
    if not isinstance(text, str):
        return f"{side} is missing" if text is None else f"{side} is not text"
    if not text.strip():
        return f"{side} is empty"
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return f"{side} is not valid Unicode"
    return ""


def _cut_missing_splits(splits: dict[str, Pairs], sizes: dict[str, int], seed: int, report: PairReport) -> None:
    """Move pairs from train to the splits that are missing; all pairs with the same source move together."""
    missing = [name for name in sizes if name not in splits]
    by_source: dict[str, Pairs] = {}
    for pair in splits["train"]:
        by_source.setdefault(pair[0], []).append(pair)
    if len(by_source) <= len(missing):
        raise ValueError(f"{report.data}: {len(by_source)} different sources are too few to train with; give more")
    sources, tenth = list(by_source), max(1, len(splits["train"]) // 10)
    order = iter(np.random.default_rng(seed).permutation(len(sources)))
    for splits_left, name in zip(range(len(missing), 0, -1), missing, strict=True):  # one source for each, at least
        splits[name] = by_source.pop(sources[next(order)])
        while len(splits[name]) < min(sizes[name], tenth) and len(by_source) > splits_left:
            splits[name] += by_source.pop(sources[next(order)])
        report.notes.append(f"{name}: {len(splits[name]):,} pairs cut from the training data with seed {seed}")
    splits["train"] = [pair for pair in splits["train"] if pair[0] in by_source]


def _check_held_out(splits: dict[str, Pairs], report: PairReport) -> None:
    """Note how many sources of validation and test occur in training: scores on them say nothing about new text."""
    training = {source for source, _ in splits["train"]}
    for name in ("validation", "test"):
        if not splits[name]:
            raise ValueError(f"{report.data}: {name} has no pairs; add some, or remove it to have it cut from train")
        seen = sum(source in training for source, _ in splits[name])
        if seen:
            report.notes.append(f"{name}: {seen:,} of {len(splits[name]):,} sources also occur in train")


# Token ids


def encode_pairs(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """Turn the columns `source` and `target` into `input_ids` and `labels`, token ids that end in the end token.

    Pairs with more than `max_length` tokens on one side, the end token included, are left out rather than truncated,
    for half a sentence is no translation of a whole one; a warning in the log says how many.

    Raises ValueError if no pair is left, and for a tokenizer that does not end a text with its end token.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        sources = tokenizer(batch["source"], return_attention_mask=False, verbose=False)["input_ids"]
        targets = tokenizer(text_target=batch["target"], return_attention_mask=False, verbose=False)["input_ids"]
        if any(ids[-1:] != [tokenizer.eos_token_id] for ids in itertools.chain(sources, targets)):
            raise ValueError(f"the tokenizer does not end a text with its end token {tokenizer.eos_token!r}")
        fitting = [pair for pair in zip(sources, targets, strict=True) if max(map(len, pair)) <= max_length]
        return {"input_ids": [ids for ids, _ in fitting], "labels": [ids for _, ids in fitting]}

    ids = datasets.List(datasets.Value("int32"))
    encoded = dataset.map(
        encode,
        batched=True,
        remove_columns=dataset.column_names,
        features=datasets.Features({"input_ids": ids, "labels": ids}),
        desc="Encoding pairs",
    )
    too_long = len(dataset) - len(encoded)
    if not len(encoded):
        raise ValueError(f"none of {len(dataset):,} pairs has at most max_length {max_length} tokens; raise it")
    if too_long:
        logger.warning("%d of %d pairs have more than %d tokens and are left out", too_long, len(dataset), max_length)
    return encoded


def token_lengths(encoded: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) source tokens and (pairs,) target tokens of an encoded dataset, without reading the tokens."""
    table = encoded.with_format("arrow")[:]
    source, target = (pyarrow.compute.list_value_length(table[name]).to_numpy() for name in ("input_ids", "labels"))
    return source, target
