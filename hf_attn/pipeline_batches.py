"""Sentences of like lengths together: little padding, and no more memory than was allowed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

SMALL = 512  # tokens of a batch, with fewer of which products get slower


class Batching(NamedTuple):
    """How texts are put together; described with `TranslationPipeline`."""

    max_tokens_per_batch: int = 4096
    batch_size: int | None = None
    look_ahead: int = 2048
    workers: int = 1
    progress: bool | None = None

    def take(self, options: dict[str, Any]) -> "Batching":
        """This, with what `options` say of it, which is taken out of them; None leaves things as they are."""
        named = {name: options.pop(name) for name in self._fields if name in options}
        new = self._replace(**{name: value for name, value in named.items() if value is not None})
        for name in ("max_tokens_per_batch", "batch_size", "look_ahead", "workers"):
            value = getattr(new, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1")
        return new

    def max_tokens(self, tokens: int) -> int:
        """Of a batch, where there are so many tokens: no worker shall wait long for the last one."""
        if self.workers == 1:
            return self.max_tokens_per_batch
        return min(self.max_tokens_per_batch, max(SMALL, tokens // (4 * self.workers)))


def token_batches(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Put indices of like lengths together, longest first, with rows × longest ≤ `max_tokens` in each batch.

    A length above `max_tokens` makes a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        last = batches[-1] if batches else []
        is_full = not last or (len(last) + 1) * lengths[last[0]] > max_tokens or len(last) == max_rows
        if is_full:
            batches.append([i])
        else:
            last.append(i)
    return batches


def pad_right(sources: list[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Token ids → (batch, longest) `input_ids`, padded on the right, and their `attention_mask`."""
    rows = [torch.tensor(ids) for ids in sources]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def items(inputs: Any) -> Iterator[str]:
    """The items of an iterable, or of a `Dataset` of torch, which has no more than a length and an index."""
    if isinstance(inputs, Mapping) or hasattr(inputs, "column_names"):
        raise ValueError(
            f"inputs are of type {type(inputs).__name__}; give the texts of one column: dataset['source']"
        )
    if hasattr(inputs, "__iter__"):
        return iter(inputs)
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    raise ValueError(f"inputs are of type {type(inputs).__name__}; give a string or an iterable of strings")
