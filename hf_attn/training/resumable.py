"""Training that survives a kill: what every Trainer of this package has in common, whatever it trains on.

Resuming after a kill at any moment gives the same weights, bit for bit, as a run that was never stopped (on a CPU): a
checkpoint is written whole or not at all, and holds everything that the next step depends on. Random changes to the
data are no state: they follow from the seed, the epoch and the row (`SeededRows`).
"""

import functools
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl
from transformers.trainer_utils import SaveStrategy, TrainOutput

from hf_attn.training.arguments import ResumableTrainingArguments
from hf_attn.training.callbacks import (
    EarlyStopping,
    StopOnSignal,
    Throughput,
    TimeLimit,
    TrainingInterrupted,
    WeightAverage,
)
from hf_attn.training.checkpoints import (
    average_checkpoints,
    checkpoint_step,
    complete_checkpoints,
    keep_last,
    mark_off_schedule,
    no_progress_bars,
    remove_unfinished,
    whole_directory,
)
from hf_attn.training.optimization import choose_kernel


class ResumableTraining(Trainer):
    """In front of a Trainer of transformers, whose behaviour it otherwise keeps:

    - `train` saves whole checkpoints only, resumes bit-identically, and answers Ctrl-C and SIGTERM with a checkpoint
      and `TrainingInterrupted`;
    - training ends early when validation gets no better or the time is up;
    - logs count what has been learned from, in `throughput_unit`, and how much of it a second (evaluating and saving
      not counted);
    - bfloat16 by autocast, and an attention kernel for training alone;
    - `save_final_model` writes the moving average of the weights or the average of the last checkpoints.

    A subclass has a `throughput_unit` and an `arguments_class` of its own, and says in `count_items` what it counts.
    """

    throughput_unit = "labels"
    arguments_class: type[ResumableTrainingArguments] = ResumableTrainingArguments

    args: ResumableTrainingArguments
    model: Any
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    control: TrainerControl

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, self.arguments_class):
            raise ValueError(f"args must be {self.arguments_class.__name__}, not {type(args).__name__}")
        self.throughput = Throughput(self.throughput_unit)
        self.stop_on_signal = StopOnSignal()
        self.time_limit = TimeLimit(args.max_minutes) if args.max_minutes else None
        self.weight_average = WeightAverage(args.ema_decay) if args.ema_decay else None
        early_stopping = EarlyStopping(args.early_stopping_patience) if args.early_stopping_patience else None
        own = [self.throughput, self.time_limit, self.weight_average, early_stopping]
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[callback for callback in (*own, *(callbacks or []), self.stop_on_signal) if callback],
            **kwargs,
        )
        if not hasattr(type(self.model.config), "use_cache"):
            del self.model.config.use_cache  # the Trainer writes it into every configuration

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, from the start or from a checkpoint (True: the last one in `output_dir`).

        Raises:
            TrainingInterrupted: on Ctrl-C or SIGTERM, once a checkpoint is saved.
            ValueError: if there is no checkpoint to resume from.
        """
        output_dir = Path(self.args.output_dir or "")
        remove_unfinished(output_dir)
        with self.stop_on_signal, self._training_kernel():
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.stop_on_signal.received:
            saved = complete_checkpoints(output_dir)[-1]
            raise TrainingInterrupted(self.stop_on_signal.received, saved)
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed after the last step, the Trainer would take one more
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        number = self.count_items(batches, num_items_in_batch)
        if number is not None:
            self.throughput.add(number)
        return batches, num_items_in_batch

    def count_items(self, batches: list[dict[str, Any]], num_items_in_batch: Any) -> torch.Tensor | int | None:
        """What the log counts, in the batches of one optimizer step of all processes: here, the labels."""
        return num_items_in_batch

    @contextmanager
    def _training_kernel(self) -> Iterator[None]:
        """The attention kernel of training inside, the model's own one after."""
        own = self.model.config._attn_implementation
        device, bf16 = self.args.device.type, bool(self.args.bf16)
        self.model.set_attn_implementation(choose_kernel(self.args.training_kernel, own, device, bf16))
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Multiplying in bfloat16 where the arguments chose it."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
            yield

    def compute_loss_context_manager(self) -> ExitStack:
        stack = super().compute_loss_context_manager()
        stack.enter_context(self.autocast())
        return stack

    @functools.cached_property
    def flops_per_position(self) -> int:
        """Operations on one position of the input: two for each weight going forward, four going back."""
        return 6 * self.model.num_parameters(exclude_embeddings=True)  # counting them takes longer than a small step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.throughput.report())
        elif "train_loss" in logs:  # the summary at the end
            logs.update(self.throughput.total())
        super().log(logs, start_time)

    # Data

    def row_dataloader(self, dataset: Any) -> DataLoader:
        """Training batches of `per_device_train_batch_size` rows: which rows, and every random number drawn while they
        are loaded and collated, follow from the seed and the epoch, however many workers there are.

        Raises:
            ValueError: if the dataset has no length, or fewer rows than there are processes.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError(f"{type(dataset).__name__} has no length; a run that can be resumed needs numbered rows")
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = RowBatches(len(dataset), args.train_batch_size, seed, args.world_size, args.dataloader_drop_last)
        loader = DataLoader(
            SeededRows(dataset, self.data_collator, seed),
            batch_sampler=RankBatches(batches, args.process_index, args.world_size),
            collate_fn=_already_collated,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=leave_interrupts_to_the_trainer,
        )
        # One process each: RankBatches has already given each its share
        return prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True)

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with self.throughput.paused(), same_random_state(devices):
            return super().evaluate(*args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        output_dir = Path(self._get_output_dir(trial))
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        best = output_dir / f"checkpoint-{self.state.best_global_step}"
        if best == checkpoint or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        wait = self.accelerator.wait_for_everyone
        with self.throughput.paused(), no_progress_bars():
            try:
                with whole_directory(checkpoint, self.args.should_save, wait) as temporary:
                    self._write_checkpoint(temporary)
            except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a full disk
                free = shutil.disk_usage(output_dir).free
                raise OSError(
                    f"{checkpoint.name} could not be written to {output_dir}, where {free / 1e6:,.0f} MB are free "
                    f"({error}); make room and resume: the checkpoints before it are whole"
                ) from error
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(checkpoint))
            if self.args.should_save:
                protected = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
                keep_last(output_dir, self.args.save_total_limit or 0, protected)

    def _write_checkpoint(self, directory: Path) -> None:
        """All that the next step depends on."""
        self.store_flos()
        self.save_model(str(directory), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(directory))
            self._save_scaler(str(directory))
            self._save_rng_state(str(directory))
        if self.args.should_save:
            if self.weight_average is not None:
                self.weight_average.save(directory)
            if not self._on_schedule():
                mark_off_schedule(directory)
            states = {type(owner).__name__: owner.state() for owner in self._owners_of_state()}
            self.state.stateful_callbacks = states  # type: ignore[assignment]
            self.state.save_to_json(str(directory / "trainer_state.json"))

    def _owners_of_state(self) -> list[ExportableState]:
        owners = (*self.callback_handler.callbacks, self.control)
        return [owner for owner in owners if isinstance(owner, ExportableState)]

    def _on_schedule(self) -> bool:
        """Whether a run that nobody stopped would have saved here too."""
        if self.args.save_strategy == SaveStrategy.STEPS:
            return self.state.global_step % self.state.save_steps == 0
        return self.args.save_strategy != SaveStrategy.EPOCH or self.state.epoch % 1 == 0

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.weight_average is not None:
            self.weight_average.load(Path(checkpoint), self.model)

    def _load_callback_state(self) -> None:
        for owner in self._owners_of_state():
            saved = self.state.stateful_callbacks.get(type(owner).__name__)  # type: ignore[union-attr]
            if saved is not None and owner is not self.control:
                for name, value in saved["attributes"].items():
                    setattr(owner, name, value)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = self.model.all_tied_weights_keys  # saved once, under the name they are tied to
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    # The result

    def checkpoints_to_average(self) -> list[Path]:
        """The last `average_last` checkpoints; with early stopping, those up to the best score."""
        checkpoints = complete_checkpoints(Path(self.args.output_dir or ""))
        if self.args.early_stopping_patience and self.state.best_global_step:
            checkpoints = [path for path in checkpoints if checkpoint_step(path) <= self.state.best_global_step]
        return checkpoints[-self.args.average_last :]

    def save_final_model(self, output: str | Path) -> Path:
        """Write the model to use, for `from_pretrained`: the moving average of the weights where there is one, else
        the average of the last checkpoints.

        Raises:
            ValueError: if nothing has been saved that could be averaged.
        """
        if self.weight_average is not None:
            return self.weight_average.save_model(self.model, Path(output))
        return average_checkpoints(self.checkpoints_to_average(), output, type(self.model))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """With the code that config.json speaks of, which the Trainer leaves behind."""
        for path in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(path, self.args.output_dir or "")
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's draft of a card, unless there is one already."""
        if not Path(self.args.output_dir or "", "README.md").exists():
            super().create_model_card(*args, **kwargs)


# Data


class Batches(Protocol):
    """Batches of all processes, in an order for each epoch."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list]: ...


class RankBatches:
    """One process's share of the batches: every `world_size`-th, so that those trained on together are alike."""

    def __init__(self, batches: Batches, rank: int, world_size: int):
        self.batches = batches
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) // self.world_size

    def __iter__(self) -> Iterator[list]:
        return islice(self.batches, self.rank, None, self.world_size)


class RowBatches:
    """Batches of `batch_size` rows, each row with the number of its epoch, in an order that follows from both.

    With several processes, each taking every `num_processes`-th batch, their number divides that of the batches: the
    last rows are shared out evenly, and left out, for this epoch, if they are fewer than the processes.

    Raises:
        ValueError: if there would be no batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int = 0, num_processes: int = 1, drop_last: bool = False):
        rounds, rest = divmod(rows, batch_size * num_processes)
        has_rest = rest >= num_processes and not drop_last
        if not rounds and not has_rest:
            dropped = " and drop_last" if drop_last else ""
            raise ValueError(f"{rows} rows make no batch of {batch_size} for {num_processes} processes{dropped}")
        self.rows = rows
        self.seed = seed
        self.epoch = 0
        self.sizes = rounds * num_processes * [batch_size]
        if has_rest:
            self.sizes += [len(share) for share in np.array_split(range(rest), num_processes)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, 0
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows).tolist()
        for size in self.sizes:
            yield [(epoch, row) for row in order[first : first + size]]
            first += size


class SeededRows(Dataset):
    """Batches by their places, (epoch, row) each: loaded and collated with random numbers of their own.

    Random augmentation, in the dataset or in the collator, thus does not depend on which worker does it, how far ahead
    of its use, or what a killed run had already drawn; and it leaves the random numbers of training alone. A collator
    that has `set_epoch` is told the epoch.
    """

    def __init__(self, rows: Any, collate: Callable[[list[Any]], Any], seed: int):
        self.rows = rows
        self.collate = collate
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[tuple[int, int]]) -> Any:
        (epoch, first), numbers = places[0], [row for _, row in places]
        if hasattr(self.collate, "set_epoch"):
            self.collate.set_epoch(epoch)
        with seeded(self.seed, epoch, first):
            together = getattr(self.rows, "__getitems__", None)  # of datasets.Dataset, faster than one by one
            return self.collate(together(numbers) if together else [self.rows[number] for number in numbers])


def _already_collated(batch: Any) -> Any:
    return batch


def leave_interrupts_to_the_trainer(worker: int) -> None:
    """In a worker of a DataLoader: Ctrl-C at a terminal reaches all processes, but the Trainer finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def same_random_state(devices: Sequence[int] = ()) -> Iterator[None]:
    """Random numbers drawn inside, on the CPU and on CUDA devices, do not change those drawn after."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python, NumPy and torch on the CPU draw what follows from `numbers` inside, and go on as they were after."""
    python, numpy, torch_seed = np.random.SeedSequence(numbers).generate_state(3).tolist()
    with same_random_state():
        random.seed(python)
        np.random.seed(numpy)
        torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed would seed the GPUs too
        yield
