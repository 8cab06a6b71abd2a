"""Seq2SeqTrainer for translators: batches counted in tokens, the paper's schedule, runs that survive a kill.

Resuming after a kill at any moment gives the same weights, bit for bit, as a run that was never stopped (on a CPU): a
checkpoint is written whole or not at all, and holds everything that the next step depends on.
"""

import functools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Seq2SeqTrainer
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput

from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration
from hf_attn.training.arguments import TranslatorTrainingArguments
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
from hf_attn.training.data import token_lengths
from hf_attn.training.evaluation import generate_all, summed_loss
from hf_attn.training.metrics import TextScores
from hf_attn.training.optimization import choose_kernel, noam_schedule
from hf_attn.training.sampler import IGNORED_LABEL, TokenBatchSampler, TranslationCollator, pad_right


class RankBatches:
    """One process's share of the batches: every `world_size`-th, so that those trained on together are alike."""

    def __init__(self, batches: TokenBatchSampler, rank: int, world_size: int):
        self.batches = batches
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.rank, None, self.world_size)


class TranslatorTrainer(Seq2SeqTrainer):
    """Trains a translator on rows of `input_ids` and `labels` (lists of ids, both ending in `</s>`).

    Differences to `Seq2SeqTrainer`, which it otherwise is:

    - batches have so many tokens, not so many rows (`max_tokens_per_batch`), in training and in evaluation;
    - the evaluation loss is the mean over all target words; `predict_with_generate` adds BLEU and chrF of the texts;
    - `train` saves whole checkpoints only, resumes bit-identically, and answers Ctrl-C and SIGTERM with a checkpoint
      and `TrainingInterrupted`;
    - logs have `target_tokens` and `target_tokens_per_second` (evaluating and saving not counted);
    - `save_final_model` writes the average of the last checkpoints.

    `data_collator` and `compute_metrics` follow from `processing_class`, the tokenizer, where they are not given.
    """

    args: TranslatorTrainingArguments
    model: AttnTranslatorForConditionalGeneration  # type: ignore[assignment]
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    control: TrainerControl

    def __init__(
        self,
        model: Any = None,
        args: TranslatorTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if args is None or not isinstance(args, TranslatorTrainingArguments):
            raise ValueError(f"args must be TranslatorTrainingArguments, not {type(args).__name__}")
        if processing_class is not None:
            data_collator = data_collator or TranslationCollator(processing_class)
            compute_metrics = compute_metrics or TextScores(processing_class)
        self.throughput = Throughput()
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
        if num_items_in_batch is not None:
            self.throughput.add(num_items_in_batch)
        return batches, num_items_in_batch

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

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.args.noam_factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            hidden_size, factor = self.model.config.hidden_size, self.args.noam_factor
            self.lr_scheduler = noam_schedule(optimizer or self.optimizer, hidden_size, warmup_steps, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

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
    def _flops_per_token(self) -> int:
        return 6 * self.model.num_parameters(exclude_embeddings=True)  # counting them takes longer than a small step

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        return self._flops_per_token * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.throughput.report())
        elif "train_loss" in logs:  # the summary at the end
            logs["target_tokens"] = self.throughput.report()["target_tokens"]
        # The Trainer computes these from a number of rows per batch that token batches do not have
        meaningless = [name for name in logs if name.endswith("steps_per_second") and not name.startswith("train")]
        for name in meaningless:
            del logs[name]
        super().log(logs, start_time)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset; none was given")
        return self._token_dataloader(self.train_dataset, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]  # type: ignore[index]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset; none was given")
        return self._token_dataloader(dataset, shuffle=False)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self._token_dataloader(test_dataset, shuffle=False)

    def _token_dataloader(self, dataset: Any, shuffle: bool) -> DataLoader:
        sources, targets = _lengths(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batches = TokenBatchSampler(
            sources, targets, self.args.max_tokens_per_batch, shuffle, seed, num_processes=self.args.world_size
        )
        loader = DataLoader(
            dataset,
            batch_sampler=RankBatches(batches, self.args.process_index, self.args.world_size),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        # One process each: RankBatches has already given each its share
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.throughput.paused(), _same_random_state():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        self.callback_handler.eval_dataloader = dataloader
        predictions: Any = None
        labels: Any = None
        with self.autocast():
            total, count = self.accelerator.reduce(summed_loss(self.model, self._announced(dataloader)))
            metrics = {"loss": (total / count).item()}
            if self.args.predict_with_generate and not prediction_loss_only:
                predictions, labels = self._translate(dataloader.dataset)
                if self.compute_metrics is not None:
                    metrics.update(self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels)))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, labels, metrics, num_samples=self.num_examples(dataloader))

    def _announced(self, dataloader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
        for batch in dataloader:
            yield batch
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _translate(self, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
        """Generated ids and labels of rows spread evenly over a dataset, (sentences, longest) with -100 as padding."""
        number = min(self.args.eval_generation_examples or len(dataset), len(dataset))
        rows = [index * len(dataset) // number for index in range(number)]
        share = rows[self.args.process_index :: self.args.world_size]
        sources = [dataset[row]["input_ids"] for row in share]
        generate_arguments = {name: value for name, value in self._gen_kwargs.items() if value is not None}
        generated = generate_all(self.model, sources, self.args.max_tokens_per_batch, **generate_arguments)
        by_row = dict(gather_object(list(zip(share, generated, strict=True))))
        generated_ids, _ = pad_right([by_row[row] for row in rows], IGNORED_LABEL)
        labels, _ = pad_right([dataset[row]["labels"] for row in rows], IGNORED_LABEL)
        return generated_ids.numpy(), labels.numpy()

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
        return average_checkpoints(self.checkpoints_to_average(), output)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's draft of a card, unless there is one already."""
        if not Path(self.args.output_dir or "", "README.md").exists():
            super().create_model_card(*args, **kwargs)


def _lengths(dataset: Any) -> tuple[Any, Any]:
    """Tokens of each source and of each target."""
    if isinstance(dataset, datasets.Dataset):
        return token_lengths(dataset)
    return [len(row["input_ids"]) for row in dataset], [len(row["labels"]) for row in dataset]


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Random numbers drawn inside do not change those drawn after: evaluating leaves training as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
