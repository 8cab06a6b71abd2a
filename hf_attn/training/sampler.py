"""Batches that hold a number of tokens instead of a number of sentences, and the tensors made of them.

The paper (section 5.1) batches sentence pairs "together by approximate sequence length", about 25,000 source and as
many target tokens a batch. `TokenBatchSampler` decides which pairs stand together, `TranslationCollator` pads them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100  # positions that the loss leaves out, in all of transformers
BUCKET_GROWTH = 1.1  # longest length in a bucket over the shortest one; less growth: less padding, less variety


class TokenBatchSampler(Sampler[list[int]]):
    """Yields lists of row numbers; rows x longest sequence is at most `max_tokens`, for the source and for the target.

    Pairs are sorted by buckets, first of the longer side, then of the ratio of the sides, and cut where the budget is
    full; then the batches are shuffled. Every epoch draws anew which pairs of a bucket stand together, but the cuts
    depend only on the longest pair of each bucket: so all epochs have the same number of batches, on which the
    arithmetic of a resumed Trainer relies. Each pair occurs exactly once an epoch; the same seed and epoch give the
    same batches on every process and machine.

    With several processes, each taking every `num_processes`-th batch, their number divides that of the batches, so
    that none runs dry before the others, and batches that are trained on at the same time hold pairs of like length.

    Call `set_epoch` before each epoch. accelerate does so for a sampler that it sees, and Trainer also through one
    wrapper, but not through two: `skip_first_batches` around `BatchSamplerShard`, on resuming with several processes.

    With `shuffle=False` the batches go from short to long pairs, the same in every epoch.

    Raises ValueError for a pair that is longer than `max_tokens` on one side, and for too few pairs for the processes.
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        shuffle: bool = True,
        seed: int = 0,
        num_processes: int = 1,
    ):
        source, target = np.asarray(source_lengths, dtype=np.int64), np.asarray(target_lengths, dtype=np.int64)
        _check_lengths(source, target, max_tokens)
        self.shuffle = shuffle
        self.seed = seed
        self.num_processes = num_processes
        self.epoch = 0
        self.length_bucket, limits = _length_buckets(np.maximum(source, target))
        ratio_bucket = np.floor(np.log(target / source) / np.log(BUCKET_GROWTH))
        # From one length bucket to the next the ratios run up and down in turn, so that they never jump.
        self.ratio_bucket = np.where(self.length_bucket % 2 == 0, ratio_bucket, -ratio_bucket)
        self.cuts = _cuts(np.sort(limits), max_tokens)
        self.cuts = _cuts_in_multiple(self.cuts, len(source), num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        pairs = np.arange(len(self.length_bucket))
        ranks = random.permutation(pairs) if self.shuffle else pairs
        batches = np.split(np.lexsort((ranks, self.ratio_bucket, self.length_bucket)), self.cuts)
        rounds = np.arange(len(self) // self.num_processes)
        for first in self.num_processes * (random.permutation(rounds) if self.shuffle else rounds):
            for batch in batches[first : first + self.num_processes]:
                yield batch.tolist()


def _check_lengths(source: np.ndarray, target: np.ndarray, max_tokens: int) -> None:
    if len(source) != len(target):
        raise ValueError(f"{len(source)} source lengths, but {len(target)} target lengths")
    if len(source) == 0:
        raise ValueError("no pairs to make batches of")
    for side, lengths in (("source", source), ("target", target)):
        longest = int(lengths.argmax())
        if lengths[longest] > max_tokens:
            raise ValueError(
                f"pair {longest} has {lengths[longest]:,} {side} tokens, more than the max_tokens {max_tokens:,} of a "
                "batch; raise max_tokens or leave out longer pairs (encode_pairs does, with max_length)"
            )
        if lengths.min() < 1:
            raise ValueError(f"pair {int(lengths.argmin())} has {lengths.min()} {side} tokens; at least 1 is needed")


def _length_buckets(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) number of the bucket of each length, and (pairs,) longest length that occurs in that bucket."""
    edges = [1]
    while edges[-1] <= lengths.max():
        edges.append(max(edges[-1] + 1, int(edges[-1] * BUCKET_GROWTH)))
    bucket = np.searchsorted(edges, lengths, side="right")
    longest = np.zeros(len(edges) + 1, dtype=np.int64)
    np.maximum.at(longest, bucket, lengths)
    return bucket, longest[bucket]


def _cuts(limits: np.ndarray, max_tokens: int) -> list[int]:
    """Positions where a new batch begins, when a batch costs its rows times its largest limit; limits are sorted."""
    cuts, first = [], 0
    for position, limit in enumerate(limits.tolist()):
        if (position - first + 1) * limit > max_tokens:
            cuts.append(position)
            first = position
    return cuts


def _cuts_in_multiple(cuts: list[int], pairs: int, num_processes: int) -> list[int]:
    """Halve the batches with the most rows until the number of batches is a multiple of the processes."""
    edges = [0, *cuts, pairs]
    while (len(edges) - 1) % num_processes:
        rows = np.diff(edges)
        largest = int(rows.argmax())
        if rows[largest] == 1:
            raise ValueError(
                f"{pairs} pairs, each a batch of its own, cannot be shared evenly by {num_processes} processes; "
                "raise max_tokens, give more pairs or use fewer processes"
            )
        edges.insert(largest + 1, edges[largest] + int(rows[largest]) // 2)
    return edges[1:-1]


class TranslationCollator:
    """Rows with `input_ids` and `labels`, lists of token ids, to tensors padded on the right.

    `input_ids` (batch, source) with the tokenizer's pad id, `attention_mask` (batch, source) with 0 where there is
    padding, `labels` (batch, target) with -100. Raises ValueError for a tokenizer without a padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        self.pad_token_id: int = tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = pad_right([row["input_ids"] for row in rows], self.pad_token_id)
        labels, _ = pad_right([row["labels"] for row in rows], IGNORED_LABEL)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def pad_right(sequences: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, longest) ids, and (batch, longest) 1 for each id and 0 for padding, without a loop over the tokens."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, padding, dtype=np.int64)
    padded[mask] = np.concatenate(sequences)
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
