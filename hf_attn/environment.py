"""What must hold on this machine before transformers can be imported."""

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path


def check_torchvision() -> None:
    """Refuse a torchvision that is installed but cannot be imported, usually because it was built for another torch.

    transformers imports torchvision wherever it is installed, and when that fails reports that it could not import
    "PreTrainedModel", whatever the caller asked for. Importing is the only sure test and costs nothing extra: a
    torchvision that works is the one that transformers imports anyway.

    Raises:
        ImportError: torchvision is installed and its import fails.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImportError(
            f"torchvision {_version('torchvision')} is installed but cannot be imported beside torch "
            f"{_version('torch')} ({reason}), and with a broken torchvision transformers cannot load any model. "
            f"The two must be built for each other{_wanted_torch()}. Install a matching pair from one index with "
            f"`pip install --upgrade torch torchvision`, or do without it: `pip uninstall torchvision`."
        ) from error


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _wanted_torch() -> str:
    """The torch that the installed torchvision asks for, as a clause of the message; empty if it does not say."""
    try:
        requirements = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return ""
    wanted = [requirement for requirement in requirements if requirement.startswith("torch")]
    return f": this torchvision asks for {wanted[0]}" if wanted else ""


def started_as_command() -> bool:
    """Whether this process is `hf-attn` or `python -m hf_attn`, which import torch only when there is work for it."""
    if sys.argv[0] == "-m":  # Python is still looking for the module that it was told to run
        return "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1] == "hf_attn"
    return Path(sys.argv[0]).stem == "hf-attn"
