"""How well a detector does on pictures with boxes: `evaluate_detr`, by COCO's metrics in the pictures' own pixels."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForObjectDetection, BaseImageProcessor

from hf_attn.image_processing_detr import xyxy_in_pixels
from hf_attn.training.callbacks import ProgressListener
from hf_attn.training.detection_augmentation import DetectionCollator, annotations_of
from hf_attn.training.detection_rows import DetectionRows, check_detection_columns
from hf_attn.training.detr_metrics import MOST_DETECTIONS, CocoMetrics
from hf_attn.training.measuring import check_held_out, evenly_spread, load_saved, spread_rows, told
from hf_attn.training.optimization import choose_bf16, device_type

SAMPLES = 8  # pictures whose detections are kept for drawing
SHOWN = 0.5  # probability from which a detection is drawn

Boxes = dict[str, torch.Tensor]


@dataclass
class Sample:
    """What a model found in a picture: of each detection `label`, `score` and `box`, xyxy in pixels."""

    row: int  # of the picture in its split
    detections: list[dict[str, Any]]


@dataclass
class DetrEvaluation:
    """What a detector made of a split.

    `metrics`: those of `CocoMetrics.compute`, with `seconds` and `pictures_per_second` (of reading the pictures, of
    the model and of comparing boxes together).
    """

    metrics: dict[str, Any]
    names: list[str]  # of the classes, in the model's order
    samples: list[Sample] = field(repr=False)  # of a few pictures, spread evenly


def evaluate_detr(
    model: str | Path,
    data: datasets.DatasetDict,
    *,
    split: str = "test",
    pictures: int | None = None,
    batch_size: int = 8,
    bf16: bool | str = "auto",
    num_workers: int = 0,
    progress: ProgressListener | None = None,
) -> DetrEvaluation:
    """Find objects in the pictures of a split and compare with its boxes, whose classes are matched by name.

    Args:
        model: a directory with a detector and its image processor, or the id of one on the Hub.
        data: with the split, in the layout of `load_detections`.
        pictures: so many, spread evenly over the split; by default all.
        bf16: True, False, or "auto": bfloat16 where the hardware has it.
        num_workers: processes that read the pictures.
        progress: told how many pictures are done.

    Raises:
        FileNotFoundError: if there is no such model, or it has no image processor.
        ValueError: if there is no such split, nothing in it, or it has classes that the model does not know.
    """
    check_held_out(data, split, pictures)
    check_detection_columns(data[split], split)
    detector, processor = load_detector(model)
    names = [detector.config.id2label[number] for number in range(detector.config.num_labels)]
    rows = DetectionRows(evenly_spread(data[split], pictures), split, detector.config.label2id)

    collator = EvaluationCollator(processor)
    batches = DataLoader(rows, batch_size, collate_fn=collator, num_workers=num_workers)  # type: ignore[arg-type]
    device = device_type()
    use_bf16, _ = choose_bf16(bf16, device, detector.config.hidden_size)
    metrics = CocoMetrics(names)
    places, of_split = spread_rows(len(rows), SAMPLES), spread_rows(len(data[split]), pictures)
    started = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
        found = detect_all(detector.to(torch.device(device)), told(batches, len(rows), progress), metrics)
        samples = [Sample(of_split[place], named(one, names)) for place, one in enumerate(found) if place in places]
    metrics_of_all = metrics.compute()
    seconds = time.perf_counter() - started
    return DetrEvaluation(
        metrics_of_all | {"seconds": seconds, "pictures_per_second": len(rows) / seconds}, names, samples
    )


@torch.no_grad()
def detect_all(model: Any, batches: Iterator[Mapping[str, Any]], metrics: CocoMetrics) -> Iterator[Boxes]:
    """What the model finds in each picture, as it is added to the metrics; see `score_batch`."""
    model.eval()
    class_loss = getattr(model.config, "class_loss", "cross_entropy")  # transformers' DETR has no choice
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "pixel_mask") if name in batch}
        yield from score_batch(metrics, model(**inputs), batch["truths"], class_loss)


def load_detector(model: str | Path) -> tuple[Any, BaseImageProcessor]:
    """A detector and its image processor.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = {"config.json": "no detector", "preprocessor_config.json": "a model without its image processor"}
    return load_saved(model, (AutoModelForObjectDetection, AutoImageProcessor), files, "train_detr")


# Pictures with all that is in them


class EvaluationCollator(DetectionCollator):
    """Batches of pictures as the processor makes them, and `truths`: all objects of each picture in its own pixels.

    The processor's `labels` are what a model learns from, without crowds; the metrics have to know where crowds are.
    A truth has `labels` (n,), `boxes` (n, 4) xyxy, `area` (n,), `iscrowd` (n,), and `orig_size` (2,) height and width.
    """

    def __init__(self, processor: Any):
        super().__init__(processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        sizes = [label["orig_size"] for label in batch["labels"]]
        return {**batch, "truths": [_truth_of_row(row, size) for row, size in zip(rows, sizes, strict=True)]}


def _truth_of_row(row: Mapping[str, Any], size: torch.Tensor) -> Boxes:
    objects = annotations_of(row)["annotations"]
    boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float64).view(-1, 4)
    return {
        "labels": torch.tensor([each["category_id"] for each in objects], dtype=torch.long),
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "area": torch.tensor([each["area"] for each in objects], dtype=torch.float64),
        "iscrowd": torch.tensor([each["iscrowd"] for each in objects], dtype=torch.long),
        "orig_size": size,
    }


def truth_of_label(label: Mapping[str, torch.Tensor]) -> Boxes:
    """A truth of what the processor makes for a model to learn from, which has no crowds.

    Args:
        label: `class_labels` (n,), `boxes` (n, 4) cxcywh in fractions of the visible picture, `orig_size` (2,); and,
            where the area of an object is not that of its box, `area` (n,) in pixels of a picture of `size` (2,).
    """
    label = {name: values.detach().cpu() for name, values in label.items()}
    height, width = label["orig_size"].tolist()
    truth = {
        "labels": label["class_labels"],
        "boxes": xyxy_in_pixels(label["boxes"].double()[None], [(height, width)])[0],
        "orig_size": label["orig_size"],
    }
    if "area" in label and "size" in label:
        scale = height * width / int(label["size"].prod())
        truth["area"] = (label["area"].double() * scale).round(decimals=2)  # float32 would miss 32² pixels by a little
    return truth


# From what a model says to what counts


def score_batch(
    metrics: CocoMetrics, outputs: Any, truths: Sequence[Mapping[str, torch.Tensor]], class_loss: str
) -> list[Boxes]:
    """Add the pictures of a batch to the metrics.

    Args:
        outputs: of a detector: `pred_boxes` (batch, queries, 4) cxcywh in fractions of the visible picture, and
            `scores` (batch, queries, classes) or, of transformers' DETR, `logits` with one more class for "no object".
        truths: of `EvaluationCollator`, or its `labels`, which have no crowds.
        class_loss: of the detector; see `likeliest`.

    Returns:
        Of each picture `scores` (k,), `labels` (k,) and `boxes` (k, 4), xyxy in pixels of the original picture, the
        likeliest first, on the CPU.

    Raises:
        ValueError: for another number of classes than that of the metrics.
    """
    truths = [truth if "labels" in truth else truth_of_label(truth) for truth in truths]
    sizes = torch.stack([truth["orig_size"] for truth in truths])
    of_classes = _class_scores(outputs, len(metrics.names))
    scores, labels, boxes = (values.cpu() for values in likeliest(of_classes, outputs.pred_boxes, class_loss))
    columns = zip(scores, labels, xyxy_in_pixels(boxes.float(), sizes), strict=True)
    found = [dict(zip(("scores", "labels", "boxes"), each, strict=True)) for each in columns]
    for one, truth in zip(found, truths, strict=True):
        metrics.add(one, truth)
    return found


def _class_scores(outputs: Any, classes: int) -> torch.Tensor:
    scores = getattr(outputs, "scores", None)
    if scores is None and outputs.logits.shape[-1] == classes + 1:
        return outputs.logits.float().softmax(dim=-1)[..., :-1]
    if scores is None or scores.shape[-1] != classes:
        given = f"{outputs.logits.shape[-1]} logits" if scores is None else f"{scores.shape[-1]} scores"
        raise ValueError(
            f"the detector gives {given} a query, but there are {classes} classes; it must be one of this package, or "
            f'like DETR with {classes + 1} logits, the last for "no object"'
        )
    return scores


def likeliest(
    scores: torch.Tensor, boxes: torch.Tensor, class_loss: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The detections that count: at most 100 of a picture.

    Args:
        scores: (batch, queries, classes).
        boxes: (batch, queries, 4).
        class_loss: "focal", where a query may be of several classes: the likeliest of all pairs of a query and a
            class, as Deformable DETR has it (Zhu et al. 2021). Otherwise each query is of one class, its likeliest.

    Returns:
        (batch, k) scores, the highest first; (batch, k) classes; (batch, k, 4) boxes.
    """
    queries = torch.arange(scores.shape[1], device=scores.device)
    if class_loss == "focal":
        classes = torch.arange(scores.shape[2], device=scores.device).repeat(scores.shape[1]).expand(len(scores), -1)
        queries, scores = queries.repeat_interleave(scores.shape[2]), scores.flatten(1)
    else:
        scores, classes = scores.max(dim=-1)
    scores, places = (values[:, :MOST_DETECTIONS] for values in scores.sort(dim=1, descending=True, stable=True))
    return scores, classes.gather(1, places), boxes.gather(1, queries[places, None].expand(-1, -1, 4))


def named(found: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections to be drawn, with the names of their classes: those likelier than not, and of a box only the
    likeliest class."""
    shown: dict[tuple[float, ...], dict[str, Any]] = {}
    columns = (found[name].tolist() for name in ("scores", "labels", "boxes"))
    for score, label, box in zip(*columns, strict=True):
        if score > SHOWN:
            shown.setdefault(tuple(box), {"label": names[label], "score": score, "box": tuple(box)})
    return list(shown.values())
