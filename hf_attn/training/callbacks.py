"""What watches a training run: a moving average of the weights, early stopping, a time limit, Ctrl-C, and progress.

Each one's state is saved in every checkpoint, so that a resumed run goes on as if nothing had happened.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from hf_attn.training.checkpoints import save_with_weights


@dataclass
class ProgressEvent:
    """How far a long piece of work is.

    `stage` is "tokenizer", "encode", "train", "validate", "test" or "done"; `done` of `total` `unit`s are done, and
    `total` is None where nobody knows; `values` are the newest figures, such as "loss" or "pictures_per_second".
    """

    stage: str
    done: float
    total: float | None
    unit: str
    values: dict[str, float] = field(default_factory=dict)


ProgressListener = Callable[[ProgressEvent], None]


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on a signal, after saving a checkpoint from which it can go on."""

    def __init__(self, received: signal.Signals, checkpoint: Path):
        self.received = received
        self.checkpoint = checkpoint
        super().__init__(f"stopped by {received.name}; all work is saved in {checkpoint}: resume to go on from there")


class Throughput(TrainerCallback, ExportableState):
    """Counts what has been learned from and the seconds of it, without evaluating and saving, over all parts of a run.

    What is new is counted on the device until somebody asks, so that no step waits for it.

    Args:
        unit: what is counted, in the plural, as it is called in the log: "pictures".
        clock: seconds that go on.
    """

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic):
        self.unit = unit
        self.clock = clock
        self.count = 0
        self.seconds = 0.0
        self._new: torch.Tensor | int = 0
        self._since: float | None = None  # None: training is not going on
        self._reported = (0, 0.0)

    def add(self, number: torch.Tensor | int) -> None:
        self._new = self._new + number

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        was_running = self._since is not None
        self._collect()
        self._since = None
        try:
            yield
        finally:
            self._since = self.clock() if was_running else None

    def total(self) -> dict[str, int]:
        """The count of the whole run, by its unit."""
        self._collect()
        return {self.unit: self.count}

    def report(self) -> dict[str, float]:
        """The count of the whole run, and that of a second since the last report (`pictures_per_second`)."""
        self._collect()
        number, seconds = self.count - self._reported[0], self.seconds - self._reported[1]
        self._reported = (self.count, self.seconds)
        return {self.unit: self.count, f"{self.unit}_per_second": number / max(seconds, 1e-9)}

    def _collect(self) -> None:
        self.count += int(self._new)
        self._new = 0
        if self._since is not None:
            now = self.clock()
            self.seconds += now - self._since
            self._since = now

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._since = self.clock()
        self._reported = (self.count, self.seconds)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._collect()
        self._since = None

    def state(self) -> dict[str, Any]:
        self._collect()
        return {"args": {"unit": self.unit}, "attributes": {"count": self.count, "seconds": self.seconds}}


class WeightAverage(TrainerCallback):
    """The exponential moving average of the weights (EMA).

    After step t each average moves towards its weight by 1 - min(decay, (1 + t) / (10 + t)): the decay grows to its
    full value, so that the random weights of the beginning are soon forgotten.

    Args:
        decay: in (0, 1); 0.999 looks back about 1,000 steps.
    """

    FILE = "weight_average.safetensors"

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay {decay} is not between 0 and 1; 0.999 is usual")
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in averaged(kwargs["model"])}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        weights = [value for _, value in averaged(kwargs["model"])]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def save(self, directory: Path) -> None:
        save_file(self.average, directory / self.FILE)

    def load(self, directory: Path, model: PreTrainedModel) -> None:
        """Take up the average saved in a checkpoint.

        Raises:
            FileNotFoundError: if the checkpoint was written without one.
        """
        file = directory / self.FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there: {directory} was trained without ema_decay; leave it out")
        saved = load_file(file, device=str(model.device))
        self.average = {name: saved[name] for name, _ in averaged(model)}

    def save_model(self, model: PreTrainedModel, output: Path) -> Path:
        """Write the model with the averaged weights, for `from_pretrained`; the model given stays as it is."""
        return save_with_weights(model, {**model.state_dict(), **self.average}, output)


def averaged(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What an average of the weights is of, by name: the parameters, tied ones once, and batch norm's statistics."""
    yield from model.named_parameters()
    stored = model.state_dict(keep_vars=True)
    yield from ((name, value) for name, value in model.named_buffers() if name in stored and value.is_floating_point())


class EarlyStopping(EarlyStoppingCallback):
    """Stop when the best validation score is `patience` evaluations old."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        # A run that was killed after it had stopped must not go on when it is resumed
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class TimeLimit(TrainerCallback, ExportableState):
    """Stop, with a last evaluation and checkpoint, when training has taken so many minutes, resumed parts included.

    Of several processes the first one's clock counts, read once a step, so that all of them stop after the same step.

    Args:
        minutes: of training and validation together, above 0.
        clock: seconds that go on.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        if minutes <= 0:
            raise ValueError(f"a time limit of {minutes} minutes is not above 0")
        self.minutes = minutes
        self.clock = clock
        self.seconds_before = 0.0
        self.started: float | None = None
        self.used = 0.0  # share of the time, as all processes know it

    def seconds(self) -> float:
        """Training time so far, by this process's clock."""
        return self.seconds_before + (0.0 if self.started is None else self.clock() - self.started)

    def is_over(self) -> bool:
        return self.used >= 1

    def _share(self, seconds: float) -> float:
        return seconds / (60 * self.minutes)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.started, self.used = self.clock(), self._share(self.seconds_before)
        if self.is_over():
            control.should_training_stop = True

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        (self.used,) = broadcast_object_list([self._share(self.seconds())])  # the schedule is going to look at it

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.is_over():
            control.should_training_stop = control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.seconds_before, self.started = self.seconds(), None

    def state(self) -> dict[str, Any]:
        return {"args": {"minutes": self.minutes}, "attributes": {"seconds_before": self.seconds()}}


class StopOnSignal(TrainerCallback):
    """Within `with`: Ctrl-C (SIGINT) and SIGTERM end training after the step at hand, with a checkpoint.

    A second signal does what it would have done without this.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        self.received = None
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.received:
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.received and state.epoch % 1:  # the epoch has not ended, it was broken off
            control.should_evaluate = control.should_save = control.should_log = False


class Progress(TrainerCallback):
    """Tells a listener after every step how far training is."""

    def __init__(self, listener: ProgressListener, time_limit: TimeLimit | None = None):
        self.listener = listener
        self.time_limit = time_limit
        self.values: dict[str, float] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        done, total, unit = float(state.global_step), float(state.max_steps), "steps"
        limit = self.time_limit
        if limit is not None and limit.used > done / total:  # time will be up first
            done, total, unit = limit.seconds() / 60, limit.minutes, "minutes"
        self.listener(ProgressEvent("train", done, total, unit, self.values))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        numbers = {name: value for name, value in kwargs["logs"].items() if isinstance(value, (int, float))}
        self.values = {**self.values, **numbers}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.listener(ProgressEvent("validate", 1, 1, "evaluations", self.values))
