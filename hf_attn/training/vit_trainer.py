"""Trainer for picture models: the recipe of the Vision Transformer, runs that survive a kill."""

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import SchedulerType

from hf_attn.training.arguments import ViTTrainingArguments
from hf_attn.training.optimization import CosineSchedule, layer_decay_groups
from hf_attn.training.resumable import ResumableTraining, leave_interrupts_to_the_trainer


class ViTTrainer(ResumableTraining, Trainer):
    """Trains a Vision Transformer on whatever rows the collators make `pixel_values` and `labels` of.

    Differences to `Trainer`, beside those of `ResumableTraining`:

    - training and evaluation have a collator each, since only training changes its pictures;
    - random augmentation follows from the seed, the epoch and the row, with any number of workers;
    - tokens, positions, norms, layer scales and biases do not decay, and lower layers may learn more slowly;
    - the cosine ends at the last step or when the time is up, whichever comes first;
    - logs have `pictures` and `pictures_per_second`.

    A run that `max_minutes` ends resumes where it was, on the same schedule, but is not to the bit the one that was
    never stopped: how many steps fit into the time is not the same twice.

    Args:
        data_collator: of training; with mixup, say.
        eval_collator: of evaluation and prediction; by default that of training.
    """

    throughput_unit = "pictures"
    arguments_class = ViTTrainingArguments

    args: ViTTrainingArguments

    def __init__(
        self,
        model: Any = None,
        args: ViTTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        eval_collator: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            **kwargs,
        )
        self.eval_collator = eval_collator or self.data_collator

    # Training

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args, trained = self.args, self.model if model is None else model
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, trained)
            optimizer_class, settings = chosen
            own_groups = {"params", "model", "optimizer_dict"} & settings.keys()  # GaLore, LOMO, and one per layer
            if own_groups or not issubclass(optimizer_class, torch.optim.Optimizer):
                name = optimizer_class.__name__
                raise ValueError(f"{name} groups the parameters itself; choose another optimizer, such as adamw_torch")
            learning_rate = settings.get("lr", args.learning_rate)
            groups = layer_decay_groups(trained, args.weight_decay, args.layer_decay, learning_rate)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.args.lr_scheduler_type != SchedulerType.COSINE:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:

            def progress(step: int) -> float:
                return max(step / num_training_steps, self.time_limit.used if self.time_limit else 0.0)

            args = self.args
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = CosineSchedule(optimizer, progress, args.warmup_steps, args.learning_rate_floor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def count_items(self, batches: list[dict[str, Any]], num_items_in_batch: Any) -> torch.Tensor | int:
        pictures = sum(len(batch["pixel_values"]) for batch in batches)
        if self.args.world_size == 1:
            return pictures
        return self.accelerator.reduce(torch.tensor(pictures, device=self.args.device))

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Of the matrix products with weights, forward and back; all tokens of all pictures."""
        pictures, _, height, width = inputs["pixel_values"].shape
        rows, columns = self.model.base_model.patch_grid(height, width)
        return self.flops_per_position * pictures * (rows * columns + self.model.config.num_prefix_tokens)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset; none was given")
        return self.row_dataloader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]  # type: ignore[index]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset; none was given")
        return self._ordered_dataloader(dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self._ordered_dataloader(test_dataset)

    def _ordered_dataloader(self, dataset: Any) -> DataLoader:
        loader = DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.eval_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            worker_init_fn=leave_interrupts_to_the_trainer,
        )
        return self.accelerator.prepare(loader)
