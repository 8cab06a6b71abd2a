"""What the commands for pictures share: their options, reading pictures, and what they ask of a model."""

import sys
import warnings
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_attn.commands_shared import check_file, option, read_config
from hf_attn.console import complaint, lines_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Pictures = Annotated[
    list[str], typer.Argument(help="Pictures, directories of pictures, or - for paths on stdin, one a line.")
]
BatchSize = Annotated[int, option("Pictures in a batch; lower it when memory runs out.", min=1)]
SkipBad = Annotated[bool, option("Report and leave out files that are no whole pictures.", "--skip-bad")]

# Of data to train or evaluate on
ImageColumn = Annotated[str | None, option("Column of the pictures, or of their paths.", panel="Data")]
SkipBadData = Annotated[bool, option("Report and leave out pictures that cannot be read.", "--skip-bad", panel="Data")]
MaxBadShare = Annotated[float, option("Share of bad pictures to leave out.", panel="Data", min=0, max=1)]


def model_option(help: str, *names: str, **checks: Any) -> Any:
    return option(help, *names, panel="Model", **checks)


def training_option(help: str, *names: str, **checks: Any) -> Any:
    return option(help, *names, panel="Training", **checks)


def augmentation_option(help: str, *names: str, **checks: Any) -> Any:
    return option(help, *names, panel="Augmentation", **checks)


# --- pictures in -----------------------------------------------------------------------------------------------------


def picture_paths(arguments: list[str]) -> list[str]:
    """The paths that the arguments stand for; those in a directory in the order of their names.

    Raises:
        ValueError: for a directory without pictures, or nothing on stdin.
    """
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            paths += [line for line in lines_of(None) if line]
        elif Path(argument).is_dir():
            found = sorted(
                str(path)
                for path in Path(argument).rglob("*")
                if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
            )
            if not found:
                raise ValueError(f"{argument} holds no pictures ({', '.join(PICTURE_SUFFIXES)}); check the directory")
            paths += found
        else:
            paths.append(argument)
    if not paths:
        raise ValueError("no paths came on stdin; write one a line")
    return paths


def read_picture(path: str) -> "Image.Image":
    """The picture in a file, wholly decoded.

    Raises:
        ValueError: if there is none, or it is damaged or larger than Pillow allows.
    """
    from PIL import Image

    from hf_attn.training.picture_data import inspect_picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        finding = inspect_picture({"bytes": None, "path": path})
        if finding.reason:
            raise ValueError(f"{path}: {finding.reason}" + (f" ({finding.detail})" if finding.detail else ""))
        with Image.open(path) as picture:
            picture.load()
            return picture


def whole_pictures(paths: list[str], skip_bad: bool) -> Iterator[tuple[str, "Image.Image"]]:
    """Each path with its picture, wholly decoded; what is none is an error, or is reported, left out and counted.

    Raises:
        ValueError: for a file that is no whole picture, or with `skip_bad` when none is.
    """
    skipped = 0
    for path in paths:
        try:
            picture = read_picture(path)
        except (ValueError, OSError) as error:
            if not skip_bad:
                raise
            skipped += 1
            print(f"skipped {complaint(error)}", file=sys.stderr)
        else:
            yield path, picture
    if skipped == len(paths):
        raise ValueError(f"none of the {skipped:,} files is a whole picture")
    if skipped:
        print(f"skipped {skipped:,} of {len(paths):,} files, which are no whole pictures", file=sys.stderr)


# --- pictures out ----------------------------------------------------------------------------------------------------


class NewNames:
    """Gives files names after the pictures that they are of: a second `cat` becomes `cat-2`."""

    def __init__(self) -> None:
        self.given: set[str] = set()

    def of(self, path: str) -> str:
        """The name, without its ending, of what is drawn of the picture at this path."""
        stem = Path(path).stem
        numbered = (f"{stem}-{number}" for number in count(2))
        name = next(name for name in chain([stem], numbered) if name not in self.given)
        self.given.add(name)
        return name


def check_directory(path: Path) -> None:
    """Refuse a file for whose directory there is none, before any work is done for it."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}; make it, or name another")


# --- the model -------------------------------------------------------------------------------------------------------


def check_task(model: str, models: Any, head: str, task: str, part: str, trained_by: str) -> None:
    """Refuse what cannot do a task with pictures before its weights are read.

    Args:
        models: a mapping of transformers, from configurations to the classes that can.
        head: how the names of those classes end: "ForImageClassification".
        task: what they do: "classify pictures".
        part: what they have for it: "a classifier".
        trained_by: the command that makes them.
    """
    config = read_config(model, trained_by=trained_by)
    if type(config) not in models:
        raise ValueError(f"{model} is a model of type {config.model_type}, which does not {task}")
    saved_as = config.architectures or []
    if saved_as and not any(head in name for name in saved_as):
        raise ValueError(f"{model} is of class {saved_as[0]}, without {part}; train one with --from {model}")
    check_file(model, ("preprocessor_config.json",), "image processor")


def check_whole(model: str, loaded: dict[str, Any], task: str) -> None:
    """Refuse a model of which weights were missing, by what `from_pretrained` said of loading it."""
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ValueError(f"{model} was not trained to {task}: it has no {missing}; train it with --from {model}")


def usable_device(name: str | None) -> "torch.device":
    """The device of this name, by default an accelerator if there is one.

    Raises:
        ValueError: if it is not there.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {name} cannot be used ({reason}); leave it out, or name another") from error
