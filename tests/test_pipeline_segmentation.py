"""Sentences: nothing is lost between them, abbreviations do not end them, line breaks always do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_attn.pipeline_segmentation import Segment, join_segments, split_long, split_sentences

TEXTS = st.text(st.sampled_from("aB1 \n\t.,!?;…。！？，।؟\"')„“»-"), max_size=60) | st.text()


def sentences(text: str) -> list[str]:
    return [segment.text for segment in split_sentences(text)[1]]


@given(TEXTS)
def test_nothing_is_lost(text):
    lead, segments = split_sentences(text)
    assert lead + "".join(segment.text + segment.space for segment in segments) == text
    assert join_segments(lead, segments, [segment.text for segment in segments])[0] == text
    for segment in segments:
        assert segment.text and segment.text == segment.text.strip()
        assert segment.space.strip() == ""


@given(TEXTS, st.integers(1, 10))
def test_nothing_is_lost_when_long_sentences_are_split_further(text, limit):
    lead, segments = split_sentences(text)
    parts = [part for segment in segments for part in split_long(segment, lambda part: len(part) <= limit)]
    assert lead + "".join(part.text + part.space for part in parts) == text
    assert all(0 < len(part.text) <= limit and part.text == part.text.strip() for part in parts)


@pytest.mark.parametrize(
    "parts",
    [
        ["Das ist z. B. ein Hund.", "Er bellt!"],
        ["Das ist z.B. ein Hund, d.h. ein Tier.", "Er bellt!"],
        ["Dr. Müller kommt am 3. Mai.", "Er heißt Prof. Dr. Müller."],
        ["Ludwig XIV. starb 1715.", "Sein Sohn auch."],
        ["Siehe Nr. 5 und Abb. 2 im Buch.", "Dann weiter."],
        ["Er wohnt in der Hauptstr. 5 in Bonn.", "Das Haus ist alt."],
        [
            "Er kam am 5. Mai ging sie."
        ],  # a short number may be an ordinal: rather two sentences in one than one in two
        ["See e.g. the U.S. Army.", "It is big."],
        ["Mr. and Mrs. Smith met J. R. Jones.", "They talked."],
        ["He said no.", "No. 5 is alive."],
        ["It costs 3.14 Euro.", "Version 2.0.1 is out."],
        ["Open https://example.org/a.b?c=d!e now.", "Then read main.py or setup.cfg."],
        ["Run main.py.", "It prints 3.14.", "Done."],
        ["Wait ...", "Now go…", "Really?!", "Yes!!!"],
        ['"Stop!" he said.', '"Stop!"', "She left."],
        ["„Komm!“, sagte er.", "„Nein.“", "(So ist es.)", "Gut."],
        ["¿Qué?", "¡Sí!", "«Oui.»", "Bon."],
        ["Äpfel sind gut.", "Öl auch."],
        ["He left at 5 etc. and so on.", "Then it rained."],
    ],
)
def test_where_sentences_end(parts):
    assert sentences(" ".join(parts)) == parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好。再见！「好。」他说。", ["你好。", "再见！", "「好。」", "他说。"]),
        ("नमस्ते। आप कैसे हैं? ठीक॥", ["नमस्ते।", "आप कैसे हैं?", "ठीक॥"]),
        ("مرحبا؟ نعم۔ شكرا.", ["مرحبا؟", "نعم۔", "شكرا."]),
    ],
)
def test_marks_of_other_scripts(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\n\n", " \n ", "\u2028", "\u2029", "\x85", "\f"])
def test_line_breaks_always_end_a_sentence(line_break):
    assert split_sentences(f"Titel, z.{line_break}eine zeile") == (
        "",
        [Segment("Titel, z.", line_break), Segment("eine zeile", "")],
    )


def test_white_space_at_the_ends_is_kept():
    assert split_sentences("  \n Ein Satz. \t") == ("  \n ", [Segment("Ein Satz.", " \t")])
    assert split_sentences(" \n ") == (" \n ", [])
    assert split_sentences("") == ("", [])


def test_long_sentences_are_split_after_clauses_then_between_words_then_anywhere():
    def split(text: str) -> list[str]:
        return [part.text for part in split_long(Segment(text, ""), lambda part: len(part) <= 12)]

    assert split("one two three, four five") == ["one two", "three,", "four five"]
    assert split("one two, three four") == ["one two,", "three four"]
    assert split("one two three four") == ["one two", "three four"]
    assert split("x" * 20) == ["x" * 10, "x" * 10]
    assert split("红的花，白的雪，蓝的天和海") == ["红的花，", "白的雪，蓝的天和海"]


def test_a_character_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the single character '😀' has more tokens"):
        split_long(Segment("a😀", ""), lambda part: part != "😀" and len(part) < 2)


def test_joining_puts_a_space_where_only_the_source_needs_none():
    lead, segments = split_sentences("你好。再见！")
    assert join_segments(lead, segments, ["Hello.", "Bye!"]) == ("Hello. Bye!", [0, 7])
    assert join_segments(lead, segments, ["今日は。", "さらば！"]) == ("今日は。さらば！", [0, 4])
    lead, segments = split_sentences(" A.\n\nB.")
    assert join_segments(lead, segments, ["甲。", "乙。"]) == (" 甲。\n\n乙。", [1, 5])
