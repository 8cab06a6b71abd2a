"""Seq2SeqTrainer for translators: batches counted in tokens, the paper's schedule, runs that survive a kill."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Seq2SeqTrainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration
from hf_attn.training.arguments import TranslatorTrainingArguments
from hf_attn.training.data import token_lengths
from hf_attn.training.evaluation import generate_all, summed_loss
from hf_attn.training.metrics import TextScores
from hf_attn.training.optimization import noam_schedule
from hf_attn.training.resumable import RankBatches, ResumableTraining
from hf_attn.training.sampler import IGNORED_LABEL, TokenBatchSampler, TranslationCollator, pad_right


class TranslatorTrainer(ResumableTraining, Seq2SeqTrainer):
    """Trains a translator on rows of `input_ids` and `labels` (lists of ids, both ending in `</s>`).

    Differences to `Seq2SeqTrainer`, beside those of `ResumableTraining`:

    - batches have so many tokens, not so many rows (`max_tokens_per_batch`), in training and in evaluation;
    - the evaluation loss is the mean over all target words; `predict_with_generate` adds BLEU and chrF of the texts;
    - logs have `target_tokens` and `target_tokens_per_second`.

    `data_collator` and `compute_metrics` follow from `processing_class`, the tokenizer, where they are not given.
    """

    throughput_unit = "target_tokens"
    arguments_class = TranslatorTrainingArguments

    args: TranslatorTrainingArguments
    model: AttnTranslatorForConditionalGeneration

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
        if processing_class is not None:
            data_collator = data_collator or TranslationCollator(processing_class)
            compute_metrics = compute_metrics or TextScores(processing_class)
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

    # Training

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.args.noam_factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            hidden_size, factor = self.model.config.hidden_size, self.args.noam_factor
            self.lr_scheduler = noam_schedule(optimizer or self.optimizer, hidden_size, warmup_steps, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        return self.flops_per_position * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
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


def _lengths(dataset: Any) -> tuple[Any, Any]:
    """Tokens of each source and of each target."""
    if isinstance(dataset, datasets.Dataset):
        return token_lengths(dataset)
    return [len(row["input_ids"]) for row in dataset], [len(row["labels"]) for row in dataset]
