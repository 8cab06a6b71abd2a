"""What measuring a saved model needs, whatever the model: the model itself, and a sample of the held-out data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import DataLoader

from hf_attn.training.callbacks import ProgressEvent, ProgressListener
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


def check_held_out(data: datasets.DatasetDict, split: str, pictures: int | None) -> None:
    """Raise a ValueError unless there are pictures in this split, and so many of them are at least one."""
    if split not in data or not len(data[split]):
        raise ValueError(f"the data have no {split} split with pictures in it, only {', '.join(data) or 'nothing'}")
    if pictures is not None and pictures < 1:
        raise ValueError(f"{pictures} pictures are nothing to evaluate on; give 1 or more")


def evenly_spread(split: datasets.Dataset, number: int | None) -> datasets.Dataset:
    """So many rows, at equal distances, or all."""
    return split.select(spread_rows(len(split), number))


def spread_rows(total: int, number: int | None) -> list[int]:
    """So many of `total` rows, at equal distances, or all."""
    number = min(number or total, total)
    return [index * total // number for index in range(number)]


def told(batches: DataLoader, total: int, progress: ProgressListener | None) -> Iterator[dict[str, Any]]:
    """Batches with `labels`, saying after each how many of `total` pictures are done."""
    tell = progress or (lambda event: None)
    done = 0
    tell(ProgressEvent("test", done, total, "pictures"))
    for batch in batches:
        yield batch
        done += len(batch["labels"])
        tell(ProgressEvent("test", done, total, "pictures"))
