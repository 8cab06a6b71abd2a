"""A SentencePiece model file (.spm, .model), read and written without the library that makes them.

It is one protocol buffer message, of which a tokenizer needs three parts: the pieces with their scores, how text is
normalised, and what kind of model it is (sentencepiece_model.proto in google/sentencepiece gives the numbers below).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PIECE, TRAINER, NORMALIZER = 1, 2, 3  # of the whole message
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # how a value is written


class Piece(NamedTuple):
    text: str
    score: float  # its log-probability
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file says.

    Args:
        kind: "unigram", "bpe", "word" or "char".
        pieces: by their ids in this model.
        charsmap: the rules of normalisation, as compiled by SentencePiece; empty for none.
        add_dummy_prefix: whether a text gets a space before it.
        remove_extra_whitespaces: whether spaces at both ends go, and of several between words all but one.
        escape_whitespaces: whether a space is written "▁".
        byte_fallback: whether unknown characters become pieces for their bytes.
        whitespace_as_suffix: whether "▁" ends a word, instead of beginning it.
    """

    kind: str
    pieces: list[Piece]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    byte_fallback: bool
    whitespace_as_suffix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Raises a ValueError for a file that is no SentencePiece model, or is cut off."""
    try:
        message = list(_fields(path.read_bytes()))
        if not {PIECE, TRAINER, NORMALIZER} <= {
            number for number, _ in message
        }:  # as where it ends between two pieces
            raise ValueError("it has not all of its parts")
        pieces = [_piece(value) for number, value in message if number == PIECE]
        trainer = dict(_fields(b"".join(value for number, value in message if number == TRAINER)))
        normalizer = dict(_fields(b"".join(value for number, value in message if number == NORMALIZER)))
        return SentencePieceModel(
            kind=KINDS[trainer.get(3, 1)],
            pieces=pieces,
            charsmap=normalizer.get(2, b""),
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
            escape_whitespaces=bool(normalizer.get(5, 1)),
            byte_fallback=bool(trainer.get(35, 0)),
            whitespace_as_suffix=bool(trainer.get(24, 0)),
        )
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{path} is no SentencePiece model, or is damaged ({error}); copy it again") from error


def write_sentencepiece(path: Path, pieces: Iterable[tuple[str, float]], charsmap: bytes) -> None:
    """Write an unigram model; whatever else a model may say is as SentencePiece has it by default.

    Args:
        pieces: normal ones with their log-probabilities. `<unk>`, `<s>` and `</s>` are written before them.
        charsmap: as `SentencePieceModel` has it.
    """
    special = [Piece("<unk>", 0, UNKNOWN), Piece("<s>", 0, CONTROL), Piece("</s>", 0, CONTROL)]
    listed = [*special, *(Piece(text, score, NORMAL) for text, score in pieces)]
    message = [_written(PIECE, _written_piece(piece)) for piece in listed]
    message.append(_written(TRAINER, _written(3, 1)))  # "unigram" of KINDS
    message.append(_written(NORMALIZER, _written(2, charsmap)))
    path.write_bytes(b"".join(message))


def _written_piece(piece: Piece) -> bytes:
    score = _written_varint(2 << 3 | FOUR_BYTES) + struct.pack("<f", piece.score)
    return _written(1, piece.text.encode()) + score + _written(3, piece.type)


def _written(number: int, value: int | bytes) -> bytes:
    """A field: its number, and a whole number or bytes."""
    if isinstance(value, int):
        return _written_varint(number << 3 | VARINT) + _written_varint(value)
    return _written_varint(number << 3 | BYTES) + _written_varint(len(value)) + value


def _written_varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    return Piece(fields[1].decode(), struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0, fields.get(3, NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: their numbers, and their values as whole numbers or bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, written = tag >> 3, tag & 7
        if written == VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(written)
        if written == BYTES:
            size, place = _varint(message, place)
        if size is None or place + size > len(message):
            raise ValueError(f"no field at byte {place}")
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, the lowest first; and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
