"""One byte-level byte-pair vocabulary for both languages (Sennrich et al. 2016; on bytes, Radford et al. 2019).

text → pieces (words, single digits, punctuation, white space) → bytes → merged pairs → ids, then `</s>`

Every byte is in the vocabulary, so any text comes back exactly as it was and `<unk>` never occurs. There is no
beginning-of-sentence in what the tokenizer writes: the model puts it before the target itself.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, TokenizersBackend
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; transformers' beam search takes a pad id 0 for none
BYTES = 256
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + BYTES
TEXTS_A_BATCH = 1000

# Merges stay inside one piece. Words keep the space or apostrophe before them; digits stand alone, so that numbers are
# copied digit by digit; letters never join punctuation, so that no merge can spell a special token such as </s>.
PIECES = r"[ '’]?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


class PreTrainedTokenizerFast(TokenizersBackend):
    """transformers' own tokenizer under the name that versions 4 and 5 both read.

    A tokenizer is saved under the name of its class. Version 5 renamed that class to `TokenizersBackend`, which
    version 4 does not know; `PreTrainedTokenizerFast` is still understood by both.
    """


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, model_max_length: int = 4096, show_progress: bool = False
) -> PreTrainedTokenizerFast:
    """Learn a joint byte-level byte-pair vocabulary; the same texts give the same tokenizer, in any order.

    Args:
        texts: sentences of both languages; read once, so a generator will do.
        vocab_size: tokens wanted, the four special ones and the 256 bytes among them. Texts too small to give so many
            give fewer, and a log line says how many.
        model_max_length: tokens, `</s>` included, up to which the tokenizer does not warn.
        show_progress: draw the trainer's progress bars.

    Returns:
        A tokenizer with `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3 that ends every text, source or target, with `</s>`
        and pads on the right. Text that spells a special token is text to it.

    Raises:
        ValueError: if `vocab_size` cannot hold the bytes, a text is not a string or not valid Unicode, or none comes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size {vocab_size} is below {SMALLEST_VOCABULARY}, the {BYTES} bytes and the {len(SPECIAL_TOKENS)} "
            "special tokens; ask for more"
        )
    if model_max_length < 2:
        raise ValueError(f"model_max_length {model_max_length} is below 2, the room for one token and </s>")
    tokenizer = byte_level_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(f"The texts gave {tokenizer.get_vocab_size()} tokens of the {vocab_size} wanted.")

    bos, pad, eos, unk = SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        model_max_length=model_max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" in a text is four characters, not the end
    )


def byte_level_tokenizer() -> Tokenizer:
    """The untrained pipeline: pieces, then bytes, then an empty vocabulary; and bytes back to text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_text(text: str, place: str = "text") -> None:
    """Raise a ValueError that says what came and where, unless `text` is a string that can be written as bytes."""
    if not isinstance(text, str):
        raise ValueError(f"{place} is of type {type(text).__name__}, not str: {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds half a surrogate pair, {text[error.start]!r} at character {error.start}, which is not "
            "Unicode text; decode the source with errors='replace'"
        ) from error


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of checked texts, which the trainer takes faster than single ones."""
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list or an iterator of strings")
    count = 0
    batch: list[str] = []
    for text in texts:
        check_text(text, f"text {count}")
        count += 1
        batch.append(text)
        if len(batch) == TEXTS_A_BATCH:
            yield batch
            batch = []
    if not count:
        raise ValueError("no texts came, so there is nothing to learn a vocabulary from")
    yield batch


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str | os.PathLike) -> None:
    """`tokenizer.save_pretrained`, under the class name that transformers 4 and 5 both read.

    Tokenizers from `train_tokenizer` need only their own `save_pretrained`. AutoTokenizer makes a `TokenizersBackend`
    of what it loads, which writes that name into what it saves; this writes the older name.
    """
    tokenizer.save_pretrained(directory)
    config_file = Path(directory) / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config["tokenizer_class"] != TokenizersBackend.__name__:
        return
    config["tokenizer_class"] = PreTrainedTokenizerFast.__name__
    written = config_file.with_suffix(".json.tmp")
    written.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(written, config_file)
