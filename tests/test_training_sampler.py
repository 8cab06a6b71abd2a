"""Batches keep their budget, hold each pair once, and are the same for the same seed and epoch, sharded or resumed."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from hf_attn.tokenization_translator import train_tokenizer
from hf_attn.training.sampler import TokenBatchSampler, TranslationCollator

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=300)


def realistic_lengths(pairs: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths as in text: log-normal around 15 tokens, the target near the source, none over 200."""
    random = np.random.default_rng(0)
    source = np.exp(random.normal(2.7, 0.6, pairs))
    target = source * np.exp(random.normal(0, 0.25, pairs))
    return source.astype(int).clip(1, 200), target.astype(int).clip(1, 200)


def sampler_of(pairs: list[tuple[int, int]], max_tokens: int, **options) -> TokenBatchSampler:
    return TokenBatchSampler([source for source, _ in pairs], [target for _, target in pairs], max_tokens, **options)


@given(LENGTHS, st.integers(60, 400), st.booleans(), st.integers(0, 5))
def test_each_pair_once_and_within_the_budget(
    pairs: list[tuple[int, int]], max_tokens: int, shuffle: bool, epoch: int
) -> None:
    sampler = sampler_of(pairs, max_tokens, shuffle=shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(pairs)))
    assert len(batches) == len(sampler)
    for batch in batches:
        assert len(batch) * max(pairs[row][0] for row in batch) <= max_tokens
        assert len(batch) * max(pairs[row][1] for row in batch) <= max_tokens


@given(LENGTHS, st.integers(60, 400), st.integers(0, 3))
def test_the_same_seed_and_epoch_give_the_same_batches(
    pairs: list[tuple[int, int]], max_tokens: int, seed: int
) -> None:
    fresh, used = sampler_of(pairs, max_tokens, seed=seed), sampler_of(pairs, max_tokens, seed=seed)
    counts = set()
    for epoch in (0, 1, 2):
        used.set_epoch(epoch)
        counts.add(len(list(used)))
    fresh.set_epoch(2)
    assert list(fresh) == list(used)
    assert counts == {len(fresh)}


def test_epochs_and_seeds_differ() -> None:
    source, target = realistic_lengths()
    sampler = TokenBatchSampler(source, target, 1000)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    other_seed = list(TokenBatchSampler(source, target, 1000, seed=1))
    assert len({str(batches) for batches in (first, second, other_seed)}) == 3
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


@pytest.mark.parametrize(("max_tokens", "most_padding"), [(500, 0.07), (1000, 0.09), (4000, 0.15)])
def test_little_is_padding(max_tokens: int, most_padding: float) -> None:
    source, target = realistic_lengths()
    batches = list(TokenBatchSampler(source, target, max_tokens))
    padded = sum(len(batch) * (source[batch].max() + target[batch].max()) for batch in batches)
    assert 1 - (source.sum() + target.sum()) / padded < most_padding
    used = [len(batch) * max(source[batch].max(), target[batch].max()) for batch in batches]
    assert np.mean(used) > 0.9 * max_tokens


def test_without_shuffling_short_pairs_come_first() -> None:
    source, target = realistic_lengths()
    sampler = TokenBatchSampler(source, target, 1000, shuffle=False)
    batches = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == batches
    longest = [np.maximum(source[batch], target[batch]).max() for batch in batches]
    assert all(later >= earlier / 1.1 - 1 for earlier, later in itertools.pairwise(longest))


def test_a_pair_longer_than_a_batch() -> None:
    with pytest.raises(ValueError, match="pair 1 has 1,200 target tokens, more than the max_tokens 1,000 of a batch"):
        TokenBatchSampler([3, 5], [4, 1200], 1000)
    with pytest.raises(ValueError, match="pair 0 has 1,001 source tokens"):
        TokenBatchSampler([1001, 5], [4, 12], 1000)
    assert list(TokenBatchSampler([1000], [1000], 1000)) == [[0]]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([], [], "no pairs"),
        ([1, 2], [1], "2 source lengths, but 1 target lengths"),
        ([1, 0], [1, 1], "pair 1 has 0 source tokens; at least 1"),
    ],
)
def test_lengths_that_make_no_sense(source: list[int], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBatchSampler(source, target, 100)


# Several processes


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_batches(num_processes: int, even_batches: bool) -> None:
    source, target = realistic_lengths(1000)
    shares = []
    for process in range(num_processes):
        sampler = TokenBatchSampler(source, target, 500, num_processes=num_processes)
        shard = BatchSamplerShard(sampler, num_processes, process, even_batches=even_batches)
        shares.append(list(shard))
        assert len(shard) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(1000))
    longest = [[np.maximum(source[batch], target[batch]).max() for batch in share] for share in shares]
    assert np.median(np.max(longest, axis=0) / np.min(longest, axis=0)) < 1.15  # at work together on like lengths


@given(LENGTHS, st.integers(60, 400), st.integers(1, 8))
def test_processes_divide_the_number_of_batches(
    pairs: list[tuple[int, int]], max_tokens: int, num_processes: int
) -> None:
    least = len(sampler_of(pairs, max_tokens))
    if -(-least // num_processes) * num_processes > len(pairs):
        with pytest.raises(
            ValueError, match=f"{len(pairs)} pairs, .* cannot be shared evenly by {num_processes} proc"
        ):
            sampler_of(pairs, max_tokens, num_processes=num_processes)
        return
    sampler = sampler_of(pairs, max_tokens, num_processes=num_processes)
    batches = list(sampler)
    assert len(batches) % num_processes == 0
    assert all(batches)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(pairs)))


# Under accelerate, as Trainer uses it


def loader_of(sampler: TokenBatchSampler) -> DataLoader:
    rows = range(len(sampler.length_bucket))
    return Accelerator(cpu=True).prepare(DataLoader(rows, batch_sampler=sampler, collate_fn=list))


def test_accelerate_advances_the_epoch() -> None:
    source, target = realistic_lengths(500)
    expected = TokenBatchSampler(source, target, 500)
    loader = loader_of(TokenBatchSampler(source, target, 500))
    for epoch in range(3):
        expected.set_epoch(epoch)
        assert list(loader) == list(expected)


def test_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    source, target = realistic_lengths(500)
    expected = TokenBatchSampler(source, target, 500)
    expected.set_epoch(2)
    resumed = skip_first_batches(loader_of(TokenBatchSampler(source, target, 500)), 5)
    resumed.batch_sampler.batch_sampler.set_epoch(2)  # what Trainer does
    assert list(resumed) == list(expected)[5:]
    assert len(resumed) == len(expected) - 5


# Tensors


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["a sentence", "ein Satz"], vocab_size=270)


ROWS = [
    {"input_ids": [5, 6, 7, 2], "labels": [8, 2]},
    {"input_ids": [5, 2], "labels": [9, 10, 11, 12, 2]},
    {"input_ids": [2], "labels": [2]},
]


def test_tensors_are_those_of_transformers(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in ROWS])
    batch = TranslationCollator(tokenizer)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name]), name


def test_padding_is_where_the_mask_says(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = TranslationCollator(tokenizer)(ROWS)
    for row, ids, mask, labels in zip(ROWS, *batch.values(), strict=True):
        assert ids[mask.bool()].tolist() == row["input_ids"]
        assert (ids[~mask.bool()] == tokenizer.pad_token_id).all()
        assert labels[labels != -100].tolist() == row["labels"]


def test_a_tokenizer_without_padding_token_is_refused() -> None:
    tokenizer = train_tokenizer(["a sentence"], vocab_size=270)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        TranslationCollator(tokenizer)
