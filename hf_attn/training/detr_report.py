"""What a training run of a detector leaves to be read: curves, sample pictures and model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.ticker import EngFormatter

from hf_attn.drawing import draw_detections
from hf_attn.training.detection_rows import class_names, objects_to_find
from hf_attn.training.detr_evaluation import DetrEvaluation
from hf_attn.training.report import draw_panels, save_card, series
from hf_attn.training.vit_report import cell_text, in_percent, percent

TEMPLATE = Path(__file__).with_name("detr_card.jinja")
TERMS = {"loss_ce": "class", "loss_bbox": "box, L1", "loss_giou": "box, GIoU"}
SCORES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_100": "AR 100",
}


def plot_detr_curve(log_history: Sequence[Mapping[str, float]], output: str | Path) -> Path:
    """Draw the loss, its terms of the last layer, and the validation scores where they were measured, over the steps.

    Args:
        log_history: of a trainer's state, with `step` and any of `loss`, `eval_loss`, the names of `TERMS`, `eval_ap`,
            `eval_ap50` and `eval_ap75`.
        output: the PNG file to write.

    Raises:
        ValueError: if there is nothing to draw.
    """
    losses = {
        "training, on changed pictures": series(log_history, "loss"),
        "validation": series(log_history, "eval_loss"),
    }
    terms = {label: series(log_history, name) for name, label in TERMS.items()}
    scores = {SCORES[name]: in_percent(series(log_history, f"eval_{name}")) for name in ("ap50", "ap", "ap75")}
    panels = [
        (label, curves)
        for label, curves in (("loss, all layers", losses), ("last layer", terms), ("validation (%)", scores))
        if any(steps for steps, _ in curves.values())
    ]
    pictures, _ = max(zip(*reversed(series(log_history, "pictures")), strict=True), default=(0, 0))
    seen = f" ({EngFormatter(places=1)(pictures)} pictures in all)" if pictures else ""
    return draw_panels(panels, "optimizer step" + seen, output)


def draw_sample(evaluation: DetrEvaluation, split: datasets.Dataset, output: str | Path) -> Path:
    """Draw the sample pictures of an evaluation, with what was found and, dashed, what is there."""
    names = class_names(split)
    rows = [split[sample.row] for sample in evaluation.samples]
    pictures = [row["image"] for row in rows]
    found = [sample.detections for sample in evaluation.samples]
    truths = [objects_to_find(row["objects"], names) for row in rows]
    draw_detections(pictures, found, output, truths=truths, names=evaluation.names)
    return Path(output)


def write_detr_card(
    output_dir: str | Path,
    *,
    model_name: str,
    config: Mapping[str, Any],
    parameters: int,
    recipe: Mapping[str, str],
    settings: Mapping[str, Any],
    pictures: Mapping[str, int],
    training_boxes: Mapping[str, int],
    data_name: str,
    data_license: str | None,
    scores: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Any],
    license: str | None = None,
) -> Path:
    """Write README.md, the model card, in Hugging Face's format.

    Args:
        config: the shape of the model.
        recipe: `preset` and `source`; where the model goes on from another, that one's name, `goes_on_from`, and if it
            is on the Hub its id, `base_model`; where only its backbone had learned, that one's, `trained_backbone`.
        settings: of the run.
        pictures: how many each split has.
        training_boxes: how many of each class were trained on, by name.
        data_name: what the data are, in a few words.
        data_license: of the data.
        scores: for each split measured, the metrics of a `DetrEvaluation`.
        training: `steps`, `pictures`, `minutes`, `pictures_per_second`, `precision`, `hardware` and `stopped`.
        license: an SPDX identifier as the Hub writes it; without one, none is claimed.
    """
    card_data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["hf_attn", "object-detection", "vision"],
        metrics=["mean_average_precision"] if scores else [],
        base_model=recipe.get("base_model"),
        model_name=model_name,
        eval_results=eval_results(scores, data_name) or None,
    )
    split, first = next(iter(scores.items()), (None, {}))
    return save_card(
        output_dir,
        card_data,
        TEMPLATE,
        model_name=model_name,
        license=license,
        parameters=EngFormatter(places=1, sep=" ")(parameters),
        config=config,
        recipe=recipe,
        classes=len(training_boxes),
        data_description=data_name,
        data_license=data_license,
        pictures={name: f"{number:,}" for name, number in pictures.items()},
        columns=list(SCORES.values()),
        scores=[(name, f"{values['pictures']:,}", _formatted(values)) for name, values in scores.items()],
        split=split,
        classes_measured=_class_rows(first, training_boxes),
        settings={name: value for name, value in settings.items() if value is not None},
        steps=f"{training['steps']:,}",
        pictures_seen=f"{training['pictures']:,}",
        minutes=f"{training['minutes']:.1f}",
        pictures_per_second=f"{training['pictures_per_second']:,.0f}",
        precision=training["precision"],
        hardware=training["hardware"],
        stopped=training["stopped"],
    )


def eval_results(scores: Mapping[str, Mapping[str, Any]], data_name: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type="custom",
            dataset_name=data_name,
            dataset_split=split,
            metric_type="mean_average_precision",
            metric_name=SCORES[name],
            metric_value=round(values[name], 4),
        )
        for split, values in scores.items()
        for name in ("ap", "ap50", "ap75")
        if values.get(name) is not None
    ]


def _formatted(values: Mapping[str, Any]) -> list[str]:
    return [percent(values[name]) for name in SCORES]


def _class_rows(values: Mapping[str, Any], training_boxes: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    """Name, number of training boxes, AP and AP50 of each class."""
    by_class, by_class50 = values.get("class_ap", {}), values.get("class_ap50", {})
    return [
        (cell_text(name), f"{training_boxes[name]:,}", percent(share), percent(by_class50.get(name)))
        for name, share in by_class.items()
    ]
