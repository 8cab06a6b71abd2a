"""What the commands of all models share: their options, and opening a model."""

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_attn.environment import check_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def option(help: str, *names: str, panel: str = "Options", **checks: Any) -> Any:
    """An option of a command, under the heading `panel` of its --help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **checks)


Precision = Literal["auto", "bf16", "fp32"]
Split = Literal["test", "validation", "train", "all"]

BF16: dict[Precision, bool | str] = {"auto": "auto", "bf16": True, "fp32": False}

Seed = Annotated[int, option("Of everything random, the cutting of held-out data too.")]
Quiet = Annotated[bool, option("Show no progress.", "--quiet", "-q")]
Debug = Annotated[bool, option("Show where an error came from.", "--debug")]
Format = Annotated[
    str,
    option("Number format: fp32, bf16 where the processor multiplies it faster; translators: int8.", "--precision"),
]
Device = Annotated[str | None, option("cpu, cuda, cuda:1, mps, ...", show_default="an accelerator if there is one")]
AsJson = Annotated[bool, option("Write the scores as JSON.", "--json")]

# Of every training
Output = Annotated[Path, option("Directory for the model and its checkpoints.", "--output", "-o")]
Resume = Annotated[bool, option("Go on from what is in --output.", "--resume")]
License = Annotated[str | None, option("Licence of the model, for its card: apache-2.0, ...")]
DataLicense = Annotated[str | None, option("Licence of the data, in words, for the card.")]
Steps = Annotated[int | None, option("Stop after so many optimizer steps.", panel="When to stop", min=1)]
Epochs = Annotated[float | None, option("Stop after so many passes over the data.", panel="When to stop")]
Minutes = Annotated[float | None, option("Stop after so many minutes.", panel="When to stop")]
EarlyStopping = Annotated[
    int | None, option("Stop after so many validations without progress.", panel="When to stop", min=1)
]
LearningRate = Annotated[float | None, option("The highest, at the end of the warm-up.", panel="Training")]
WarmupSteps = Annotated[int | None, option("Steps of the warm-up.", panel="Training", min=1)]
Accumulate = Annotated[int, option("Batches to an optimizer step.", panel="Training", min=1)]
EvaluateEvery = Annotated[int, option("Steps between validations and checkpoints.", panel="Training", min=1)]
AverageLast = Annotated[int, option("Checkpoints to average at the end.", panel="Training", min=1)]
MovingAverage = Annotated[float | None, option("Decay of a moving average of the weights.", "--ema", panel="Training")]
WhichPrecision = Annotated[Precision, option("auto: bf16 where it is faster.", "--precision", panel="Training")]


def check_stop(steps: int | None, epochs: float | None, minutes: float | None) -> None:
    """Refuse a training that would never end."""
    if not (steps or epochs or minutes):
        raise typer.BadParameter("say when to stop: --steps, --epochs or --minutes")


def prepare(model: Any, precision: str) -> None:
    """Prepare a model for inference, if it is of this package.

    Raises:
        ValueError: for a number format that it does not have.
    """
    import torch

    formats = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}
    if precision not in formats:
        raise ValueError(f"--precision is {precision!r}; use {', '.join(formats)}")
    if hasattr(model, "prepare_for_inference"):
        model.prepare_for_inference(formats[precision])
    elif precision != "fp32":
        raise ValueError(
            f"--precision {precision} is for models of this package, not for {type(model).__name__}; leave it out"
        )


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


# --- the fields of a configuration -----------------------------------------------------------------------------------


def fields_and_values(assignments: list[str] | None) -> dict[str, Any]:
    """`["hidden_size=64", "pooling=mean"]` → {"hidden_size": 64, "pooling": "mean"}; what is not JSON is text."""
    return dict(_field_and_value(assignment) for assignment in assignments or [])


def _field_and_value(assignment: str) -> tuple[str, Any]:
    name, equals, value = assignment.partition("=")
    if not equals:
        raise typer.BadParameter(f"--config {assignment} has no '='; write it as hidden_size=64")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def check_fields(
    fields: dict[str, Any], config_class: "type[PreTrainedConfig]", decided_elsewhere: Set[str] = frozenset()
) -> None:
    """Refuse names that a configuration would keep but never read, and those that follow from the data."""
    known = {name for name in get_annotations(config_class).keys() - decided_elsewhere if not name.startswith("_")}
    for name in fields:
        if name not in known:
            raise ValueError(f"--config cannot set {name}, but {', '.join(sorted(known))}")


# --- opening a model -------------------------------------------------------------------------------------------------


def prepare_transformers() -> None:
    """What `import hf_attn` does elsewhere, and no progress bars but ours."""
    check_torchvision()
    import datasets
    import transformers

    from hf_attn.registration import register_all

    register_all()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def read_config(model: str, trained_by: str) -> "PreTrainedConfig":
    """The configuration of a model directory or a name on the Hub.

    Raises:
        ValueError: if there is no such model; `trained_by` names the command that makes one.
    """
    from transformers import AutoConfig

    path = Path(model)
    if path.is_file():
        raise ValueError(
            f"{model} is a file; give the directory of a model, which `hf-attn import` makes of a file of weights"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{model} holds no model (no config.json); give what `{trained_by}` wrote")
    try:
        return AutoConfig.from_pretrained(model)
    except OSError as error:
        if path.is_dir():
            raise
        raise ValueError(f"{model}: no such directory, and no such model that the Hub would give") from error


def check_file(model: str, names: tuple[str, ...], what: str) -> None:
    """Refuse a model directory that has none of these files."""
    path = Path(model)
    if path.is_dir() and not any((path / name).is_file() for name in names):
        raise ValueError(f"{model} has no {what} (no {names[0]}); copy it from where the model was trained")


@contextmanager
def readable_weights(model: str) -> Iterator[None]:
    """Say which model it is whose weights are damaged."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{model}: the weights cannot be read ({error}); copy them again, or train again") from error
