"""What a training run leaves to be read: its learning curve as a picture and its model card."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hf_attn.training.checkpoints import whole_file
from hf_attn.visualization import write_png

TEMPLATE = Path(__file__).with_name("translator_card.jinja")
Curve = tuple[list[float], list[float]]  # steps and values


def plot_learning_curve(log_history: Sequence[Mapping[str, float]], output: str | Path) -> Path:
    """Draw the losses, and BLEU and chrF where they were measured, over the optimizer steps.

    Args:
        log_history: of a trainer's state, with `step` and any of `loss`, `eval_loss`, `eval_bleu` and `eval_chrf`.
        output: the PNG file to write.

    Raises:
        ValueError: if there is nothing to draw.
    """
    losses = {
        "training, label-smoothed": series(log_history, "loss"),
        "validation": series(log_history, "eval_loss"),
    }
    scores = {"BLEU": series(log_history, "eval_bleu"), "chrF": series(log_history, "eval_chrf")}
    panels = [
        (label, curves)
        for label, curves in (("loss (nats per token)", losses), ("validation score", scores))
        if any(steps for steps, _ in curves.values())
    ]
    return draw_panels(panels, "optimizer step" + _tokens_seen(log_history), output)


def draw_panels(panels: Sequence[tuple[str, Mapping[str, Curve]]], x_label: str, output: str | Path) -> Path:
    """Draw curves into a PNG file, one panel above the other.

    Args:
        panels: the label of the vertical axis, and curves by name.
        output: the PNG file to write.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not panels:
        raise ValueError("the log has neither losses nor scores to draw; was anything logged or evaluated?")
    figure = Figure(figsize=(7, 3.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves) in zip(axes, panels, strict=True):
        _draw(axis, label, curves)
        if "%" in label:
            axis.set_ylim(top=min(101.0, axis.get_ylim()[1]))
    axes[-1].set_xlabel(x_label)
    write_png(figure, output, tight=False)
    return Path(output)


def series(log_history: Sequence[Mapping[str, float]], name: str) -> Curve:
    """The values of a name in a trainer's log, with their steps."""
    entries = [entry for entry in log_history if name in entry]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]


def _draw(axis: Axes, label: str, curves: Mapping[str, Curve]) -> None:
    for name, (steps, values) in curves.items():
        if steps:
            marker = "o" if len(steps) <= 40 else None
            axis.plot(steps, values, marker=marker, markersize=3, label=f"{name}: {values[-1]:.3g} at the end")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _tokens_seen(log_history: Sequence[Mapping[str, float]]) -> str:
    seen = [entry["target_tokens"] for entry in log_history if "target_tokens" in entry]
    return f" ({EngFormatter(places=1)(seen[-1])} target tokens in all)" if seen else ""


def training_facts(trainer: Any) -> dict[str, Any]:
    """What a run did, of a trainer with `ResumableTraining`: `steps`, what it learned from (`pictures`,
    `pictures_per_second`, or another unit), `minutes`, `precision`, `hardware`, and why it `stopped`."""
    throughput, state = trainer.throughput, trainer.state
    stopped = "all steps taken"
    if state.global_step < state.max_steps:
        in_time = trainer.time_limit is None or not trainer.time_limit.is_over()
        stopped = "stopped when validation did not get better" if in_time else "stopped when the time was up"
    return {
        "steps": state.global_step,
        **throughput.total(),
        "minutes": throughput.seconds / 60,
        f"{throughput.unit}_per_second": throughput.count / throughput.seconds,
        "precision": trainer.args.precision,
        "hardware": hardware(),
        "stopped": stopped,
    }


def hardware() -> str:
    """The processor or graphics card that computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads ({_processor_name()})"


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def write_translator_card(
    output_dir: str | Path,
    *,
    source_language: str,
    target_language: str,
    model_name: str,
    config: Mapping[str, Any],
    parameters: int,
    sentence_pairs: Mapping[str, int],
    data_name: str,
    data_license: str | None,
    snippet: str,
    examples: Sequence[Mapping[str, str]],
    settings: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Any],
    license: str | None = None,
) -> Path:
    """Write README.md, the model card, in Hugging Face's format.

    Args:
        source_language, target_language: ISO codes.
        config: the shape of the model.
        sentence_pairs: how many each split has.
        data_name: what the data are, in a few words.
        data_license: of the data.
        snippet: a source sentence for the lines that show how to use the model.
        examples: `source`, `reference` and `translation` of held-out sentences.
        settings: of the run.
        scores: for each split measured, the metrics of a `TranslatorEvaluation`.
        training: `steps`, `target_tokens`, `minutes`, `target_tokens_per_second`, `precision`, `hardware` and
            `stopped`.
        license: an SPDX identifier as the Hub writes it; without one, none is claimed.
    """
    card_data = ModelCardData(
        language=[source_language, target_language],
        license=license,
        library_name="transformers",
        pipeline_tag="translation",
        tags=["hf_attn", "translation"],
        metrics=["bleu", "chrf"],
        model_name=model_name,
        eval_results=eval_results(scores, data_name) or None,
    )
    first = next(iter(scores.values()), {})
    return save_card(
        output_dir,
        card_data,
        TEMPLATE,
        model_name=model_name,
        source_language=source_language,
        target_language=target_language,
        license=license,
        config=config,
        parameters=EngFormatter(places=1, sep=" ")(parameters),
        snippet=repr(snippet),
        examples=[{name: " ".join(text.split()) for name, text in example.items()} for example in examples],
        scores=[_score_row(split, values) for split, values in scores.items()],
        num_beams=first.get("num_beams"),
        gnmt_alpha=first.get("gnmt_alpha"),
        bleu_signature=first.get("bleu_signature"),
        chrf_signature=first.get("chrf_signature"),
        data_description=data_name,
        data_license=data_license,
        sentence_pairs={split: f"{pairs:,}" for split, pairs in sentence_pairs.items()},
        settings={name: value for name, value in settings.items() if value is not None},
        steps=f"{training['steps']:,}",
        target_tokens=f"{training['target_tokens']:,}",
        minutes=f"{training['minutes']:.1f}",
        tokens_per_second=f"{training['target_tokens_per_second']:,.0f}",
        precision=training["precision"],
        hardware=training["hardware"],
        stopped=training["stopped"],
    )


def save_card(output_dir: str | Path, card_data: ModelCardData, template: Path, **facts: Any) -> Path:
    """Fill in a template and write it as README.md, whole or not at all."""
    card = ModelCard.from_template(card_data, template_path=str(template), **facts)
    path = Path(output_dir) / "README.md"
    with whole_file(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
    return path


def eval_results(scores: Mapping[str, Mapping[str, Any]], data_name: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="translation",
            dataset_type="custom",
            dataset_name=data_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=round(values[metric], 2),
            metric_args={"signature": values[f"{metric}_signature"]},
        )
        for split, values in scores.items()
        for metric, name in (("bleu", "BLEU"), ("chrf", "chrF"))
    ]


def _score_row(split: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {
        "split": split,
        "sentences": f"{values['sentences']:,}",
        "bleu": f"{values['bleu']:.1f}",
        "chrf": f"{values['chrf']:.1f}",
        "loss": f"{values['loss']:.3f}",
    }
