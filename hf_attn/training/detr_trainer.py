"""Trainer for detectors: DETR's optimizer and schedule, a loss exact under accumulation, AP in each evaluation."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, Subset
from transformers.trainer_utils import EvalLoopOutput

from hf_attn.drawing import draw_detections
from hf_attn.loss_detr import count_items
from hf_attn.training.arguments import DetrTrainingArguments
from hf_attn.training.detr_evaluation import named, score_batch
from hf_attn.training.detr_metrics import CocoMetrics
from hf_attn.training.optimization import LateDecay, backbone_groups
from hf_attn.training.picture_trainer import PictureTrainer

LOGGED = ("loss_ce", "loss_bbox", "loss_giou", "class_error", "loss_dn_ce", "loss_dn_bbox", "loss_dn_giou")


class DetrTrainer(PictureTrainer):
    """Trains a detector. Beside what `PictureTrainer` does:

    - the loss is divided by the boxes and pictures of a whole optimizer step, over accumulated batches and processes;
    - the backbone learns at a rate of its own, at 0 not at all, and everything decays;
    - the learning rate stays up until late in the run, then falls;
    - logs have the terms of the loss, those of the last decoder layer;
    - evaluation reports COCO's AP and AR in original pixels, keeps no outputs, and draws a few validation pictures.

    Args:
        data_collator: `DetectionCollator`, of training.
        eval_collator: that of evaluation.
        names: of the classes; by default those of the model.
        pictures_to_draw: rows of the evaluation data, drawn into `drawings` in each evaluation.
        drawings: directory of the pictures.
    """

    arguments_class = DetrTrainingArguments

    args: DetrTrainingArguments

    def __init__(
        self,
        *args: Any,
        names: Sequence[str] | None = None,
        drawings: str | Path | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if self.args.backbone_learning_rate == 0:
            self.model.model.backbone.freeze()
        self.names = list(names or (self.model.config.id2label[i] for i in range(self.model.config.num_labels)))
        self.drawings = None if drawings is None else Path(drawings)
        self.terms: dict[str, torch.Tensor] = {}  # sums since they were logged, of this process's batches
        self.steps_of_terms = self.batches_of_terms = 0
        self.tokens = 0  # of the last batch, padding included

    # Training

    def parameter_groups(self, model: Any, learning_rate: float) -> list[dict[str, Any]]:
        return backbone_groups(model, self.args.weight_decay, learning_rate, self.args.backbone_learning_rate)

    def own_schedule(self, optimizer: torch.optim.Optimizer, progress: Any) -> LateDecay:
        return LateDecay(optimizer, progress, self.args.warmup_steps, self.args.decay, self.args.decay_from)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """(3,) boxes, those that find a query, and pictures, of all batches of one optimizer step of all processes."""
        self.steps_of_terms += 1
        labels = [label for batch in batch_samples for label in batch["labels"]]
        items = count_items(labels, self.model.config.num_queries).to(device)
        return self.accelerator.reduce(items, "sum") if self.args.world_size > 1 else items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self.batches_of_terms += 1
            self.tokens = outputs.encoder_last_hidden_state.shape[:2].numel()
            for name in LOGGED:
                if name in outputs.loss_dict:
                    self.terms[name] = self.terms.get(name, 0) + outputs.loss_dict[name].detach()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.terms:
            sums = {**self.terms, "batches": torch.tensor(float(self.batches_of_terms), device=self.args.device)}
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, "sum")
            # Parts of a step add up to it where they are shares of its boxes; class_error is a mean of its own
            numbers = {"class_error": float(sums.pop("batches"))}
            logs.update({name: float(sum_) / numbers.get(name, self.steps_of_terms) for name, sum_ in sums.items()})
            self.terms.clear()
            self.steps_of_terms = self.batches_of_terms = 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Of the matrix products of the encoder's weights with the tokens of the last batch, forward and back;
        backbone and decoder are not counted."""
        return self._flops_per_token * self.tokens

    @functools.cached_property
    def _flops_per_token(self) -> int:
        """Two for each weight of the encoder going forward, four going back."""
        return 6 * sum(parameter.numel() for parameter in self.model.model.encoder.parameters())

    # Data

    def ordered_dataloader(self, dataset: Any) -> DataLoader:
        """Each process its own share of the rows, none twice."""
        own = Subset(dataset, range(self.args.process_index, len(dataset), self.args.world_size))
        loader_arguments = {
            "num_workers": self.args.dataloader_num_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }
        return DataLoader(own, self.args.eval_batch_size, collate_fn=self.eval_collator, **loader_arguments)

    # Evaluation

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        model = self.model.eval()
        metrics = CocoMetrics(self.names)
        loss, pictures = 0.0, 0
        detections: list[dict[str, torch.Tensor]] = []
        for batch in dataloader:
            truths = batch.pop("truths")
            batch = self._prepare_inputs(batch)
            with self.autocast():
                outputs = model(**batch)
            number = len(batch["labels"])
            loss, pictures = loss + number * float(outputs.loss), pictures + number
            found = score_batch(metrics, outputs, truths, model.config.class_loss)
            detections += found[: self.args.drawn_pictures - len(detections)]
        totals = torch.tensor([loss, pictures], dtype=torch.float64)
        if self.args.world_size > 1:
            states = gather_object([(metrics.state(), totals.tolist())])
            metrics = CocoMetrics(self.names)
            for state, _ in states:
                metrics.merge(state)
            totals = torch.tensor([own for _, own in states], dtype=torch.float64).sum(0)
        scores = {name: value for name, value in metrics.compute().items() if isinstance(value, float)}
        values = {"loss": float(totals[0] / totals[1].clamp(min=1)), **scores}
        self._draw(dataloader, detections)
        number = int(totals[1])
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_{k}": v for k, v in values.items()}, number)

    def _draw(self, dataloader: DataLoader, detections: list[dict[str, torch.Tensor]]) -> None:
        """The first pictures with what the model finds in them, in the directory of drawings, by the step."""
        if self.drawings is None or not detections or not self.args.should_save:
            return
        rows = [dataloader.dataset[row] for row in range(len(detections))]
        self.drawings.mkdir(parents=True, exist_ok=True)
        draw_detections(
            [row["image"] for row in rows],
            [named(found, self.names) for found in detections],
            self.drawings / f"step_{self.state.global_step:06}.png",
            names=self.names,
        )
