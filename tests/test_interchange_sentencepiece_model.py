"""A SentencePiece file is read as the library that wrote it reads it."""

from pathlib import Path

import pytest
import sentencepiece

from hf_attn.interchange.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    read_sentencepiece,
    write_sentencepiece,
)
from tests.opus import train_model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_model(tmp_path_factory.mktemp("spm") / "source.spm", ["ein Satz", "noch ein Satz", "Sätze"] * 9, 30)


def test_pieces_and_scores(file):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ours = read_sentencepiece(file)
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(i) for i in range(len(theirs))]
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(i) for i in range(len(theirs))]
    assert [piece.type for piece in ours.pieces[:4]] == [UNKNOWN, CONTROL, CONTROL, NORMAL]


def test_settings(file, tmp_path):
    ours = read_sentencepiece(file)
    assert (ours.kind, ours.byte_fallback, ours.whitespace_as_suffix) == ("unigram", False, False)
    assert ours.add_dummy_prefix and ours.remove_extra_whitespaces and ours.escape_whitespaces
    assert len(ours.charsmap) > 200_000  # nmt_nfkc
    other = train_model(
        tmp_path / "other.spm",
        ["ein Satz", "noch ein Satz"] * 9,
        25,
        model_type="bpe",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        treat_whitespace_as_suffix=True,
    )
    ours = read_sentencepiece(other)
    assert (ours.kind, ours.charsmap, ours.whitespace_as_suffix) == ("bpe", b"", True)
    assert not (ours.add_dummy_prefix or ours.remove_extra_whitespaces)


def test_what_is_written_is_the_same_model_to_the_library(file, tmp_path):
    ours = read_sentencepiece(file)
    pieces = [(piece.text, piece.score) for piece in ours.pieces if piece.type == NORMAL]
    write_sentencepiece(tmp_path / "again.spm", pieces, ours.charsmap)
    assert read_sentencepiece(tmp_path / "again.spm") == ours
    both = [sentencepiece.SentencePieceProcessor(model_file=str(each)) for each in (file, tmp_path / "again.spm")]
    for text in ("noch Sätze", "  ein   Satz ", "S\u0061\u0308tze ﬁ 中", ""):
        assert both[0].encode(text, out_type=str) == both[1].encode(text, out_type=str)
        assert both[0].encode(text) == both[1].encode(text)


def test_damaged_files_are_refused(file, tmp_path):
    whole = file.read_bytes()
    for name, content in {
        "cut": whole[:-500],
        "empty": b"",
        "text": b"source language model",
        "zip": b"PK\x03\x04" * 9,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no SentencePiece model, or is damaged"):
            read_sentencepiece(tmp_path / name)


def test_wherever_a_file_ends_too_early_it_is_noticed(file, tmp_path):
    """Between two pieces, too, where what is there is whole."""
    whole = file.read_bytes()
    for length in [*range(600), len(whole) // 2, len(whole) - 9]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut is no SentencePiece model, or is damaged"):
            read_sentencepiece(tmp_path / "cut")
