"""What all Trainers share: random numbers that follow from a place, batches of rows, and a configuration left alone.

That a killed run ends as if nobody had killed it is tested with each Trainer.
"""

import random

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import PrinterCallback

from hf_attn.training.arguments import ResumableTrainingArguments
from hf_attn.training.resumable import RankBatches, ResumableTraining, RowBatches, same_random_state, seeded
from tests.tiny import tiny_vit
from tests.training_runs import ChangedPictures, mix, stack


def trainer(directory, collator=mix, data=None, **changes) -> ResumableTraining:
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "bf16": False, "use_cpu": True, "disable_tqdm": True}
    arguments = ResumableTrainingArguments(output_dir=str(directory), **{**settings, "save_strategy": "no", **changes})
    made = ResumableTraining(tiny_vit(), arguments, collator, data or ChangedPictures(10, seed=0))
    made.remove_callback(PrinterCallback)
    return made


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


# Random numbers


def test_random_numbers_follow_from_the_seed_alone():
    drawn = []
    for numbers in ((1, 2, 3), (1, 2, 3), (1, 2, 4), (0,)):
        draw()
        with seeded(*numbers):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(len({each[generator] for each in drawn}) == 3 for generator in range(3))


@pytest.mark.parametrize("inside", [same_random_state, lambda: seeded(5)])
def test_what_is_drawn_inside_does_not_change_what_is_drawn_after(inside):
    results = []
    for used in (False, True):
        with seeded(0):
            draw()
            if used:
                with pytest.raises(RuntimeError), inside():
                    draw()
                    raise RuntimeError
            results.append(draw())
    assert results[0] == results[1]


# Batches


@pytest.mark.parametrize(
    ("rows", "size", "processes", "drop_last", "sizes"),
    [
        (10, 4, 1, False, [4, 4, 2]),
        (10, 4, 1, True, [4, 4]),
        (8, 4, 1, False, [4, 4]),
        (13, 4, 2, False, [4, 4, 3, 2]),
        (9, 4, 2, False, [4, 4]),  # the ninth row cannot be shared
        (3, 4, 3, False, [1, 1, 1]),
    ],
)
def test_batches_have_so_many_rows_and_processes_equally_many_batches(rows, size, processes, drop_last, sizes):
    batches = RowBatches(rows, size, 0, processes, drop_last)
    assert len(batches) == len(sizes) and [len(batch) for batch in batches] == sizes
    seen = [row for batch in batches for _, row in batch]
    assert len(set(seen)) == len(seen) == sum(sizes) and set(seen) <= set(range(rows))
    shares = [list(RankBatches(batches, rank, processes)) for rank in range(processes)]
    assert [len(share) for share in shares] == processes * [len(sizes) // processes]
    assert sorted(batch for share in shares for batch in share) == sorted(batches)


def test_the_order_follows_from_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = RowBatches(20, 4, seed)
            batches.set_epoch(epoch)
            assert list(batches) == list(batches)
            assert {number for batch in batches for number, _ in batch} == {epoch}
            orders[seed, epoch] = tuple(row for batch in batches for _, row in batch)
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(("rows", "processes", "drop_last"), [(0, 1, False), (1, 2, False), (3, 1, True)])
def test_no_batches_are_refused(rows, processes, drop_last):
    with pytest.raises(ValueError, match=f"{rows} rows make no batch of 4 for {processes} processes"):
        RowBatches(rows, 4, 0, processes, drop_last)


def test_workers_change_nothing(tmp_path):
    epochs = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        loader = trainer(tmp_path, dataloader_num_workers=workers).row_dataloader(ChangedPictures(10, seed=0))
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
    for alone, together in zip(epochs[:2], epochs[2:], strict=True):
        assert_close(together, alone, rtol=0, atol=0)
    assert not torch.equal(epochs[0][0]["pixel_values"], epochs[1][0]["pixel_values"])


def test_loading_leaves_the_random_numbers_of_training_alone(tmp_path):
    loader = trainer(tmp_path).row_dataloader(ChangedPictures(10, seed=0))
    with seeded(0):
        batches = iter(loader)
        next(batches)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        next(batches)
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_collator_is_told_the_epoch(tmp_path):
    class Collator:
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __call__(self, rows):
            return {**stack(rows), "epoch": torch.tensor(self.epoch)}

    for workers in (0, 1):
        run = trainer(tmp_path, Collator(), dataloader_num_workers=workers)
        loader = run.row_dataloader(ChangedPictures(10, seed=0))
        for epoch in (3, 4):
            loader.set_epoch(epoch)
            assert [batch["epoch"].item() for batch in loader] == 3 * [epoch]


def test_a_dataset_that_reads_many_rows_at_once_is_read_so(tmp_path):
    class Together(ChangedPictures):
        asked: list = []

        def __getitems__(self, rows):
            self.asked.append(rows)
            return [self[row] for row in rows]

    data = Together(10, seed=0)
    list(trainer(tmp_path).row_dataloader(data))
    assert sorted(len(rows) for rows in data.asked) == [2, 4, 4]
    assert sorted(row for rows in data.asked for row in rows) == list(range(10))


def test_a_dataset_without_a_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="generator has no length"):
        trainer(tmp_path).row_dataloader(row for row in [])


# The Trainer


def test_it_trains_by_itself_and_counts_labels(tmp_path):
    run = trainer(tmp_path, stack)
    run.train()
    assert run.state.global_step == 2 and run.state.log_history[-1]["labels"] == run.throughput.count == 2 * 4


def test_the_configuration_stays_as_it_is(tmp_path):
    assert trainer(tmp_path).model.config.to_dict() == tiny_vit().config.to_dict()


def test_the_final_model_is_of_the_class_that_was_trained(tmp_path):
    run = trainer(tmp_path, stack, save_strategy="steps", save_steps=1, average_last=2)
    run.train()
    model = type(run.model).from_pretrained(run.save_final_model(tmp_path / "final"))
    name = "model.layers.0.attention.q_proj.weight"
    states = [type(model).from_pretrained(path).state_dict()[name] for path in run.checkpoints_to_average()]
    assert len(states) == 2 and not torch.equal(*states)
    assert_close(model.state_dict()[name], torch.stack(states).double().mean(0).float(), rtol=0, atol=0)
