"""Which word was read for which: cross-attention between tokens gathered into words, and written in Moses format.

Words are what white space separates, counted from 0.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase


class WordAlignment(NamedTuple):
    """`weights` is (target words, source words): how much of its attention each target word paid to each source word.

    A row sums to less than one where attention went to `</s>`, which is no word.
    """

    source_words: list[str]
    target_words: list[str]
    weights: torch.Tensor

    def links(self) -> list[tuple[int, int]]:
        """(source word, target word) for each target word and the source word that it paid most attention to."""
        if not self.source_words:
            return []
        return [(source, target) for target, source in enumerate(self.weights.argmax(dim=-1).tolist())]


def align_words(
    tokenizer: PreTrainedTokenizerBase, source_ids: list[int], target_ids: list[int], weights: torch.Tensor
) -> WordAlignment:
    """Gather attention between tokens into attention between words.

    The attention that a word receives is the sum over its tokens, that which it pays the mean over its tokens.

    Args:
        tokenizer: what the ids are written with.
        source_ids: token ids of the source, `</s>` and padding among them.
        target_ids: token ids of the target.
        weights: (target tokens, source tokens), each row summing to one.
    """
    source_words = tokenizer.decode(source_ids, skip_special_tokens=True).split()
    target_words = tokenizer.decode(target_ids, skip_special_tokens=True).split()
    of_source = _membership(words_of_tokens(tokenizer, source_ids), len(source_words)).to(weights)
    of_target = _membership(words_of_tokens(tokenizer, target_ids), len(target_words)).to(weights)
    paid = (of_target / of_target.sum(dim=0, keepdim=True).clamp(min=1)).T @ weights
    return WordAlignment(source_words, target_words, paid @ of_source)


def words_of_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """For each token the word that it belongs to: the last word of the text up to it; -1 for special tokens, and for
    white space before the first word."""
    special = set(tokenizer.all_special_ids)
    texts = (tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(len(ids)))
    return [-1 if token in special else len(text.split()) - 1 for token, text in zip(ids, texts, strict=True)]


def _membership(words: list[int], count: int) -> torch.Tensor:
    """(tokens, words), 1 where the token belongs to the word."""
    return (torch.tensor(words)[:, None] == torch.arange(count)).float()


def first_words(text: str, starts: Iterable[int]) -> list[int]:
    """The index of the word that stands, or goes on, at each of the characters `starts`, which must rise."""
    indices, words, seen = [], 0, 0
    for start in starts:
        goes_on = start > 0 and not text[start - 1].isspace()
        began_inside = 0 < seen < start and not text[seen - 1].isspace() and not text[seen].isspace()
        words += len(text[seen:start].split()) - began_inside
        indices.append(words - goes_on)
        seen = start
    return indices


def moses_format(links: Iterable[tuple[int, int]]) -> str:
    """Links as Moses writes them, "0-0 1-2 2-1": source word, target word, in the order of the source."""
    return " ".join(f"{source}-{target}" for source, target in sorted(links))
