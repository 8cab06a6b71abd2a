"""What a training run of a picture classifier leaves to be read: curves, confusion matrix and model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from hf_attn.training.report import Curve, draw_panels, save_card, series
from hf_attn.training.vit_metrics import most_confused
from hf_attn.visualization import write_png

TEMPLATE = Path(__file__).with_name("vit_card.jinja")
CLASSES_WITH_NUMBERS = 25  # more do not leave room for a number in each cell of the confusion matrix
CLASSES_WITH_NAMES = 120  # more do not leave room for the names either
NAME_LENGTH = 24  # characters
CONFUSIONS_SHOWN = 5
PERCENT = {"accuracy": "top-1", "top_5_accuracy": "top-5", "mean_average_precision": "mean average precision"}


# Pictures


def plot_learning_curve(log_history: Sequence[Mapping[str, float]], output: str | Path) -> Path:
    """Draw the losses, and the validation scores where they were measured, over the optimizer steps.

    Args:
        log_history: of a trainer's state, with `step` and any of `loss`, `eval_loss`, `eval_accuracy`,
            `eval_top_5_accuracy` and `eval_mean_average_precision`.
        output: the PNG file to write.

    Raises:
        ValueError: if there is nothing to draw.
    """
    losses = {
        "training, on changed pictures": series(log_history, "loss"),
        "validation": series(log_history, "eval_loss"),
    }
    scores = {label: in_percent(series(log_history, f"eval_{name}")) for name, label in PERCENT.items()}
    panels = [
        (label, curves)
        for label, curves in (("loss (nats per picture)", losses), ("validation score (%)", scores))
        if any(steps for steps, _ in curves.values())
    ]
    pictures, _ = max(zip(*reversed(series(log_history, "pictures")), strict=True), default=(0, 0))
    seen = f" ({EngFormatter(places=1)(pictures)} pictures in all)" if pictures else ""
    return draw_panels(panels, "optimizer step" + seen, output)


def plot_confusion(confusion: NDArray[np.int64], names: Sequence[str], output: str | Path) -> Path:
    """Draw which classes are taken for which: rows are what the pictures show, columns what the model said.

    The colours are shares of a row, those of small shares spread, so that a few percent of mistakes are to be seen. Up
    to 25 classes have numbers of pictures in the cells, up to 120 have names.

    Args:
        confusion: (classes, classes) numbers of pictures.
        names: of the classes.
        output: the PNG file to write.
    """
    classes = len(names)
    pictures = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(pictures, 1)
    side = min(max(4.0, 0.5 * classes if classes <= CLASSES_WITH_NUMBERS else 0.16 * classes), 18.0)
    text = max(11.0, 0.9 * side)
    figure = Figure(figsize=(side + 3, side + 2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, vmin=0, vmax=1), interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=0.8 * text)
    bar.set_label("share of the pictures of the row", fontsize=text)
    _name_classes(axis, names, side / classes)
    if classes <= CLASSES_WITH_NUMBERS:
        _write_numbers(axis, confusion, shares)
    right = confusion.diagonal().sum() / max(1, confusion.sum())
    axis.set_title(f"{right:.1%} of {confusion.sum():,} pictures are right", fontsize=1.1 * text)
    axis.set_xlabel("the model says", fontsize=text)
    axis.set_ylabel("the picture shows", fontsize=text)
    write_png(figure, output)
    return Path(output)


def _name_classes(axis: Axes, names: Sequence[str], cell: float) -> None:
    """Write the names beside cells of so many inches, aslant below them where they would touch."""
    classes = len(names)
    every = 1 if classes <= CLASSES_WITH_NAMES else -(-classes // 20)
    size = 10 if classes <= CLASSES_WITH_NUMBERS else 7.5 if classes <= CLASSES_WITH_NAMES else 12
    places = range(0, classes, every)
    labels = [_short(names[place]) for place in places]
    widest = max(map(len, labels)) * 0.65 * size / 72  # inches, of letters about two thirds as wide as high
    turned: dict[str, Any] = {}
    if widest > cell * every:
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        turned = slanted if classes <= CLASSES_WITH_NUMBERS else {"rotation": 90}
    axis.set_xticks(places, labels, fontsize=size, parse_math=False, **turned)
    axis.set_yticks(places, labels, fontsize=size, parse_math=False)
    axis.tick_params(length=2)


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _write_numbers(axis: Axes, confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size = 8 if confusion.max() < 10_000 else 6
    for (row, column), number in np.ndenumerate(confusion):
        if number:
            colour = "white" if shares[row, column] > 0.25 else "black"
            axis.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=colour)


def in_percent(curve: Curve) -> Curve:
    steps, values = curve
    return steps, [100 * value for value in values]


# Model card


def write_vit_card(
    output_dir: str | Path,
    *,
    model_name: str,
    config: Mapping[str, Any],
    parameters: int,
    recipe: Mapping[str, str],
    settings: Mapping[str, Any],
    pictures: Mapping[str, int],
    training_pictures: Mapping[str, int],
    data_name: str,
    data_license: str | None,
    scores: Mapping[str, Mapping[str, Any]],
    confusion: NDArray[np.int64] | None,
    training: Mapping[str, Any],
    license: str | None = None,
) -> Path:
    """Write README.md, the model card, in Hugging Face's format.

    Args:
        config: the shape of the model.
        recipe: `preset` and `source`; where the model goes on from another, that one's name, `goes_on_from`, and if it
            is on the Hub its id, `base_model`.
        settings: of the run.
        pictures: how many each split has.
        training_pictures: how many of each class were trained on, by name.
        data_name: what the data are, in a few words.
        data_license: of the data.
        scores: for each split measured, the metrics of a `ViTEvaluation`.
        confusion: (classes, classes) of the first of them, in the order of `training_pictures`.
        training: `steps`, `pictures`, `minutes`, `pictures_per_second`, `precision`, `hardware` and `stopped`.
        license: an SPDX identifier as the Hub writes it; without one, none is claimed.
    """
    card_data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["hf_attn", "image-classification", "vision"],
        metrics=[name for name in PERCENT if any(name in values for values in scores.values())],
        base_model=recipe.get("base_model"),
        model_name=model_name,
        eval_results=eval_results(scores, data_name) or None,
    )
    split, first = next(iter(scores.items()), (None, {}))
    names = list(training_pictures)
    return save_card(
        output_dir,
        card_data,
        TEMPLATE,
        model_name=model_name,
        license=license,
        parameters=EngFormatter(places=1, sep=" ")(parameters),
        config=config,
        recipe=recipe,
        classes=len(names),
        data_description=data_name,
        data_license=data_license,
        pictures={name: f"{number:,}" for name, number in pictures.items()},
        columns=[name for name in (*PERCENT, "loss") if name in first],
        column_names={**PERCENT, "loss": "loss"},
        scores=[(name, f"{values['pictures']:,}", _formatted(values)) for name, values in scores.items()],
        split=split,
        interval=_interval(first),
        has_confusion=confusion is not None,
        classes_measured=_class_rows(first, training_pictures),
        class_score="accuracy" if "class_accuracy" in first else "average precision",
        confused=[] if confusion is None else _confusions(confusion, names),
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
    kinds = {
        "accuracy": ("accuracy", "Top-1 accuracy"),
        "top_5_accuracy": ("top_5_accuracy", "Top-5 accuracy"),
        "mean_average_precision": ("mean_average_precision", "Mean average precision"),
    }
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="custom",
            dataset_name=data_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(values[name], 4),
        )
        for split, values in scores.items()
        for name, (metric, title) in kinds.items()
        if values.get(name) is not None
    ]


def _formatted(values: Mapping[str, Any]) -> dict[str, str]:
    shares = {name: percent(values[name]) for name in PERCENT if name in values}
    return {**shares, "loss": f"{values['loss']:.3f}"}


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _interval(values: Mapping[str, Any]) -> str | None:
    """Where the accuracy on all such pictures lies with 95 % confidence (Wilson 1927)."""
    if "accuracy" not in values:
        return None
    share, number, z = values["accuracy"], values["pictures"], 1.96
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * (share * (1 - share) / number + z**2 / (4 * number**2)) ** 0.5 / (1 + z**2 / number)
    return f"{percent(middle - half)} to {percent(middle + half)}"


def _class_rows(values: Mapping[str, Any], training_pictures: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Name, number of training pictures and score of each class."""
    by_class = values.get("class_accuracy", values.get("class_average_precision", {}))
    return [(cell_text(name), f"{training_pictures[name]:,}", percent(share)) for name, share in by_class.items()]


def _confusions(confusion: NDArray[np.int64], names: Sequence[str]) -> list[tuple[str, str, int]]:
    return [
        (cell_text(names[label]), cell_text(names[other]), number)
        for label, other, number in most_confused(confusion, CONFUSIONS_SHOWN)
    ]


def cell_text(text: str) -> str:
    """Text that does not break a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
