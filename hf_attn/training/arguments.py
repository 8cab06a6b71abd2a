"""Arguments of the Trainers: what every resumable training has, and what each model adds."""

from dataclasses import dataclass, field, fields
from math import ceil

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_attn.training.optimization import DECAYS, choose_bf16


@dataclass
class ResumableTrainingArguments(TrainingArguments):
    """What `ResumableTraining` adds to the arguments of transformers; a base beside those of another Trainer.

    After the start, `bf16` is True or False and `precision` says why.

    Raises:
        ValueError: if a value is out of range or two do not fit together.
    """

    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Multiply in bfloat16. Left out: where the hardware has it."}
    )
    training_kernel: str = field(
        default="auto", metadata={"help": "Attention kernel of training: 'auto', or a name: 'eager', 'sdpa', ..."}
    )
    average_last: int = field(default=1, metadata={"help": "Checkpoints that are averaged at the end. 1: the last."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of an average over all steps. None: off."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better score. None: off."}
    )
    max_minutes: float | None = field(default=None, metadata={"help": "Stop after so many minutes. None: off."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are NaN or infinite."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for unused weights in each step; our models use all of their own."}
    )

    def __post_init__(self):
        self._check_at_least_one("average_last", "early_stopping_patience")
        self._choose_number_format()
        if self.early_stopping_patience and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        super().__post_init__()
        if self.bf16:
            self.mixed_precision = "no"  # the Trainer enters autocast itself: accelerate copies all logits to float32
        self._check_early_stopping()
        self._keep_enough_checkpoints()

    def _check_at_least_one(self, *names: str) -> None:
        optional = {field.name for field in fields(self) if field.default is None}
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                remedy = "; leave it out to turn it off" if name in optional else ""
                raise ValueError(f"{name} {value} is not at least 1{remedy}")

    def _choose_number_format(self) -> None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.use_cpu = self.use_cpu or accelerator is None  # type: ignore[has-type]
        if self.fp16 and self.bf16 is None:
            self.bf16 = False
        device = "cpu" if self.use_cpu or accelerator is None else accelerator.type
        self.bf16, self.precision = choose_bf16("auto" if self.bf16 is None else self.bf16, device)

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


@dataclass
class TranslatorTrainingArguments(ResumableTrainingArguments, Seq2SeqTrainingArguments):
    """Arguments of `TranslatorTrainer`; the defaults are the paper's optimizer and schedule."""

    max_tokens_per_batch: int = field(
        default=4096, metadata={"help": "Rows times longest row of a batch, on the source and on the target side."}
    )
    noam_factor: float | None = field(
        default=1.0, metadata={"help": "Factor of the Noam schedule. None: lr_scheduler_type and learning_rate."}
    )
    warmup_steps: float = field(default=4000, metadata={"help": "Steps until the learning rate is highest."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of Adam."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Epsilon of Adam."})
    average_last: int = field(default=5, metadata={"help": "Checkpoints that are averaged at the end. 1: the last."})
    eval_generation_examples: int | None = field(
        default=None, metadata={"help": "Sentences translated in each evaluation, evenly spread. None: all."}
    )
    use_cache: bool = field(default=True, metadata={"help": "use_cache of the saved configuration."})

    def __post_init__(self):
        self._check_at_least_one("max_tokens_per_batch", "eval_generation_examples")
        super().__post_init__()


@dataclass
class ViTTrainingArguments(ResumableTrainingArguments):
    """Arguments of `ViTTrainer`; the defaults are the optimizer and schedule of big_vision's plain S/16.

    Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k": Adam at 1e-3; a decoupled weight decay of 1e-4,
    which is 0.1 in AdamW, where it is multiplied by the learning rate; cosine to zero; gradients clipped to norm 1.
    The warm-up of 10,000 steps is 9 % of 90 epochs there; here it is 5 % of the run, however long.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate, that of the head."})
    weight_decay: float = field(default=0.1, metadata={"help": "Of matrices and kernels; nothing else decays."})
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer down to the next. 1: off."}
    )
    lr_scheduler_type: str = field(  # type: ignore[assignment]
        default="cosine", metadata={"help": "'cosine', over the steps or max_minutes, or another of transformers."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps until the learning rate is highest; below 1, a share of the run."}
    )
    learning_rate_floor: float = field(
        default=0.0, metadata={"help": "Share of the learning rate at which the cosine ends."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Longer gradients are shortened to this norm."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Hide columns that forward has no name for; pictures are such a column."}
    )

    def __post_init__(self):
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay {self.layer_decay} is not above 0 and at most 1; 1 turns it off")
        if not 0 <= self.learning_rate_floor <= 1:
            raise ValueError(f"learning_rate_floor {self.learning_rate_floor} is not from 0 to 1")
        super().__post_init__()


@dataclass
class DetrTrainingArguments(ResumableTrainingArguments):
    """Arguments of `DetrTrainer`; the defaults are the optimizer and schedule of Carion et al. 2020, section 4.

    AdamW at 1e-4, the backbone at 1e-5, weight decay 1e-4 of everything, gradients clipped to norm 0.1, and a tenth of
    the learning rates after two thirds of the run (200 of 300 epochs).
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate, but of the backbone."})
    backbone_learning_rate: float = field(
        default=1e-5, metadata={"help": "Highest learning rate of the backbone; 0 freezes it."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Of all parameters."})
    max_grad_norm: float = field(default=0.1, metadata={"help": "Longer gradients are shortened to this norm."})
    warmup_steps: float = field(
        default=0, metadata={"help": "Steps until the learning rate is highest; below 1, a share of the run."}
    )
    lr_scheduler_type: str = field(  # type: ignore[assignment]
        default="cosine", metadata={"help": "'cosine': as decay and decay_from say; or another of transformers."}
    )
    decay: str = field(
        default="step", metadata={"help": "How the learning rate falls: 'step', to a tenth; or 'cosine', to zero."}
    )
    decay_from: float = field(default=2 / 3, metadata={"help": "Share of the run after which it falls."})
    drawn_pictures: int = field(default=6, metadata={"help": "Validation pictures drawn in each evaluation. 0: none."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Hide columns that forward has no name for; pictures are such a column."}
    )

    def __post_init__(self):
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from {self.decay_from} is not a share of the run, from 0 to 1")
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r} is unknown; use {' or '.join(map(repr, DECAYS))}")
        if self.drawn_pictures < 0:
            raise ValueError(f"drawn_pictures {self.drawn_pictures} is below 0")
        if self.early_stopping_patience and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "ap", True
        super().__post_init__()
