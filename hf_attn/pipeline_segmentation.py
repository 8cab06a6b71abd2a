"""A text into sentences, and translated sentences back into a text, with every white space where it was."""

import re
from collections.abc import Callable
from typing import NamedTuple

LINE_BREAKS = frozenset("\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
WIDE_MARKS = "。！？｡"  # Chinese, Japanese: end a sentence, and no white space follows
FULL_MARKS = WIDE_MARKS + "।॥؟۔။។"  # end one wherever they stand; Devanagari, Arabic, Urdu, Burmese, Khmer as well
MARKS = ".!?…"  # end one only before white space
CLOSERS = "\"'”’“‘»«›‹)]}」』）】〉》"
MAY_END = frozenset(MARKS + FULL_MARKS + CLOSERS)
OPENERS = "\"'„“”‚‘’»«›‹([{「『（【〈《¿¡–—*•-"

BREAK = re.compile(rf"(?P<space>\s+)|[{FULL_MARKS}]+[{re.escape(CLOSERS)}]*")
BEFORE_WORD = re.compile(r"[\s()\[\]{}\"'„“‚‘»«/–—-]")
LONGEST_WORD = 60  # characters that are looked at before and behind a white space
CLAUSE_END = re.compile(r"(?<=[,;:–—،؛])\s+|(?<=[，、；：])(?!$|\s)")
SPACE = re.compile(r"\s+")

# What owns the full stop behind it. Words that can also end a sentence (usw., etc., Inc.) are left out: before a small
# letter no full stop ends a sentence anyhow.
WITH_FULL_STOP = (
    re.compile(  # German
        "abb|abs|allg|anm|aufl|ausg|bd|bspw|bzgl|bzw|ca|dgl|dipl|dr|ehem|eigtl|einschl|evtl|exkl|frl|geb|gebr|gegr|"
        "gest|ggf|hl|hr|hrn|hrsg|ing|inkl|insb|jh|jhd|lfd|mio|mrd|mwst|nr|prof|rd|sog|spez|std|stellv|südl|nördl|östl|"
        "tel|tsd|tägl|verh|vgl|zit|zzgl",
        re.IGNORECASE,
    ),
    re.compile(  # English
        "adm|approx|assoc|ave|blvd|brig|capt|cf|cmdr|col|cpl|dept|dist|esp|gov|hon|incl|intl|lieut|lt|maj|messrs|mme|"
        "mr|mrs|ms|mt|pres|rep|rev|sen|sgt|sr|st|supt|univ|viz|vs",
        re.IGNORECASE,
    ),
    re.compile(r"[^\W\d_]"),  # initials, z. B.
    re.compile(r"\d{1,2}"),  # ordinals: am 3. Mai
    re.compile(r"[IVX]+"),  # Ludwig XIV.
    re.compile(r"(\w{1,2}\.)+[^\W\d]{1,2}"),  # e.g., d.h., Ph.D.
    re.compile(r"\w*[Ss]tr"),  # Hauptstr. 5
)
# What owns it before a number only ("No. 5", "Fig. 2", "Dec. 24"): elsewhere these are words and names.
WITH_FULL_STOP_BEFORE_NUMBER = re.compile(
    "apr|art|aug|bl|ch|dec|dez|eq|feb|figs?|jan|jul|jun|kap|mar|nos?|nov|okt|oct|par|pp|sec|sept?|tab|vol|zeile|ziff",
    re.IGNORECASE,
)


class Segment(NamedTuple):
    """A sentence, or a part of one, and the white space behind it."""

    text: str
    space: str


def split_sentences(text: str) -> tuple[str, list[Segment]]:
    """Split a text after its sentences and at every line break.

    Returns:
        The white space that the text begins with, and its sentences, none of them empty or with white space at an end.
        Everything joined in order is the text again, character for character.
    """
    lead = text[: len(text) - len(text.lstrip())]
    segments = []
    start = len(lead)
    for found in BREAK.finditer(text, start):
        if found["space"] is None:
            is_end = found.end() == len(text) or not text[found.end()].isspace()
        else:
            is_end = found.end() == len(text) or _separates_sentences(text, found.start(), found.end())
        if is_end:
            end = found.start() if found["space"] is not None else found.end()
            segments.append(Segment(text[start:end], found["space"] or ""))
            start = found.end()
    if start < len(text):
        segments.append(Segment(text[start:], ""))
    return lead, segments


def _separates_sentences(text: str, start: int, end: int) -> bool:
    """Whether the white space text[start:end] stands between two sentences."""
    if not LINE_BREAKS.isdisjoint(text[start:end]):
        return True
    if text[start - 1] not in MAY_END:
        return False
    before = text[max(0, start - LONGEST_WORD) : start].rstrip(CLOSERS)
    if before.endswith(tuple(FULL_MARKS)):
        return True
    words = before.rstrip(MARKS)
    after = text[end : end + LONGEST_WORD].lstrip(OPENERS)
    if words == before or after[:1].islower():
        return False
    word = BEFORE_WORD.split(words)[-1]
    return before[len(words) :] != "." or not _owns_full_stop(word, after[:1].isdigit())


def _owns_full_stop(word: str, before_number: bool) -> bool:
    """Whether a full stop behind this word is part of it, rather than the end of a sentence."""
    if before_number and WITH_FULL_STOP_BEFORE_NUMBER.fullmatch(word):
        return True
    return any(form.fullmatch(word) for form in WITH_FULL_STOP)


def split_long(segment: Segment, fits: Callable[[str], bool]) -> list[Segment]:
    """Halve a segment until every part fits: after a clause near its middle, else between words, else anywhere.

    Raises:
        ValueError: if a single character does not fit.
    """
    if fits(segment.text):
        return [segment]
    if len(segment.text) == 1:
        raise ValueError(f"the single character {segment.text!r} has more tokens than a source may have; allow more")
    left, right = _halve(segment.text)
    return [*split_long(left, fits), *split_long(Segment(right, segment.space), fits)]


def _halve(text: str) -> tuple[Segment, str]:
    middle = len(text) // 2

    def distance(found: re.Match) -> int:
        return max(found.start() - middle, middle - found.end(), 0)

    for boundary in (CLAUSE_END, SPACE):
        nearest = min(boundary.finditer(text), key=distance, default=None)
        if nearest is not None and distance(nearest) <= len(text) // 4:
            return Segment(text[: nearest.start()], nearest.group()), text[nearest.end() :]
    return Segment(text[:middle], ""), text[middle:]


def join_segments(lead: str, segments: list[Segment], translations: list[str]) -> tuple[str, list[int]]:
    """Put translations where their segments were: after `lead`, each with the white space behind its segment.

    Where the source needs no white space because its marks are wide, and the translation does not end in such a mark,
    a space is put between two sentences.

    Returns:
        The text, and the character at which each translation begins in it.
    """
    parts, starts, length = [lead], [], len(lead)
    for segment, translation in zip(segments, translations, strict=True):
        starts.append(length)
        part = translation + segment.space
        if not segment.space and segment is not segments[-1] and _is_wide(segment.text) and not _is_wide(translation):
            part += " "
        parts.append(part)
        length += len(part)
    return "".join(parts), starts


def _is_wide(sentence: str) -> bool:
    return sentence.rstrip(CLOSERS).endswith(tuple(WIDE_MARKS))
