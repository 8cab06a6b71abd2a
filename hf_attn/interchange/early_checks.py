"""What can be known to be wrong before torch is imported, which takes seconds."""

from collections.abc import Iterable
from pathlib import Path

FORMATS = ("detr-dc5-original", "detr-original", "fairseq", "vit-jax", "vit-timm", "vit-torchvision")
TARGETS = ("ctranslate2", "onnx", "openvino", "timm", "transformers")


def check_known(option: str, value: str | None, known: Iterable[str]) -> None:
    """Raise a ValueError for a value that is not known; None is none."""
    if value is not None and value not in known:
        raise ValueError(f"{option} {value!r} is unknown; use {', '.join(sorted(known))}")


def check_new_directory(directory: Path) -> None:
    """Raise a FileExistsError if there is something in it, or it is none."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is there already; give a directory that is not")


def check_place(source: str | Path, format: str | None, revision: str | None) -> None:
    """Raise a ValueError for an option that says nothing of such a source."""
    path = Path(source)
    if format is not None and not path.is_file():
        what = "a directory" if path.is_dir() else "no file"
        raise ValueError(
            f"--format is for a file of weights, and {source} is {what}; leave it out, for config.json tells, or name "
            "the file"
        )
    if revision is not None and path.exists():
        raise ValueError(f"--revision is for models on the Hub, and {source} is on this disk; leave it out")
