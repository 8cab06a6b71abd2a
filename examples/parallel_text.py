"""From texts that stand at the same place in two languages to a corpus: clean sentence pairs and honest splits.

The steps, in order: `sentence_pairs` cuts two texts into sentences, `clean_pairs` keeps what is fit for training and
counts the rest by reason, `split_by_group` keeps groups together, `disjoint_splits` removes every training sentence
that also occurs in validation or test, `write_corpus` writes the rest. Used by german_english.py.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "validation", "test")


class Pair(NamedTuple):
    """A German and an English text, and the page, package, entry or component they come from."""

    german: str
    english: str
    group: str


ABBREVIATIONS = re.compile(  # and single letters, numbers and dots in a row: 1. Januar, z. B., Datei ...
    r"(abb|abs|allg|approx|bsp|bspw|bzw|ca|cf|co|dr|engl|etc|evtl|fig|ggf|inc|incl|inkl|jr|ltd|max|min|mind|mr|mrs|ms|no|nr"
    r"|prof|resp|sog|st|str|tab|tel|usw|vgl|vs|\w|\w\.\w|\d+|.*\.\.)\.",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"“”»)]*\s+(?=[\"„“«(]*[A-ZÄÖÜ0-9])")


def split_sentences(text: str) -> list[str]:
    """Cut after a full stop, question or exclamation mark before a capital, but not after abbreviations or numbers."""
    sentences, start = [], 0
    for end in SENTENCE_END.finditer(text):
        word = text[start : end.start()].split()[-1].strip('()„“”»"')
        if not ABBREVIATIONS.fullmatch(word):
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    return [*sentences, text[start:].strip()]


def sentence_pairs(pair: Pair) -> list[Pair]:
    """Sentence by sentence when both texts have as many and their lengths fit, otherwise the pair as it is."""
    german, english = split_sentences(pair.german), split_sentences(pair.english)
    if len(german) == len(english) and all(map(lengths_fit, german, english)):
        return [Pair(*sentences, pair.group) for sentences in zip(german, english, strict=True)]
    return [pair]


def lengths_fit(german: str, english: str) -> bool:
    """At most twice as many characters on one side as on the other, or twelve characters of difference."""
    shorter, longer = sorted((len(german), len(english)))
    return longer <= max(2 * shorter, shorter + 12)


INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
RESIDUE = re.compile(r"[<>{}|\\^~_\ufffd]|%\w|\$\w|&\w+;|://|www\.|\]\(|\*\*|``|Ã|\w\(\)|=")
WORD = re.compile(r"[^\W\d]+|\d+")  # letters or digits
GERMAN_WORDS = frozenset(
    WORD.findall(
        "aber auch auf aus bei bis das dass dem den der des diese dieses durch ein eine einem einen einer eines er es "
        "für ich ihr ihre ist kann mit nach nicht oder sich sie sind und vom von wenn werden wie wir "
        "wird zu zum zur über"
    )
)
ENGLISH_WORDS = frozenset(
    WORD.findall(
        "a and are as at be been by can does for from has have he if into is it its not of on or she that the their "
        "them there these they this to used using we when which with you your"
    )
)


def clean(text: str) -> str:
    """Composed characters, single spaces, nothing invisible."""
    return " ".join(unicodedata.normalize("NFC", text).translate(INVISIBLE).split())


def fault(german: str, english: str, max_words: int = 0) -> str | None:
    """Why a pair is not fit for training, or None; sentences may have any number of words if `max_words` is 0."""
    if not german or not english:
        return "one side empty"
    if max_words and max(len(german.split()), len(english.split())) > max_words:
        return f"longer than {max_words} words"
    if RESIDUE.search(german) or RESIDUE.search(english):
        return "markup, code, address or placeholder"
    if any(sum(map(str.isalpha, text)) < 0.6 * len(text.replace(" ", "")) for text in (german, english)):
        return "hardly any letters"
    if comparable(german) == comparable(english):
        return "same text on both sides"
    if not lengths_fit(german, english):
        return "lengths do not fit"
    if in_language(german, ENGLISH_WORDS, GERMAN_WORDS) or in_language(english, GERMAN_WORDS, ENGLISH_WORDS):
        return "wrong language"
    if sorted(re.findall(r"\d", german)) != sorted(re.findall(r"\d", english)):
        return "other numbers"
    return None


def in_language(text: str, language: frozenset[str], other: frozenset[str]) -> bool:
    """At least two function words of a language more than of the other one: a single one may belong to a name."""
    words = WORD.findall(text.lower())
    return sum(word in language for word in words) > sum(word in other for word in words) + 1


def comparable(text: str) -> str:
    """What two texts have in common that differ in capitals, digits, punctuation and spaces only."""
    return " ".join("0" if word.isdigit() else word for word in WORD.findall(text.lower()))


def clean_pairs(pairs: Iterable[Pair], max_words: int, dropped: Counter[str]) -> list[Pair]:
    """The sentence pairs without fault, each once; counts the others in `dropped` by reason."""
    kept: dict[tuple[str, str], Pair] = {}
    for text_pair in pairs:
        cleaned = Pair(clean(text_pair.german), clean(text_pair.english), text_pair.group)
        for pair in sentence_pairs(cleaned):
            key = comparable(pair.german), comparable(pair.english)
            reason = "repeated" if key in kept else fault(pair.german, pair.english, max_words)
            if reason:
                dropped[reason] += 1
            else:
                kept[key] = pair
    return list(kept.values())


LARGEST_HELD_OUT_GROUP = 50  # sentences; larger groups train, so that no single page or package makes up a test set


def split_by_group(pairs: list[Pair], held_out: int) -> dict[str, list[Pair]]:
    """Whole groups, in an order that only depends on their names, until test and validation have `held_out` pairs."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for group in sorted(groups, key=shuffle_key):
        open_splits = [name for name in ("test", "validation") if len(splits[name]) < min(held_out, len(pairs) // 10)]
        name = open_splits[0] if open_splits and len(groups[group]) <= LARGEST_HELD_OUT_GROUP else "train"
        splits[name] += groups[group]
    return splits


def shuffle_key(text: str) -> bytes:
    """Sorting by it shuffles, in the same way on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def without_sentences_of(pairs: list[Pair], others: list[Pair]) -> list[Pair]:
    """The pairs neither of whose sentences occurs, up to digits, capitals and punctuation, in `others`."""
    taken = {comparable(text) for pair in others for text in (pair.german, pair.english)}
    return [pair for pair in pairs if taken.isdisjoint((comparable(pair.german), comparable(pair.english)))]


def disjoint_splits(splits: dict[str, list[Pair]], dropped: Counter[str]) -> dict[str, list[Pair]]:
    """Take from training what is in validation or test, and from validation what is in test; shuffle each."""
    test = splits["test"]
    validation = without_sentences_of(splits["validation"], test)
    train = without_sentences_of(splits["train"], validation + test)
    dropped["in training, but also held out"] += len(splits["train"]) - len(train)
    dropped["in validation, but also in test"] += len(splits["validation"]) - len(validation)
    disjoint = {"train": train, "validation": validation, "test": test}
    return {name: sorted(pairs, key=lambda pair: shuffle_key("\t".join(pair))) for name, pairs in disjoint.items()}


@dataclass(frozen=True)
class Corpus:
    """What was written where: pairs of each split and source, and how many were dropped for which reason."""

    directory: Path
    pairs: dict[str, Counter[str]]
    dropped: Counter[str]

    def __str__(self) -> str:
        lines = [f"{'':40}{'train':>10}{'validation':>12}{'test':>8}"]
        for source in sorted(set().union(*self.pairs.values())):
            counts = [self.pairs[name][source] for name in SPLITS]
            lines.append(f"{source:40}{counts[0]:>10,}{counts[1]:>12,}{counts[2]:>8,}")
        lines += [f"{reason:40}{count:>10,} dropped" for reason, count in self.dropped.most_common() if count]
        return "\n".join(lines)


def write_corpus(splits: dict[str, list[Pair]], directory: Path, readme: str) -> None:
    """One TSV file for each split, with a header; an interrupted run leaves the files that were there before."""
    contents = {"README.md": readme}
    for name, pairs in splits.items():
        contents[f"{name}.tsv"] = "".join("\t".join(row) + "\n" for row in [("de", "en", "group"), *pairs])
    temporary = {name: directory / f".{name}.partial" for name in contents}
    try:
        for name, content in contents.items():
            temporary[name].write_text(content, encoding="utf-8", newline="\n")
        for name, path in temporary.items():
            os.replace(path, directory / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
