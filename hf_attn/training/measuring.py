"""What measuring a saved model needs, whatever the model: the model itself, and a sample of the held-out data."""

from pathlib import Path
from typing import Any

import datasets

from hf_attn.training.checkpoints import no_progress_bars


def load_saved(model: str | Path, loaders: tuple[Any, Any], missing: dict[str, str], maker: str) -> tuple[Any, Any]:
    """A model and what prepares its input, from a directory or from the Hub.

    Args:
        loaders: the automatic classes of the two.
        missing: what a directory without a file is: {"config.json": "no translator", ...}.
        maker: the function that makes such directories.

    Raises:
        FileNotFoundError: if there is no such model, or a part of it is missing.
    """
    directory = Path(model)
    for name, what in missing.items():
        if directory.is_dir() and not (directory / name).is_file():
            raise FileNotFoundError(f"{model} is {what}: it has no {name}; give a directory that {maker} has finished")
    try:
        with no_progress_bars():
            return loaders[0].from_pretrained(model), loaders[1].from_pretrained(model)
    except OSError as error:
        if directory.is_dir():
            raise
        raise FileNotFoundError(
            f"there is no directory {model}, and no such model could be had from the Hub; check the name"
        ) from error


def evenly_spread(split: datasets.Dataset, number: int | None) -> datasets.Dataset:
    """So many rows, at equal distances, or all."""
    number = min(number or len(split), len(split))
    return split.select([index * len(split) // number for index in range(number)])
