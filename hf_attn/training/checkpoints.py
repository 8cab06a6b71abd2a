"""Checkpoints on disk: complete or not there at all, the last few kept, several averaged into one model.

A directory `checkpoint-<step>` is always whole. It is written under another name, forced to the disk and then renamed,
so a kill at any moment leaves either the old state or the new one.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import logging

_COMPLETE = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-"  # hidden, and no "checkpoint-*", so that nobody takes it for one
_OFF_SCHEDULE = "off_schedule"  # marks a checkpoint that a run which nobody stopped would not have
_WEIGHTS = "model.safetensors"


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step in the name of a checkpoint directory."""
    match = _COMPLETE.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is no checkpoint; its name must be checkpoint-<step>")
    return int(match.group(1))


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints in a directory, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _COMPLETE.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars that transformers and datasets draw for each of their own steps: a run has a bar of its own."""
    models, data = logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if models:
            logging.enable_progress_bar()
        if not data:
            datasets.enable_progress_bars()


@contextmanager
def whole_directory(
    directory: Path, is_writer: bool = True, wait_for_everyone: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A temporary directory beside `directory` to write to, which takes its name once all is written and on the disk.

    An error inside leaves `directory` as it was.

    Args:
        is_writer: whether this process is the one that creates and renames, where several write together.
        wait_for_everyone: returns once each of several processes has called it.
    """
    temporary = directory.parent / f"{_UNFINISHED}{directory.name}"
    if is_writer:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait_for_everyone()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    wait_for_everyone()
    if is_writer:
        for path in (*temporary.rglob("*"), temporary):
            _to_disk(path)
        remove_directory(directory)
        temporary.rename(directory)
        _to_disk(directory.parent)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A temporary file beside `file` to write to, which replaces it once all is written."""
    temporary = file.parent / f"{_UNFINISHED}{file.name}"
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def remove_directory(directory: Path) -> None:
    """Delete a directory, if it is there, so that a kill in between does not leave half of it under its name."""
    if not directory.exists():
        return
    condemned = directory.parent / f"{_UNFINISHED}old-{directory.name}"
    shutil.rmtree(condemned, ignore_errors=True)
    directory.rename(condemned)
    shutil.rmtree(condemned)


def remove_unfinished(output_dir: Path) -> list[Path]:
    """Delete what a killed run left half-written in a directory, and say what it was."""
    unfinished = sorted(output_dir.glob(f"{_UNFINISHED}*")) if output_dir.is_dir() else []
    for path in unfinished:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return unfinished


def mark_off_schedule(checkpoint: Path) -> None:
    """Say of a checkpoint that it was written because somebody stopped the run; the next one takes its place."""
    (checkpoint / _OFF_SCHEDULE).touch()


def keep_last(output_dir: Path, number: int, protected: str | Path | None = None) -> None:
    """Delete all checkpoints but the last `number` and a protected one, and those off schedule but the last."""
    *older, last = complete_checkpoints(output_dir)
    scheduled = [checkpoint for checkpoint in older if not (checkpoint / _OFF_SCHEDULE).exists()]
    kept = [*scheduled, last][-number:]
    for checkpoint in older:
        if checkpoint not in kept and (protected is None or checkpoint != Path(protected)):
            remove_directory(checkpoint)


def move_files(source: Path, target: Path) -> None:
    """Move the files of one directory into another on the same disk, each replacing its namesake at once."""
    for path in sorted(source.iterdir()):
        os.replace(path, target / path.name)


def average_checkpoints(directories: Sequence[str | Path], output: str | Path, model_class: Any) -> Path:
    """Write a model whose weights are the mean of those of several saved models, for `from_pretrained`.

    The sum is formed in float64 and rounded once to each weight's own type. Tied weights stay tied; counters and other
    whole numbers are taken from the last model. Vaswani et al. 2017, section 6.1, average the last 5 or 20.

    Args:
        directories: of models of one shape, saved with `save_pretrained` or by a Trainer; one is enough.
        output: the directory to write; one that exists is replaced.
        model_class: the models' class, or an Auto class that finds it.

    Raises:
        ValueError: if there is no directory, or two models differ in the names or shapes of their weights.
        FileNotFoundError: if a directory has no `model.safetensors`.
    """
    paths = [Path(directory) for directory in directories]
    weights = _mean_weights(paths)
    with no_progress_bars():
        model = model_class.from_pretrained(paths[-1])
    _check_same_weights(paths[-1], set(weights), "the model", set(_stored_weights(model)))
    return save_with_weights(model, weights, Path(output))


def save_with_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor], output: Path) -> Path:
    """Save a model with other weights (by name, tied ones once) than it has; its own stay as they are."""
    state = model.state_dict()
    tied = model.all_tied_weights_keys
    for name in state:
        source = tied.get(name, name)
        if source in weights:
            state[name] = weights[source]
    with whole_directory(output) as temporary, no_progress_bars():
        model.save_pretrained(temporary, state_dict=state)
    return output


def _stored_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by the names under which they are saved: tied ones once."""
    return {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}


def _mean_weights(directories: Sequence[Path]) -> dict[str, torch.Tensor]:
    if not directories:
        raise ValueError("0 checkpoints to average; give at least one, or train for longer than one saving interval")
    total: dict[str, torch.Tensor] = {}
    for directory in directories:
        weights = _load_weights(directory)
        if total:
            _check_same_weights(directory, set(weights), str(directories[0]), set(total))
        for name, value in weights.items():
            if not value.is_floating_point():
                total[name] = value
            elif name not in total:
                total[name] = value.double()
            else:
                _check_same_shape(name, directory, value, directories[0], total[name])
                total[name] += value
    last = weights
    return {
        name: (value / len(directories)).to(last[name].dtype) if value.is_floating_point() else value
        for name, value in total.items()
    }


def _load_weights(directory: Path) -> dict[str, torch.Tensor]:
    file = directory / _WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give directories of models saved in one safetensors file")
    return load_file(file)


def _check_same_weights(directory: Path, names: set[str], other: str, expected: set[str]) -> None:
    if names != expected:
        different = sorted(names ^ expected)[0]
        raise ValueError(
            f"{directory} and {other} do not both have the weight {different}; average models of one shape"
        )


def _check_same_shape(name: str, directory: Path, value: torch.Tensor, other: Path, expected: torch.Tensor) -> None:
    if value.shape != expected.shape:
        raise ValueError(
            f"{name} is {tuple(value.shape)} in {directory} but {tuple(expected.shape)} in {other}; "
            "average models of one shape"
        )


def _to_disk(path: Path) -> None:
    """Wait until a file's data, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
