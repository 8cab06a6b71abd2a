"""Our tokenizer of an OPUS-MT model becomes the files that MarianTokenizer reads.

Its two SentencePiece models are written anew: each of our two tokenizers holds all pieces of one with their scores,
and its rules of normalisation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from hf_attn.interchange.opus_tokenizer import SPECIAL, convert_marian
from hf_attn.interchange.sentencepiece_model import write_sentencepiece
from hf_attn.tokenization_opus import OpusTokenizer, without_marks
from hf_attn.tokenization_opus_rules import NEVER, charsmap

MODELS, VOCABULARIES = ("source.spm", "target.spm"), ("vocab.json", "target_vocab.json")
SETTINGS = ("source_lang", "target_lang", "separate_vocabs", "model_max_length", "padding_side", "truncation_side")
OF_A_CALL = ("truncation", "padding")  # what a tokenizer keeps of the last text
REMEDY = "import the model again, or export it without its tokenizer"


def export_marian_tokenizer(tokenizer: OpusTokenizer, directory: Path) -> None:
    """Write source.spm, target.spm, vocab.json, with two vocabularies target_vocab.json, and tokenizer_config.json.

    Raises:
        ValueError: if a MarianTokenizer of these files would not be this tokenizer.
    """
    special = {name: str(getattr(tokenizer, name)) for name in SPECIAL}
    if added := set(map(str, tokenizer.added_tokens_decoder.values())) - set(special.values()):
        raise ValueError(
            f"the tokenizer has {', '.join(sorted(added))} beside its vocabulary, which a MarianTokenizer would cut "
            f"another way; {REMEDY}"
        )
    both = (tokenizer._source, tokenizer._target)
    pieces = [_pieces(each) for each in both]
    for name, each, scores in zip(MODELS, both, pieces, strict=True):
        own = [(without_marks(piece), score) for piece, score in scores if score > NEVER]
        write_sentencepiece(directory / name, own, charsmap(each))
    vocabularies = VOCABULARIES if tokenizer.separate_vocabs else VOCABULARIES[:1]
    for name, scores, known in zip(vocabularies, pieces, tokenizer.known, strict=False):
        ids = {without_marks(word): index for index, (word, _) in enumerate(scores[:known])}
        (directory / name).write_text(json.dumps(ids, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _check(both, directory, separate_vocabs=tokenizer.separate_vocabs, **special)
    said = {**special, **{name: getattr(tokenizer, name) for name in SETTINGS}, "tokenizer_class": "MarianTokenizer"}
    written = json.dumps(said, ensure_ascii=False, indent=2) + "\n"
    (directory / TOKENIZER_CONFIG_FILE).write_text(written, encoding="utf-8")


def _pieces(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"the tokenizer is of type {model['type']!r}, a MarianTokenizer's is 'Unigram'; {REMEDY}")
    return [(piece, score) for piece, score in model["vocab"]]


def _check(both: tuple[Tokenizer, Tokenizer], directory: Path, **said: Any) -> None:
    """Raise a ValueError unless reading what was written gives these two tokenizers again."""
    source, target = (str(directory / name) for name in MODELS)
    words, other_words = (str(directory / name) for name in VOCABULARIES)
    again = convert_marian(source, target, words, other_words if said["separate_vocabs"] else None, **said)
    for ours, name in zip(both, ("tokenizer_object", "target_tokenizer_object"), strict=True):
        parts, parts_again = _parts(ours), _parts(again[name])
        if other := [part for part in parts if parts[part] != parts_again[part]]:
            raise ValueError(
                f"the tokenizer has another {other[0]} than one that was made of a MarianTokenizer; {REMEDY}"
            )


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that it consists of; scores in single precision, for `tokenizers` reads them from JSON a digit off."""
    parts = {name: part for name, part in json.loads(tokenizer.to_str()).items() if name not in OF_A_CALL}
    parts["model"]["vocab"] = [(piece, np.float32(score)) for piece, score in parts["model"]["vocab"]]
    return parts
