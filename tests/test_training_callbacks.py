"""What watches a run: each callback by its law, with a clock and signals of the test's own."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, TrainerControl, TrainerState, TrainingArguments

from hf_attn.training.callbacks import (
    EarlyStopping,
    Progress,
    StopOnSignal,
    Throughput,
    TimeLimit,
    TrainingInterrupted,
    WeightAverage,
)
from tests.tiny import tiny_translator


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def step_ends(callback, arguments, control) -> None:
    """What the Trainer tells a callback at the end of a step."""
    callback.on_optimizer_step(arguments, TrainerState(), control)
    callback.on_step_end(arguments, TrainerState(), control)


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="steps", eval_steps=5)


# The moving average of the weights


def test_the_moving_average_is_its_formula(arguments):
    model, average = tiny_translator(), WeightAverage(0.8)
    name, weight = next(iter(model.named_parameters()))
    average.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)
    expected = weight.detach().double().clone()
    for step in range(1, 60):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        average.on_step_end(arguments, TrainerState(global_step=step), TrainerControl(), model=model)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double()
    assert_close(average.average[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_moving_average_is_saved_and_goes_on(arguments, tmp_path):
    model, first = tiny_translator(), WeightAverage(0.9)
    first.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)
    first.on_step_end(arguments, TrainerState(global_step=1), TrainerControl(), model=model)
    first.save(tmp_path)
    second = WeightAverage(0.9)
    second.load(tmp_path, model)
    second.on_train_begin(arguments, TrainerState(global_step=1), TrainerControl(), model=model)
    assert all(torch.equal(first.average[name], second.average[name]) for name in first.average)
    assert list(second.average) == [name for name, _ in model.named_parameters()]


def test_the_moving_average_makes_a_model_that_loads(arguments, tmp_path):
    model, average = tiny_translator(seed=0), WeightAverage(0.9)
    average.on_train_begin(arguments, TrainerState(), TrainerControl(), model=tiny_translator(seed=1))
    output = average.save_model(model, tmp_path / "model")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(output).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tiny_translator(seed=1).state_dict().items())
    assert all(
        torch.equal(value, tiny_translator(seed=0).state_dict()[name]) for name, value in model.state_dict().items()
    )
    assert load_file(output / "model.safetensors").keys() <= loaded.keys()


def test_a_decay_that_is_none_is_refused():
    for decay in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=f"ema_decay {decay} is not between 0 and 1"):
            WeightAverage(decay)


# Stopping


def test_the_time_limit_counts_the_parts_of_a_resumed_run(arguments):
    clock, control = Clock(), TrainerControl()
    limit = TimeLimit(2, clock)
    limit.on_train_begin(arguments, TrainerState(), control)
    clock.now = 90
    step_ends(limit, arguments, control)
    assert not control.should_training_stop
    saved = limit.state()

    clock = Clock()
    clock.now = 1000
    limit = TimeLimit(clock=clock, **saved["args"])
    for name, value in saved["attributes"].items():
        setattr(limit, name, value)
    limit.on_train_begin(arguments, TrainerState(), control)
    clock.now = 1029
    step_ends(limit, arguments, control)
    assert not control.should_training_stop
    clock.now = 1030
    step_ends(limit, arguments, control)
    assert control.should_training_stop and control.should_save and control.should_evaluate


def test_a_run_whose_time_was_up_does_not_go_on(arguments):
    limit, control = TimeLimit(2, Clock()), TrainerControl()
    limit.seconds_before = 120.0
    limit.on_train_begin(arguments, TrainerState(), control)
    assert control.should_training_stop


def test_a_limit_shorter_than_a_step_leaves_time_for_one(arguments):
    clock, control = Clock(), TrainerControl()
    limit = TimeLimit(1e-9, clock)
    limit.on_train_begin(arguments, TrainerState(), control)
    assert not control.should_training_stop
    clock.now = 1
    step_ends(limit, arguments, control)
    assert control.should_training_stop


def test_early_stopping_remembers_that_it_has_stopped(arguments):
    arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
    stopping, control = EarlyStopping(2), TrainerControl()
    for loss in (3.0, 4.0, 5.0):
        stopping.on_evaluate(arguments, TrainerState(best_metric=3.0), control, {"eval_loss": loss})
    again, control = EarlyStopping(2), TrainerControl()
    for name, value in stopping.state()["attributes"].items():
        setattr(again, name, value)
    again.on_train_begin(arguments, TrainerState(), control)
    assert control.should_training_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step(arguments, number):
    before = signal.getsignal(number)
    control, stop = TrainerControl(), StopOnSignal()
    with stop:
        stop.on_step_end(arguments, TrainerState(), control)
        assert not control.should_training_stop
        os.kill(os.getpid(), number)
        stop.on_step_end(arguments, TrainerState(), control)
        assert control.should_training_stop and control.should_save
        assert signal.getsignal(number) is before  # the next one is answered as usual
    assert stop.received is number and signal.getsignal(number) is before


def test_an_epoch_broken_off_by_a_signal_is_not_evaluated(arguments):
    stop = StopOnSignal()
    stop.received = signal.SIGINT
    for epoch, evaluated in ((1.5, False), (2.0, True)):
        control = TrainerControl(should_evaluate=True, should_save=True)
        stop.on_epoch_end(arguments, TrainerState(epoch=epoch), control)
        assert control.should_evaluate == control.should_save == evaluated


def test_an_interruption_says_where_to_go_on(tmp_path):
    error = TrainingInterrupted(signal.SIGINT, tmp_path / "checkpoint-7")
    assert isinstance(error, KeyboardInterrupt)
    assert str(error) == f"stopped by SIGINT; all work is saved in {tmp_path}/checkpoint-7: resume to go on from there"


# Telling


def test_throughput_does_not_count_pauses(arguments):
    clock = Clock()
    throughput = Throughput("pictures", clock)
    throughput.on_train_begin(arguments, TrainerState(), TrainerControl())
    throughput.add(torch.tensor(300))
    clock.now = 2
    with throughput.paused():
        clock.now = 50
        saved = throughput.state()
    throughput.add(100)
    clock.now = 51
    assert throughput.report() == {"pictures": 400, "pictures_per_second": pytest.approx(400 / 3)}
    throughput.add(60)
    clock.now = 53
    assert throughput.report() == {"pictures": 460, "pictures_per_second": pytest.approx(30)}
    throughput.on_train_end(arguments, TrainerState(), TrainerControl())
    clock.now = 1000
    with throughput.paused():
        clock.now = 2000
    assert throughput.seconds == 5
    assert saved == {"args": {"unit": "pictures"}, "attributes": {"count": 300, "seconds": 2.0}}


def test_progress_tells_steps_or_minutes_whichever_ends_first(arguments):
    events, clock = [], Clock()
    limit = TimeLimit(10, clock)
    limit.on_train_begin(arguments, TrainerState(), TrainerControl())
    progress = Progress(events.append, limit)
    progress.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 2.5, "words": "no number"})
    clock.now = 60
    limit.on_optimizer_step(arguments, TrainerState(), TrainerControl())
    for step in (50, 5):
        progress.on_step_end(arguments, TrainerState(global_step=step, max_steps=100), TrainerControl())
    assert [(event.stage, event.done, event.total, event.unit) for event in events] == [
        ("train", 50.0, 100.0, "steps"),
        ("train", 1.0, 10, "minutes"),
    ]
    assert events[0].values == {"loss": 2.5}
