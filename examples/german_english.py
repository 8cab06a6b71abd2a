"""Real German-English sentence pairs from Debian packages, without root.

    python examples/german_english.py data/german-english

takes 20 seconds on a 2-core CPU (23 MB of downloads included, kept in data/cache) and writes, on Debian 12, 77,607
training pairs with 0.9 million German words, 2,012 for validation and 2,015 for test. With `--sources
lohelp,ddtp,ding`: 25 seconds, 93,566, 3,011 and 3,016. Where there is no apt: 10 seconds, 19,738, 998 and 1,001.

Sources (`--sources`, comma-separated):

    lohelp         LibreOffice help, HTML paragraphs aligned by their id        apt   MPL-2.0
    ddtp           descriptions of Debian packages and their translations       apt   as each package, all free
    ding           example sentences of the Ding dictionary of TU Chemnitz      apt   GPL-2+
    homeassistant  texts of the user interface of Home Assistant                pip   Apache-2.0

Written are train.tsv, validation.tsv and test.tsv (columns de, en, group) and a README.md. A group (help page, source
package, dictionary entry, component) lies on one side only, and neither a German nor an English sentence of the test
or validation set occurs in training, not even with other digits, capitals or punctuation.
"""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import lxml.html  # type: ignore[import-untyped]
import typer
from downloads import Apt, apt_is_there, cached_file, download_wheel, fetch_once, files_in_package
from parallel_text import SPLITS, Corpus, Pair, clean_pairs, disjoint_splits, split_by_group, write_corpus

HOME_ASSISTANT = "homeassistant==2026.2.3"


# --- Downloads: each source has a folder in the cache, complete or not there at all --------------------------------

APT_REMEDY = "check the network and the machine's apt sources, or use --sources homeassistant, which needs pip only"
WHEEL_REMEDY = "check the network and pip, or use --sources lohelp,ddtp on a machine with apt"


def download_descriptions(apt: Apt) -> Callable[[Path], None]:
    """A download of both languages' package descriptions, and which source package each package is built from."""

    def download(folder: Path) -> None:
        apt.update()
        for language in ("de", "en"):
            indices = apt.indices("Created-By: Translations", f"Language: {language}")
            if not indices:
                raise RuntimeError(f"apt-get update brought no Translation-{language} index; {apt.remedy}")
            with open(folder / f"{language}.txt", "wb") as file:
                for index in indices:
                    file.write(index.read_bytes() + b"\n")
        with open(folder / "sources.tsv", "w", encoding="utf-8") as file:
            for index in apt.indices("Created-By: Packages"):
                for package, source in packages_and_sources(index):
                    file.write(f"{package}\t{source}\n")

    return download


def packages_and_sources(index: Path) -> Iterator[tuple[str, str]]:
    """(package, source package) of each package in a Packages index whose two names differ."""
    package = ""
    with open(index, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Package: "):
                package = line.split()[1]
            elif line.startswith("Source: "):
                yield package, line.split()[1]


# --- Reading: each source yields pairs of texts that stand at the same place ---------------------------------------


def read_libreoffice_help(folder: Path) -> Iterator[Pair]:
    """Paragraphs and headings of the help pages, aligned by page and id."""
    german_deb, english_deb = (cached_file(folder, f"libreoffice-help-{code}_*.deb") for code in ("de", "en-us"))
    english_pages = {page_name(path): page for path, page in files_in_package(english_deb, ".html")}
    for path, page in sorted(files_in_package(german_deb, ".html")):
        name = page_name(path)
        if name in english_pages:
            english = paragraphs_by_id(english_pages[name])
            for identifier, german in paragraphs_by_id(page).items():
                if identifier in english:
                    yield Pair(german, english[identifier], name)


def page_name(path: str) -> str:
    """usr/share/libreoffice/help/de/text/swriter/guide/anchor_object.html -> swriter/guide/anchor_object"""
    return path.partition("/text/")[2].removesuffix(".html")


def paragraphs_by_id(page: bytes) -> dict[str, str]:
    """The text of each paragraph and heading of a help page, without program code and texts with pictures inside."""
    paragraphs = {}
    document = lxml.html.document_fromstring(page, parser=lxml.html.HTMLParser(encoding="utf-8"))
    for element in document.iter("p", "h1", "h2", "h3", "h4", "h5", "h6"):
        is_text = element.get("id", "").startswith(("par_", "hd_")) and "code" not in element.get("class", "")
        if is_text and next(element.iter("img"), None) is None:
            for line_break in element.iter("br"):
                line_break.tail = " " + (line_break.tail or "")
            for switch in element.find_class("switchinline"):
                for other_system in switch[:-1]:  # the last variant is the one for every other system
                    other_system.drop_tree()
            paragraphs[element.get("id")] = element.text_content()
    return paragraphs


def read_package_descriptions(folder: Path) -> Iterator[Pair]:
    """Summaries, paragraphs and list items of package descriptions, aligned by the checksum of the English text."""
    sources = dict(line.split("\t") for line in (folder / "sources.tsv").read_text("utf-8").splitlines())
    english = {checksum: text for _, checksum, text in descriptions(folder / "en.txt")}
    for package, checksum, german in descriptions(folder / "de.txt"):
        if checksum in english:
            german_blocks, english_blocks = description_blocks(german), description_blocks(english[checksum])
            if len(german_blocks) != len(english_blocks):
                german_blocks, english_blocks = german_blocks[:1], english_blocks[:1]  # the summaries
            family = re.sub(r"-?\d[\d.]*(?=-|$)", "", sources.get(package, package))  # gcc-12 and gcc-13 read the same
            for pair in zip(german_blocks, english_blocks, strict=True):
                yield Pair(*pair, family)


def descriptions(path: Path) -> Iterator[tuple[str, str, str]]:
    """(package, checksum, text) of the paragraphs of a Translation index."""
    for stanza in path.read_text("utf-8").split("\n\n"):
        match = re.match(r"\s*Package: (\S+)\nDescription-md5: (\w+)\nDescription-\w+: (.*)", stanza, re.DOTALL)
        if match:
            yield match.group(1), match.group(2), match.group(3).rstrip()


def description_blocks(description: str) -> list[str]:
    """The summary line, then each paragraph and list item of a description, in Debian's control file syntax."""
    summary, *lines = description.split("\n")
    blocks, is_item = [[summary], []], False
    for line in lines:
        item = re.match(r"\s+([-*+•·o]|\d+[.)]) +(.*)", line)
        if line.strip() == ".":
            blocks.append([])
        elif item:
            blocks.append([item.group(2)])
        elif is_item and not line.startswith("  "):
            blocks.append([line])
        else:
            blocks[-1].append(line)
        is_item = bool(item) or (is_item and line.startswith("  "))
    return [" ".join(block) for block in blocks if block]


def read_ding(folder: Path) -> Iterator[Pair]:
    """Whole sentences among the examples of the dictionary; a line reads `German | German :: English | English`."""
    ((_, dictionary),) = files_in_package(cached_file(folder, "trans-de-en_*.deb"), "share/trans/de-en")
    for number, line in enumerate(dictionary.decode("utf-8").splitlines(), start=1):
        german_side, _, english_side = line.partition(" :: ")
        german_entries, english_entries = german_side.split(" | "), english_side.split(" | ")
        if not line.startswith("#") and len(german_entries) == len(english_entries):
            for german, english in zip(german_entries, english_entries, strict=True):
                if not english[:1].islower():  # a shortcut: nine entries in ten are words and phrases
                    german, english = first_variant(german), first_variant(english)
                    if is_sentence(german) and is_sentence(english):
                        yield Pair(german, english, str(number))


def first_variant(entry: str) -> str:
    """The first of the translations that a dictionary entry separates by semicolons, without its grammar notes."""
    without_notes = re.sub(r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>|\([^)]*\)", " ", entry)
    tidy = re.sub(r"\s+(?=[,.!?;:])", "", without_notes)
    return re.split(r"(?<=[.!?…]);\s", tidy)[0].strip()


def is_sentence(text: str) -> bool:
    """Begins like a sentence, ends like one, has no choice of words (in/on) and no gap for the reader to fill."""
    return bool(re.fullmatch(r"[A-ZÄÖÜ„“\"'‘’\d][^/…~;]*[.!?][“”\"'‘’]?", text))


def read_home_assistant(folder: Path) -> Iterator[Pair]:
    """Texts with the same key in the German and the English translation of a component."""
    with zipfile.ZipFile(cached_file(folder, "homeassistant-*.whl")) as wheel:
        names = set(wheel.namelist())
        for name in sorted(names):
            english_name = name.removesuffix("de.json") + "en.json"
            if name.endswith("/translations/de.json") and english_name in names:
                german, english = (dict(texts_by_key(json.loads(wheel.read(file)))) for file in (name, english_name))
                for key in filter(english.__contains__, german):
                    yield Pair(german[key], english[key], name.split("/")[-3])


def texts_by_key(node: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The leaves of nested dictionaries with the path that leads there."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from texts_by_key(value, (*path, key))
        else:
            yield (*path, key), value


@dataclass(frozen=True)
class Source:
    """Where pairs come from, how they are fetched and read, and under which licence they stand."""

    title: str
    licence: str
    packages: tuple[str, ...]
    read: Callable[[Path], Iterator[Pair]]


SOURCES = {
    "lohelp": Source(
        "LibreOffice help",
        "MPL-2.0",
        ("libreoffice-help-de", "libreoffice-help-en-us"),
        read_libreoffice_help,
    ),
    "ddtp": Source(
        "Debian package descriptions and their translations (DDTP)",
        "as each package, all free software",
        (),
        read_package_descriptions,
    ),
    "ding": Source(
        "Ding, German-English dictionary of TU Chemnitz, example sentences",
        "GPL-2+",
        ("trans-de-en",),
        read_ding,
    ),
    "homeassistant": Source("Home Assistant, user interface", "Apache-2.0", (), read_home_assistant),
}


def fetch(name: str, cache: Path, apt: Apt) -> Path:
    """The folder in the cache with the files of a source, downloaded if it is not there yet."""
    if name == "homeassistant":
        return fetch_once(cache / name, download_wheel(HOME_ASSISTANT, WHEEL_REMEDY, python_version="3.14"))
    if name == "ddtp":
        return fetch_once(cache / name, download_descriptions(apt))
    return fetch_once(cache / name, apt.download(*SOURCES[name].packages))


# --- All of it -----------------------------------------------------------------------------------------------------


def readme(corpus: Corpus, sources: list[str], max_words: int) -> str:
    """Sources, licences, counts and rules of a corpus."""
    rows = [f"| {name} | {SOURCES[name].title} | {SOURCES[name].licence} |" for name in sources]
    limit = f" Sentences of more than {max_words} words were left out." if max_words else ""
    return "\n".join(
        [
            "# German-English sentence pairs",
            "",
            "| name | source | licence |",
            "|---|---|---|",
            *rows,
            "",
            f"Columns: de, en, group.{limit} A group (help page, source package, dictionary entry, component) is",
            "in one split only. No sentence of test or validation occurs in training, not even with other digits,",
            "capitals or punctuation.",
            "",
            "```",
            str(corpus),
            "```",
            "",
        ]
    )


def choose_sources(say: Callable[[str], None]) -> list[str]:
    """Debian's texts where there is apt, otherwise those of a wheel."""
    if apt_is_there():
        say("apt found: LibreOffice help and package descriptions from the machine's Debian mirror")
        return ["lohelp", "ddtp"]
    say("no apt: user interface texts of Home Assistant from pip")
    return ["homeassistant"]


def prepare_german_english(
    output_dir: str | Path,
    sources: list[str] | None = None,
    cache_dir: str | Path = "data/cache",
    max_words: int = 0,
    held_out: int = 1000,
    say: Callable[[str], None] = typer.echo,
) -> Corpus:
    """Fetch, align, clean, split and write German-English sentence pairs.

    `held_out` sentences, at most a tenth, of each source go to validation and as many to test; sentences of more than
    `max_words` words on either side are left out (0: none). Downloads stay in `cache_dir` and are not fetched again.
    Raises ValueError for an unknown source and RuntimeError if a download fails.
    """
    sources = list(dict.fromkeys(sources)) if sources is not None else choose_sources(say)
    unknown = [name for name in sources if name not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"no such source: {', '.join(unknown) or '(none given)'}; there are {', '.join(SOURCES)}")
    directory, cache = Path(output_dir), Path(cache_dir)
    directory.mkdir(parents=True, exist_ok=True)  # before the work: it may not be writable
    apt = Apt(cache, APT_REMEDY, languages=("de", "en"))
    dropped: Counter[str] = Counter()
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for source in sources:
        folder = fetch(source, cache, apt)
        say(f"{source}: aligning and cleaning {SOURCES[source].title} ...")
        texts = (text._replace(group=f"{source}/{text.group}") for text in SOURCES[source].read(folder))
        pairs = clean_pairs(texts, max_words, dropped)
        say(f"{source}: {len(pairs):,} sentence pairs")
        for name, part in split_by_group(pairs, held_out).items():
            splits[name] += part
    splits = disjoint_splits(splits, dropped)
    counts = {name: Counter(pair.group.partition("/")[0] for pair in pairs) for name, pairs in splits.items()}
    corpus = Corpus(directory, counts, dropped)
    write_corpus(splits, directory, readme(corpus, sources, max_words))
    say(f"{corpus}\nwritten to {corpus.directory}")
    return corpus


def main(
    output_dir: Annotated[Path, typer.Argument(help="Folder for train.tsv, validation.tsv, test.tsv and README.md.")],
    sources: Annotated[str, typer.Option(help=f"Of {', '.join(SOURCES)}; by default what fits the machine.")] = "",
    cache_dir: Annotated[Path, typer.Option(help="Folder where downloads are kept.")] = Path("data/cache"),
    max_words: Annotated[int, typer.Option(min=0, help="Leave longer sentences out; 0: leave none out.")] = 0,
    held_out: Annotated[int, typer.Option(min=1, help="Test and validation sentences of each source.")] = 1000,
) -> None:
    """Fetch real German-English sentence pairs without root, from Debian packages or a wheel."""
    chosen = [name.strip() for name in sources.split(",")] if sources else None
    try:
        prepare_german_english(output_dir, chosen, cache_dir, max_words, held_out)
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


if __name__ == "__main__":
    typer.run(main)
