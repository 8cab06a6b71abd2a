"""Where SentencePiece and the library `tokenizers` differ: joined letters and accents, and the precision of sums."""

import base64
import json
import struct
import unicodedata
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

# What a text reaches only as a whole, never as a part, has a mark: runs of characters that are no pieces of this
# language but of the other one, and the tag before a text. Unicode keeps these two for such uses: they are in no text.
EDGE, TAG_END = "\ufdd0", "\ufdd1"
NEVER = -1e6  # log-probability of what is not chosen while there are pieces
UNKNOWN = 10.0  # so much less likely than the unlikeliest piece is a character that is none


def charsmap(tokenizer: Tokenizer) -> bytes:
    """SentencePiece's rules of normalisation, as it has compiled them; empty for none."""
    steps = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer is not None else {}
    encoded = [step["precompiled_charsmap"] for step in steps.get("normalizers", []) if step["type"] == "Precompiled"]
    return base64.b64decode(encoded[0]) if encoded else b""


class Compositions:
    """Letters and accents that SentencePiece joins.

    Its rules of normalisation (in `precompiled_charsmap`) take from the text, at each place, the longest key there
    is. The library `tokenizers` goes by what it takes for one character to the eye, and loses parts of long ones; so
    the rules for several characters are applied here, and only those for a single one are left to it.

    The rules are a double-array trie (Aoe 1989) of UTF-8 bytes: each unit has the byte that led to it, the offset of
    those that follow, and whether a key ends. Behind it stand the replacements, each ended by a zero.
    """

    def __init__(self, tokenizer: Tokenizer):
        rules = charsmap(tokenizer) or struct.pack("<I", 0)
        (size,) = struct.unpack_from("<I", rules)
        self.units = struct.unpack_from(f"<{size // 4}I", rules, 4)
        self.replacements = rules[4 + size :]

    def __call__(self, text: str) -> str:
        if not self.units or unicodedata.is_normalized("NFKC", text):
            return text
        data = text.encode(errors="surrogatepass")
        parts: list[bytes] = []
        place = 0
        while place < len(data):
            first = place + _utf8_length(data[place])
            end, replacement = self._longest(data, place)
            joins = end > first
            parts.append(self._replacement(replacement) if joins else data[place:first])
            place = end if joins else first
        return b"".join(parts).decode(errors="surrogatepass")

    def _longest(self, data: bytes, place: int) -> tuple[int, int]:
        """Where the longest key that begins at `place` ends, and where its replacement begins."""
        end, replacement = place, 0
        node = _offset(self.units[0])
        for i in range(place, len(data)):
            node ^= data[i]
            if node >= len(self.units) or self.units[node] & 0x800000FF != data[i]:
                break
            ends_here = self.units[node] >> 8 & 1
            node ^= _offset(self.units[node])
            if ends_here:
                end, replacement = i + 1, self.units[node] & 0x7FFFFFFF
        return end, replacement

    def _replacement(self, begin: int) -> bytes:
        return self.replacements[begin : self.replacements.index(b"\0", begin)]


def _offset(unit: int) -> int:
    return unit >> 10 << (unit >> 6 & 8)


def _utf8_length(first_byte: int) -> int:
    return 1 if first_byte < 0x80 else 2 if first_byte < 0xE0 else 3 if first_byte < 0xF0 else 4


class SinglePrecision:
    """The order of pieces that may change places, as "000" and "00" in "00000".

    Both orders are equally likely, and which of them has the greater sum of log-probabilities is a matter of rounding:
    SentencePiece adds in single precision, `tokenizers` in double.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.scores: dict[str, np.float32] = {}

    def __call__(self, ids: list[int], tokens: list[str]) -> Iterator[tuple[int, list[str]]]:
        """The runs of such pieces: where each begins, and its pieces as SentencePiece puts them."""
        i = 0
        while i < len(tokens) - 1:
            end = i + 1
            while end < len(tokens) and _may_change_places(tokens[i], tokens[end]):
                end += 1
            if len(set(tokens[i:end])) > 1:
                run = self._likeliest("".join(tokens[i:end]), self._sum(tokens[:i]))
                if len(run) == end - i:
                    yield i, run
            i = end

    def _sum(self, tokens: list[str]) -> np.float32:
        """Of the pieces before, back to where SentencePiece's text began."""
        if not self.scores:
            pieces = json.loads(self.tokenizer.to_str())["model"]["vocab"]
            self.scores = {piece: np.float32(score) for piece, score in pieces if score > NEVER}
        special = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        total, unknown = np.float32(0), np.float32(min(self.scores.values()) - np.float32(UNKNOWN))
        for token in tokens:
            if token in special or token.endswith(TAG_END):
                total = np.float32(0)
            elif token in self.scores:
                total += self.scores[token]
            else:
                for _ in token.strip(EDGE):
                    total += unknown
        return total

    def _likeliest(self, text: str, before: np.float32) -> list[str]:
        """Viterbi's algorithm, as in SentencePiece's unigram_model.cc: of equal sums the one with the longest last."""
        best: list[tuple[np.float32, int] | None] = [(before, 0)] + [None] * len(text)
        for begin in range(len(text)):
            if (reached := best[begin]) is None:
                continue
            for end in range(begin + 1, len(text) + 1):
                if (score := self.scores.get(text[begin:end])) is not None:
                    total, there = reached[0] + score, best[end]
                    if there is None or total > there[0]:
                        best[end] = (total, begin)
        pieces: list[str] = []
        end = len(text)
        while end > 0 and (reached := best[end]) is not None:
            pieces.append(text[reached[1] : end])
            end = reached[1]
        return pieces[::-1]


def _may_change_places(first: str, second: str) -> bool:
    return first[:1] == second[:1] and first + second == second + first
