"""Arguments of the translator's Trainer."""

from dataclasses import dataclass, field
from math import ceil

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_attn.training.optimization import choose_bf16


@dataclass
class TranslatorTrainingArguments(Seq2SeqTrainingArguments):
    """Arguments of `TranslatorTrainer`; the defaults are the paper's optimizer and schedule.

    After the start, `bf16` is True or False and `precision` says why.

    Raises:
        ValueError: if a value is out of range or two do not fit together.
    """

    max_tokens_per_batch: int = field(
        default=4096, metadata={"help": "Rows times longest row of a batch, on the source and on the target side."}
    )
    noam_factor: float | None = field(
        default=1.0, metadata={"help": "Factor of the Noam schedule. None: lr_scheduler_type and learning_rate."}
    )
    warmup_steps: float = field(default=4000, metadata={"help": "Steps until the learning rate is highest."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of Adam."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Epsilon of Adam."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Multiply in bfloat16. Left out: where the hardware has it."}
    )
    training_kernel: str = field(
        default="auto", metadata={"help": "Attention kernel of training: 'auto', or a name: 'eager', 'sdpa', ..."}
    )
    average_last: int = field(default=5, metadata={"help": "Checkpoints that are averaged at the end. 1: the last."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of an average over all steps. None: off."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better score. None: off."}
    )
    max_minutes: float | None = field(default=None, metadata={"help": "Stop after so many minutes. None: off."})
    eval_generation_examples: int | None = field(
        default=None, metadata={"help": "Sentences translated in each evaluation, evenly spread. None: all."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are NaN or infinite."})
    use_cache: bool = field(default=True, metadata={"help": "use_cache of the saved configuration."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for unused weights in each step; a translator uses all of its own."}
    )

    def __post_init__(self):
        for name in ("max_tokens_per_batch", "average_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        for name in ("early_stopping_patience", "eval_generation_examples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1; leave it out to turn it off")
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.use_cpu = self.use_cpu or accelerator is None
        if self.fp16 and self.bf16 is None:
            self.bf16 = False
        device = "cpu" if self.use_cpu or accelerator is None else accelerator.type
        self.bf16, self.precision = choose_bf16("auto" if self.bf16 is None else self.bf16, device)
        if self.early_stopping_patience and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        super().__post_init__()
        if self.bf16:
            self.mixed_precision = "no"  # the Trainer enters autocast itself: accelerate copies all logits to float32
        self._check_early_stopping()
        self._keep_enough_checkpoints()

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience and (
            self.eval_strategy == IntervalStrategy.NO or self.eval_strategy != self.save_strategy
        ):
            raise ValueError(
                "early stopping needs eval_strategy and save_strategy to be the same, 'steps' or 'epoch'; they are "
                f"{IntervalStrategy(self.eval_strategy).value!r} and {SaveStrategy(self.save_strategy).value!r}"
            )

    def _keep_enough_checkpoints(self) -> None:
        """The last checkpoints up to the best one are averaged: those after it must not push them out."""
        needed = self.average_last
        if self.early_stopping_patience:
            evaluations_a_save = 1.0
            if self.eval_strategy == IntervalStrategy.STEPS and self.eval_steps:
                evaluations_a_save = self.save_steps / self.eval_steps
            needed += ceil(self.early_stopping_patience / evaluations_a_save)
        limit = self.save_total_limit  # type: ignore[has-type]
        if limit is not None and limit < needed:
            raise ValueError(
                f"save_total_limit {limit} is below the {needed} checkpoints that average_last {self.average_last} "
                "needs; raise it or leave it out"
            )
        self.save_total_limit = limit or needed
