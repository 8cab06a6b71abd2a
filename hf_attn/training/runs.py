"""What every training call for picture models does before and after training."""

import json
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from hf_attn.training.checkpoints import move_files, whole_directory, whole_file

NO_END = 1_000_000_000  # steps, where only the time limits a run
FEWEST_STEPS_BETWEEN_CHECKPOINTS = 100
PROCESSOR_FILE = "preprocessor_config.json"


def steps_an_epoch(pictures: int, run: Any) -> int:
    return ceil(ceil(pictures / run.batch_size) / run.gradient_accumulation_steps)


def last_step(pictures: int, run: Any) -> int:
    """The optimizer step after which training ends, if time does not end it before."""
    epochs = ceil(run.num_train_epochs * steps_an_epoch(pictures, run)) if run.num_train_epochs else NO_END
    last = min(run.max_steps or NO_END, epochs)
    if run.warmup_steps >= max(1, last):
        raise ValueError(
            f"warmup_steps {run.warmup_steps:,} is not below the {last:,} steps of the run; give fewer, or a share of "
            "the run such as 0.05"
        )
    return last


def steps_between_evaluations(pictures: int, run: Any, last: int) -> int:
    """`eval_steps`, or once an epoch, but not more often than every 100 steps."""
    return run.eval_steps or min(max(steps_an_epoch(pictures, run), FEWEST_STEPS_BETWEEN_CHECKPOINTS), last)


def began_with(output_dir: Path, given: Any, processor_class: Any, resume: bool) -> Any | None:
    """The image processor that a resumed run began with; None for a new run.

    Raises:
        ValueError: if another is given.
    """
    if not (resume and (output_dir / PROCESSOR_FILE).is_file()):
        return None
    saved = processor_class.from_pretrained(output_dir)
    if given is not None and given.to_dict() != saved.to_dict():
        raise ValueError(
            f"the run in {output_dir} began with another image processor; resume without one, or choose another "
            "directory"
        )
    return saved


def save_processor(processor: BaseImageProcessor, output_dir: Path) -> None:
    with whole_directory(output_dir / ".processor") as temporary:
        processor.save_pretrained(temporary)
    move_files(output_dir / ".processor", output_dir)
    (output_dir / ".processor").rmdir()


def save_model(trainer: Any, output_dir: Path) -> None:
    """The finished model, into the directory of the run."""
    final = trainer.save_final_model(output_dir / ".model")
    move_files(final, output_dir)
    final.rmdir()


def write_metrics(metrics: dict[str, Any], output_dir: Path) -> None:
    with whole_file(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def final_scores(data: datasets.DatasetDict, evaluate: Callable[[str], Any]) -> dict[str, Any]:
    """What `evaluate(split)` says of the test split; where there is none, of the validation split."""
    for split in ("test", "validation"):
        if split in data and len(data[split]):
            return {split: evaluate(split)}
    return {}


def shape(config: PreTrainedConfig, usual: PreTrainedConfig, names: list[str]) -> dict[str, Any]:
    """The fields that say what the model looks like, those that differ from the usual ones among them."""
    fields = type(config).__annotations__
    differing = [name for name in fields if not name.startswith("_") and getattr(config, name) != getattr(usual, name)]
    return {name: getattr(config, name) for name in dict.fromkeys([*names, *differing])}


def recipe(run: Any, source: str) -> dict[str, str]:
    """The preset and, where the model goes on from another, its name; on the Hub its id too."""
    chosen = {"preset": run.preset, "source": source}
    if run.base_model is None:
        return chosen
    directory = Path(run.base_model)
    if directory.is_dir():  # whose place on this disk is nobody's business
        return {**chosen, "goes_on_from": directory.absolute().name}
    return {**chosen, "goes_on_from": run.base_model, "base_model": run.base_model}
