"""How well a picture classifier does on labelled pictures: `evaluate_vit`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from hf_attn.training.augmentation import PictureCollator
from hf_attn.training.callbacks import ProgressListener
from hf_attn.training.measuring import check_held_out, evenly_spread, load_saved, told
from hf_attn.training.optimization import choose_bf16, device_type
from hf_attn.training.vit_labels import LabelledPictures, check_columns, is_multi_label
from hf_attn.training.vit_metrics import confusion_matrix, multi_label_metrics, read_answers, single_label_metrics

MULTI_LABEL = "multi_label_classification"


@dataclass
class Answer:
    """What a model said to a picture. Of several classes, the names stand with commas between them."""

    path: str | None  # of the file that the picture came from, if the data say it
    label: str
    predicted: str  # the likeliest class; of several, those likelier than not
    confidence: float  # the probability of that; of several classes, as if they were independent


@dataclass
class ViTEvaluation:
    """What a classifier made of a split.

    `metrics`: those of `single_label_metrics` or `multi_label_metrics`, with `seconds` and `pictures_per_second` (of
    reading the pictures and of the model together).
    """

    metrics: dict[str, Any]
    names: list[str]  # of the classes, in the model's order
    confusion: NDArray[np.int64] | None = field(repr=False)  # (classes, classes), right by predicted; one class each
    answers: list[Answer] = field(repr=False)  # to each picture, in their order

    @property
    def mistakes(self) -> list[Answer]:
        """The wrong answers, the most confident first."""
        wrong = [answer for answer in self.answers if answer.predicted != answer.label]
        return sorted(wrong, key=lambda answer: -answer.confidence)


def evaluate_vit(
    model: str | Path,
    data: datasets.DatasetDict,
    *,
    split: str = "test",
    pictures: int | None = None,
    batch_size: int = 64,
    bf16: bool | str = "auto",
    num_workers: int = 0,
    progress: ProgressListener | None = None,
) -> ViTEvaluation:
    """Classify the pictures of a split and compare with their labels, which are matched to the model's by name.

    Args:
        model: a directory with a classifier and its image processor, or the id of one on the Hub.
        data: with the split, whose columns are `image` and `label` (a class, or a list of them).
        pictures: so many, spread evenly over the split; by default all.
        bf16: True, False, or "auto": bfloat16 where the hardware has it.
        num_workers: processes that read the pictures.
        progress: told how many pictures are classified.

    Raises:
        FileNotFoundError: if there is no such model, or it has no image processor.
        ValueError: if there is no such split, nothing in it, or it has labels that the model does not know.
    """
    check_held_out(data, split, pictures)
    check_columns(data[split], split)
    classifier, processor = load_classifier(model)
    names = [classifier.config.id2label[number] for number in range(classifier.config.num_labels)]
    multi_label = classifier.config.problem_type == MULTI_LABEL
    _check_kind(model, multi_label, split, is_multi_label(data[split]))
    rows = LabelledPictures(evenly_spread(data[split], pictures), split, classifier.config.label2id)

    collator = PictureCollator(processor, num_labels=len(names))
    batches = DataLoader(rows, batch_size, collate_fn=collator, num_workers=num_workers)  # type: ignore[arg-type]
    device = device_type()
    use_bf16, _ = choose_bf16(bf16, device, classifier.config.hidden_size)
    started = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
        logits, labels = classify_all(classifier.to(torch.device(device)), told(batches, len(rows), progress))
    seconds = time.perf_counter() - started

    judge = _judge_several if multi_label else _judge_one
    evaluation = judge(logits, labels, names, rows.paths())
    evaluation.metrics |= {"seconds": seconds, "pictures_per_second": len(rows) / seconds}
    return evaluation


@torch.no_grad()
def classify_all(model: PreTrainedModel, batches: Iterator[Mapping[str, torch.Tensor]]) -> tuple[NDArray, NDArray]:
    """Float32 logits (pictures, classes) of all batches, and their labels in one array."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        logits.append(model(batch["pixel_values"].to(model.device)).logits.float().cpu().numpy())
        labels.append(batch["labels"].numpy())
    return np.concatenate(logits), np.concatenate(labels)


def load_classifier(model: str | Path) -> tuple[Any, BaseImageProcessor]:
    """A picture classifier and its image processor.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = {"config.json": "no picture classifier", "preprocessor_config.json": "a model without its image processor"}
    return load_saved(model, (AutoModelForImageClassification, AutoImageProcessor), files, "train_vit")


def _check_kind(model: str | Path, model_is_multi_label: bool, split: str, data_are: bool) -> None:
    if model_is_multi_label != data_are:
        kinds = {True: "several classes to a picture", False: "one class to a picture"}
        raise ValueError(f"{model} gives {kinds[model_is_multi_label]}, but the {split} split has {kinds[data_are]}")


def _judge_one(logits: NDArray, labels: NDArray, names: list[str], paths: Sequence[str | None]) -> ViTEvaluation:
    read = read_answers(logits, labels)
    answers = [
        Answer(path, names[label], names[predicted], confidence)
        for path, label, predicted, confidence in zip(
            paths, labels.tolist(), read.predicted.tolist(), read.confidence.tolist(), strict=True
        )
    ]
    confusion = confusion_matrix(read.labels, read.predicted, len(names))
    return ViTEvaluation(single_label_metrics(read, names), names, confusion, answers)


def _judge_several(logits: NDArray, labels: NDArray, names: list[str], paths: Sequence[str | None]) -> ViTEvaluation:
    def joined(chosen: NDArray) -> str:
        return ", ".join(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)

    # Of the likelier of yes and no for each class: p = 1 / (1 + exp(-|logit|))
    confidences = np.exp(-np.logaddexp(0, -np.abs(logits.astype(np.float64))).sum(axis=1))
    answers = [
        Answer(path, joined(label > 0.5), joined(row > 0), confidence)
        for path, label, row, confidence in zip(paths, labels, logits, confidences.tolist(), strict=True)
    ]
    return ViTEvaluation(multi_label_metrics(logits, labels, names), names, None, answers)
