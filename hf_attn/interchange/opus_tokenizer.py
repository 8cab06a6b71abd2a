"""MarianTokenizer's two SentencePiece models and its vocab.json become the two fast tokenizers of `OpusTokenizer`.

A MarianTokenizer has a text cut into pieces by its language's model, and looks each piece up in vocab.json, whose ids
are those of the model. A piece that is not there is `<unk>`; so is a run of characters that are no pieces, unless
vocab.json has it from the other language. Here each tokenizer has all of vocab.json, so that its ids are right and
its decoder knows every word, but of it only its own language's pieces are likely enough ever to be chosen.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import Unigram

from hf_attn.interchange.sentencepiece_model import (
    NORMAL,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)
from hf_attn.tokenization_opus import in_tokenizer, is_tag
from hf_attn.tokenization_opus_rules import EDGE, NEVER, TAG_END

SPACE = "▁"
BREAK = "\ufdd2"  # parts what `tokenizers` would take for one character to the eye; in no text, like the marks
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
MODEL_MAX_LENGTH = 512  # of MarianTokenizer


def convert_marian(
    source_spm: str | None = None,
    target_spm: str | None = None,
    vocab: str | None = None,
    target_vocab_file: str | None = None,
    separate_vocabs: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """What `OpusTokenizer` is made of, from the files of a MarianTokenizer and the other arguments that it has.

    Raises:
        ValueError: if a file is missing or damaged, or its SentencePiece model is of another kind than OPUS-MT's.
    """
    if source_spm is None or target_spm is None or vocab is None:
        files = {"source.spm": source_spm, "target.spm": target_spm, "vocab.json": vocab}
        missing = ", ".join(name for name, file in files.items() if file is None)
        raise ValueError(f"of {', '.join(files)} there is no {missing}; copy or download it again")
    if separate_vocabs and target_vocab_file is None:
        raise ValueError("separate_vocabs is true, but there is no target_vocab.json; copy or download it again")
    special = {name: str(kwargs.get(name) or token) for name, token in SPECIAL.items()}
    vocabularies = [_vocabulary(Path(vocab), special)] * 2
    if separate_vocabs and target_vocab_file is not None:
        vocabularies[1] = _vocabulary(Path(target_vocab_file), special)
        for token in special.values():
            if len({vocabulary.index(token) for vocabulary in vocabularies}) > 1:
                raise ValueError(f"{token} has different ids in vocab.json and target_vocab.json; it must have one")
    models = [_read(Path(file)) for file in (source_spm, target_spm)]
    pieces = [_pieces(spm, words) for spm, words in zip(models, vocabularies, strict=True)]
    size = max(map(len, pieces))  # one for both, so that a token that is added later has one id
    source, target = (
        _tokenizer(spm, words, part + [(EDGE * (i + 3), NEVER) for i in range(size - len(part))], special)
        for spm, words, part in zip(models, vocabularies, pieces, strict=True)
    )
    kwargs = {name: value for name, value in kwargs.items() if name not in ("tokenizer_file", "sp_model_kwargs")}
    kwargs.setdefault("model_max_length", MODEL_MAX_LENGTH)
    return {
        **kwargs,
        **special,
        "separate_vocabs": separate_vocabs,
        "tokenizer_object": source,
        "target_tokenizer_object": target,
        "known": tuple(map(len, vocabularies)),
    }


def _vocabulary(file: Path, special: dict[str, str]) -> list[str]:
    """Words by their ids."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
        words = sorted(ids, key=ids.__getitem__)
        is_whole = [ids[word] for word in words] == list(range(len(ids)))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
    if not is_whole:
        raise ValueError(
            f"{file} gives its {len(words)} words other ids than 0 to {len(words) - 1}; copy or download it again"
        )
    if missing := [token for token in special.values() if token not in ids]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; a translator needs all of {', '.join(special.values())}")
    return words


def _pieces(spm: SentencePieceModel, words: list[str]) -> list[tuple[str, float]]:
    """The words of the model, by their ids, and the pieces that it does not know, with their log-probabilities."""
    scores = {piece.text: piece.score for piece in spm.pieces if piece.type == NORMAL}
    own, known = _own_characters(spm), set(words)
    return [
        *(
            (in_tokenizer(word) if is_tag(word) or own.isdisjoint(word) else word, scores.get(word, NEVER))
            for word in words
        ),
        *((piece, score) for piece, score in scores.items() if piece not in known),
    ]


def _own_characters(spm: SentencePieceModel) -> set[str]:
    return {character for piece in spm.pieces if piece.type == NORMAL for character in piece.text}


def _tokenizer(
    spm: SentencePieceModel, words: list[str], pieces: list[tuple[str, float]], special: dict[str, str]
) -> Tokenizer:
    tokenizer = Tokenizer(Unigram(pieces, unk_id=words.index(special["unk_token"])))
    tokenizer.normalizer = normalizer(spm, _own_characters(spm), [word for word in words if is_tag(word)])
    tokenizer.decoder = _decoder(special)
    end = special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, words.index(end))]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    return tokenizer


def _read(file: Path) -> SentencePieceModel:
    spm = read_sentencepiece(file)
    wrong = []
    if spm.kind != "unigram":
        wrong.append(f"of type {spm.kind!r} instead of 'unigram'")
    if spm.byte_fallback:
        wrong.append("writing unknown characters as bytes")
    if spm.whitespace_as_suffix or not (spm.escape_whitespaces and spm.add_dummy_prefix):
        wrong.append(f"without {SPACE} before words")
    if not spm.remove_extra_whitespaces:
        wrong.append("that keeps several spaces")
    if any(piece.type == USER_DEFINED for piece in spm.pieces):
        wrong.append("with pieces that its user has defined")
    if wrong:
        raise ValueError(f"{file} is a model {' and '.join(wrong)}; take transformers' MarianTokenizer for it")
    return spm


def normalizer(spm: SentencePieceModel, own: set[str], tags: list[str]) -> normalizers.Normalizer:
    """SentencePiece's normalisation (normalizer.cc), after joined letters and accents, which `OpusTokenizer` sees to.

    Nothing is ever inserted before the first character: `Replace` would lose count of the characters.

    Args:
        own: the characters of the language's pieces.
        tags: those that the model knows; any other is one unknown word.
    """
    names = "|".join(re.escape(known.removeprefix(">>").removesuffix("<<")) for known in tags) or r"\b\B"
    tag = f"(?:>>[^{TAG_END}]*)?{TAG_END}"
    steps = [
        _replace(r"\A>>(?m:.*?)<<\K", TAG_END),
        _replace(rf"\A>>(?!(?:{names})<<{TAG_END})[^{TAG_END}]*{TAG_END}", TAG_END),
    ]
    if spm.charsmap:
        joins = r"\p{M}\x{200c}\x{200d}\x{ff9e}\x{ff9f}\x{1f3fb}-\x{1f3ff}"
        apart = _replace(rf"(?<=(?m:.))(?=[{joins}])", BREAK)
        steps += [apart, normalizers.Precompiled(spm.charsmap), _replace(BREAK, "")]
    others = f"[^{_characters(own)}{EDGE}{TAG_END}]"
    return normalizers.Sequence(
        [
            *steps,
            _replace(rf"\A(?:{tag})?+\K +|[ {SPACE}]+\z", ""),
            _replace(" +", SPACE),
            normalizers.Prepend(SPACE),
            _replace(rf"\A{SPACE}(?={tag})", ""),
            _replace(rf"\A{tag}\K(?=(?m:.))", SPACE),
            _replace(rf"(?:(?<!{others})(?={others})|(?<={others})(?!{others}))(?![^{TAG_END}]*{TAG_END})", EDGE),
        ]
    )


def _replace(pattern: str, by: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), by)


def _characters(characters: set[str]) -> str:
    """For a class of a regular expression, as ranges."""
    numbers = sorted(map(ord, characters))
    begins = [n for n in numbers if n - 1 not in set(numbers)]
    ends = [n for n in numbers if n + 1 not in set(numbers)]
    return "".join(rf"\x{{{begin:x}}}-\x{{{end:x}}}" for begin, end in zip(begins, ends, strict=True))


def _decoder(special: dict[str, str]) -> decoders.Decoder:
    """Pieces without marks, spaces for their "▁", none at the beginning; after a special token stands a space."""
    steps = [*(decoders.Replace(mark, "") for mark in (EDGE, TAG_END)), decoders.Replace(SPACE, " "), decoders.Fuse()]
    steps += [decoders.Replace(Regex(f"{re.escape(token)} ?"), f"{token} ") for token in special.values()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
