"""One tokenizer for two languages, each with a vocabulary of its own: that of the OPUS-MT models.

text → characters in their usual form → the likeliest pieces by the source's model, or the target's → shared ids, </s>

The two segmentations are two tokenizers of the library `tokenizers`, in tokenizer.json and target_tokenizer.json, with
the same ids. The first reads texts and the second `text_target`, and writes out what the model says. A model for many
target languages is told the wanted one by a tag before the text, as in `>>deu<< How are you?`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer
from transformers import TokenizersBackend

from .tokenization_opus_rules import EDGE, TAG_END, Compositions, SinglePrecision

TARGET_FILE = "target_tokenizer.json"


def is_tag(word: str) -> bool:
    return word.startswith(">>") and word.endswith("<<")


def in_tokenizer(word: str) -> str:
    """A word that has marks, with them."""
    return word + TAG_END if is_tag(word) else EDGE + word + EDGE


def without_marks(word: str) -> str:
    return word.strip(EDGE + TAG_END)


class OpusTokenizer(TokenizersBackend):
    """See above; offsets are those in a text whose accents have been joined with their letters.

    Args:
        target_tokenizer_file: the target's tokenizer; without one, the source's reads targets, too.
        target_tokenizer_object: the same, not in a file.
        known: for the source and the target, how many ids the model knows. Pieces behind those are `<unk>` to it.
        source_lang, target_lang: what the model's makers call its languages.
        separate_vocabs: whether source and target have ids of their own; only the target's can be written out.
    """

    vocab_files_names = {
        "tokenizer_file": "tokenizer.json",
        "target_tokenizer_file": TARGET_FILE,
        "source_spm": "source.spm",
        "target_spm": "target.spm",
        "vocab": "vocab.json",
        "target_vocab_file": "target_vocab.json",
    }
    model_input_names = ["input_ids", "attention_mask"]
    _tokenizer: Any  # of the two, the one in use
    _both: tuple[Any, ...] = ()
    # Makes both tokenizers of the files of a MarianTokenizer; only the package itself has it
    convert_marian: ClassVar[Callable[..., dict[str, Any]] | None] = None

    def __init__(
        self,
        *args: Any,
        target_tokenizer_file: str | None = None,
        target_tokenizer_object: Tokenizer | None = None,
        known: tuple[int, int] | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        separate_vocabs: bool = False,
        **kwargs: Any,
    ):
        self.source_lang, self.target_lang, self.separate_vocabs = source_lang, target_lang, separate_vocabs
        said = {"source_lang": source_lang, "target_lang": target_lang, "separate_vocabs": separate_vocabs}
        super().__init__(*args, known=known, **said, **kwargs)
        self._source = self._target = self._tokenizer
        if target_tokenizer_object is not None:
            self._target = target_tokenizer_object
        elif target_tokenizer_file is not None:
            self._target = Tokenizer.from_file(target_tokenizer_file)
        sizes = [tokenizer.get_vocab_size(with_added_tokens=False) for tokenizer in (self._source, self._target)]
        self.known = tuple(known or sizes)
        self._unknown = [range(first, end) for first, end in zip(self.known, sizes, strict=True)]
        self._compositions = [Compositions(tokenizer) for tokenizer in (self._source, self._target)]
        self._single_precision = [SinglePrecision(tokenizer) for tokenizer in (self._source, self._target)]
        there = {token.content for token in self._target.get_added_tokens_decoder().values()}
        self._target.add_tokens([token for token in self.added_tokens_decoder.values() if token.content not in there])
        self._both = (self._source,) if self._target is self._source else (self._source, self._target)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """What `__init__` is given: files of ours as they are, those of a MarianTokenizer converted."""
        is_marian_s = any(kwargs.get(name) is not None for name in ("source_spm", "target_spm"))
        if not is_marian_s or kwargs.get("target_tokenizer_file") is not None:
            return kwargs
        if cls.convert_marian is None:
            raise ValueError("a MarianTokenizer is converted by the package hf_attn; install and import it")
        return cls.convert_marian(**kwargs)

    # --- source and target -------------------------------------------------------------------------------------------

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self._target

    @property
    def _is_target(self) -> bool:
        return self._tokenizer is self._target and self._target is not self._source

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        for tokenizer in self._both or (self._tokenizer,):
            add = tokenizer.add_special_tokens if special_tokens else tokenizer.add_tokens
            added = add(new_tokens)
        return added

    @property
    def supported_language_codes(self) -> list[str]:
        """The tags that may stand before a text."""
        return [token for token in self.get_vocab() if is_tag(token)]

    # --- text to ids -------------------------------------------------------------------------------------------------

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any):
        return super()._encode_plus(self._composed(text), self._composed(text_pair), **kwargs)

    def _composed(self, text: Any) -> Any:
        if isinstance(text, str):
            return self._compositions[self._is_target](text)
        return type(text)(map(self._composed, text)) if isinstance(text, list | tuple) else text

    def _convert_encoding(self, encoding: Any, **kwargs: Any):
        made, encodings = super()._convert_encoding(encoding, **kwargs)
        made["input_ids"] = [self._as_marian_s(one.ids, one.tokens) for one in encodings]
        return made, encodings

    def _as_marian_s(self, ids: list[int], tokens: list[str]) -> list[int]:
        unknown, unk = self._unknown[self._is_target], self.unk_token_id
        for place, run in self._single_precision[self._is_target](ids, tokens):
            ids[place : place + len(run)] = map(self._tokenizer.token_to_id, run)
        return [unk if index in unknown else index for index in ids] if unknown else ids

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            index = self._tokenizer.token_to_id(in_tokenizer(token))
        return self.unk_token_id if index is None or index in self._unknown[self._is_target] else index

    def get_vocab(self) -> dict[str, int]:
        unknown = self._unknown[self._is_target]
        vocabulary = sorted(super().get_vocab().items(), key=lambda word: word[1])
        return {without_marks(token): index for token, index in vocabulary if index not in unknown}

    # --- ids to text -------------------------------------------------------------------------------------------------

    def _convert_id_to_token(self, index: int) -> str | None:
        token = self._target.id_to_token(int(index))
        return None if token is None else without_marks(token)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(index) for index in ids if int(index) not in skipped]

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        before, self._tokenizer = self._tokenizer, self._target
        try:
            return super()._decode(*args, **kwargs).strip()
        finally:
            self._tokenizer = before

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any):
        self._switch_to_input_mode()
        names = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        file = str(Path(save_directory) / TARGET_FILE)
        self._target.save(file)
        return (*names, file)
