"""Sentences for the translators: real German ones, of the project's own corpus, or made-up ones."""

import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE_UP = "made-up"


def real_sentences(directory: Path = ROOT / "data") -> list[str]:
    """German sentences as they come in Debian's LibreOffice help and package descriptions, in shuffled order.

    Downloaded once (23 MB) to `directory`/cache, as by examples/german_english.py; where there is no apt, the texts of
    Home Assistant from pip.
    """
    corpus = directory / "benchmarks"
    if not (corpus / "train.tsv").exists():
        sys.path.insert(0, str(ROOT / "examples"))
        from german_english import apt_is_there, prepare_german_english

        sources = ["lohelp", "ddtp"] if apt_is_there() else ["homeassistant"]
        prepare_german_english(corpus, sources, cache_dir=directory / "cache")
    lines = (corpus / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t")[0] for line in lines]


def made_up_sentences(count: int, seed: int = 0) -> list[str]:
    """Of three to thirty words of two syllables, with a full stop."""
    random_ = random.Random(seed)
    syllables = [first + vowel for first in "bdfgklmnprstw" for vowel in "aeiou"]
    words = ["".join(random_.choices(syllables, k=2)) for _ in range(300)]
    return [" ".join(random_.choices(words, k=random_.randint(3, 30))).capitalize() + "." for _ in range(count)]


def sentences(source: str, quick: bool) -> list[str]:
    """By --sentences: "real", "made-up" or a text file with one a line.

    Raises:
        ValueError: if there is no such file.
    """
    if source == MADE_UP or (quick and source == "real"):
        return made_up_sentences(6000)
    if source == "real":
        return real_sentences()
    if not Path(source).is_file():
        raise ValueError(f"--sentences {source} is no file; give 'real', 'made-up' or a text with one sentence a line")
    return [line for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
