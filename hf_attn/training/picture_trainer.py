"""What the Trainers of picture models have in common: how their pictures are loaded, counted and scheduled."""

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import SchedulerType

from hf_attn.training.optimization import CosineSchedule
from hf_attn.training.resumable import ResumableTraining, leave_interrupts_to_the_trainer


class PictureTrainer(ResumableTraining, Trainer):
    """Trains on whatever rows the collators make `pixel_values` and `labels` of.

    Differences to `Trainer`, beside those of `ResumableTraining`:

    - training and evaluation have a collator each, since only training changes its pictures;
    - random augmentation follows from the seed, the epoch and the row, with any number of workers;
    - the learning rate falls to its end at the last step or when the time is up, whichever comes first;
    - logs have `pictures` and `pictures_per_second`.

    A run that `max_minutes` ends resumes where it was, on the same schedule, but is not to the bit the one that was
    never stopped: how many steps fit into the time is not the same twice.

    Args:
        data_collator: of training.
        eval_collator: of evaluation and prediction; by default that of training.
    """

    throughput_unit = "pictures"

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
            trained = self.model if model is None else model
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, trained)
            optimizer_class, settings = chosen
            own_groups = {"params", "model", "optimizer_dict"} & settings.keys()  # GaLore, LOMO, and one per layer
            if own_groups or not issubclass(optimizer_class, torch.optim.Optimizer):
                name = optimizer_class.__name__
                raise ValueError(f"{name} groups the parameters itself; choose another optimizer, such as adamw_torch")
            groups = self.parameter_groups(trained, settings.get("lr", self.args.learning_rate))
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def parameter_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """The optimizer's groups, each with `params`, `lr` and `weight_decay`."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its parameters learn")

    def progress(self, step: int, num_training_steps: int) -> float:
        """The share of the run that is over after so many steps, from 0 to 1."""
        return max(step / num_training_steps, self.time_limit.used if self.time_limit else 0.0)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.args.lr_scheduler_type != SchedulerType.COSINE:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = self.own_schedule(
                optimizer or self.optimizer, lambda step: self.progress(step, num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def own_schedule(self, optimizer: torch.optim.Optimizer, progress: Any) -> Any:
        """The schedule of `lr_scheduler_type` "cosine"; `progress` as `CosineSchedule` takes it."""
        return CosineSchedule(optimizer, progress, self.args.warmup_steps, self.args.learning_rate_floor)

    def count_items(self, batches: list[dict[str, Any]], num_items_in_batch: Any) -> torch.Tensor | int:
        pictures = sum(len(batch["pixel_values"]) for batch in batches)
        if self.args.world_size == 1:
            return pictures
        return self.accelerator.reduce(torch.tensor(pictures, device=self.args.device))

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
        return self.ordered_dataloader(dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.ordered_dataloader(test_dataset)

    def ordered_dataloader(self, dataset: Any) -> DataLoader:
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
