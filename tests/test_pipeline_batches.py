import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pipelines.pt_utils import KeyDataset

from hf_attn.pipeline_batches import Batching, items, pad_right, token_batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.none() | st.integers(1, 8))
def test_batches_hold_every_sentence_once_and_keep_to_the_budget(lengths, max_tokens, max_rows):
    batches = token_batches(lengths, max_tokens, max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
        assert max_rows is None or len(batch) <= max_rows


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(50, 200))
def test_batches_are_full_and_sorted(lengths, max_tokens):
    batches = token_batches(lengths, max_tokens)
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches[:-1]:  # one sentence more would have been too much
        assert (len(batch) + 1) * lengths[batch[0]] > max_tokens


def test_padding_is_on_the_right_and_masked():
    batch = pad_right([[5, 2], [6, 7, 2]], pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 2, 1], [6, 7, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_options_are_taken_and_checked():
    options = {"look_ahead": 3, "batch_size": None, "num_beams": 4}
    assert Batching().take(options) == Batching(look_ahead=3)
    assert options == {"num_beams": 4}


@pytest.mark.parametrize("option", ["max_tokens_per_batch", "batch_size", "look_ahead"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it must be a whole number from 1"):
        Batching().take({option: value})


class TorchDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return "ab"[index]  # and an IndexError only by accident


def test_all_kinds_of_iterables_have_items():
    table = datasets.Dataset.from_dict({"source": ["a", "b"]})
    column = table["source"]
    streamed = table.to_iterable_dataset()["source"]
    for inputs in (iter("ab"), {"a": 1, "b": 2}.keys(), column, streamed, KeyDataset(table, "source"), TorchDataset()):
        assert list(items(inputs)) == ["a", "b"]


@pytest.mark.parametrize("wrong", [datasets.Dataset.from_dict({"source": ["a"]}), {"source": ["a"]}])
def test_whole_tables_are_refused(wrong):
    with pytest.raises(ValueError, match="give the texts of one column"):
        items(wrong)


@pytest.mark.parametrize("wrong", [3, None, 2.5])
def test_what_is_no_iterable_is_refused(wrong):
    with pytest.raises(ValueError, match=f"of type {type(wrong).__name__}; give a string or an iterable"):
        items(wrong)
