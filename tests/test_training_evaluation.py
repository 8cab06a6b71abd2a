"""Losses and translations do not depend on the batches in which they are made."""

import pytest
import torch
from torch.testing import assert_close

from hf_attn.training.evaluation import generate_all, summed_loss, up_to_end
from tests.tiny import tiny_translator
from tests.training_runs import COLLATOR, pairs


def test_the_loss_is_the_sum_over_all_labels_in_any_batches():
    rows, model = pairs(12, seed=0), tiny_translator(label_smoothing=0.1)
    one = summed_loss(model, [COLLATOR(rows)])
    each = summed_loss(model, [COLLATOR([row]) for row in rows])
    assert_close(one, each, rtol=1e-6, atol=0)
    logits = [
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).logits[0].log_softmax(-1)
        for row in rows
    ]
    expected = -sum(
        line[range(len(row["labels"])), row["labels"]].sum() for line, row in zip(logits, rows, strict=True)
    )
    assert each[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert each[1] == sum(len(row["labels"]) for row in rows)


def test_translations_come_in_order_and_as_if_alone():
    model = tiny_translator()
    sources = [row["input_ids"] for row in pairs(20, seed=3)]
    told = []
    together = generate_all(model, sources, 60, told.append, num_beams=2)
    alone = [generate_all(model, [source], 60, num_beams=2)[0] for source in sources]
    assert together == alone
    assert sum(told) == 20 and len(told) > 1
    assert all(1 not in ids and (ids[-1] == 2 or 2 not in ids) for ids in together)


def test_a_source_longer_than_a_batch_stands_alone():
    source = [*range(4, 40), 2]
    assert len(generate_all(tiny_translator(), [source, [5, 2]], max_tokens=10)) == 2


def test_a_model_without_padding_is_refused():
    model = tiny_translator()
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="pad_token_id None and eos_token_id 2 must be one id each"):
        generate_all(model, [[5, 2]], 10)


def test_ids_end_with_the_first_end():
    assert up_to_end([5, 2, 1, 2], end=2, padding=1) == [5, 2]
    assert up_to_end([5, 6, 1, 1], end=2, padding=1) == [5, 6]
    assert up_to_end([5, 6], end=2, padding=1) == [5, 6]
