"""Single files of weights without a configuration beside them: names and sizes tell what they are."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hf_attn.interchange.loading import Kind, Opened, said_of
from hf_attn.interchange.pickles import read_pickled_weights


@dataclass(frozen=True, kw_only=True)
class FileFormat(Kind):
    """A kind of file that one of our models can be made of.

    Args:
        name: for `hf-attn import --format`.
        recognise: whether tensors of such names are one.
        configure: makes our configuration of names and sizes; raises a ValueError for what our model cannot express.
        read: reads such a file, if `read_file` does not, or not all that `configure` must know.
    """

    name: str
    recognise: Callable[[Mapping[str, torch.Tensor]], bool]
    configure: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]
    read: Callable[[Path], Mapping[str, torch.Tensor]] | None = None


def open_file(path: Path, format: FileFormat) -> Opened:
    """Read a file as what it was taken for, see `read_file`."""
    tensors = (format.read or read_file)(path)
    with said_of(path, format):
        fields = format.configure(tensors)
        taken = format.table(format.config_class(**fields), tensors).take(tensors)
    return Opened(str(path), format, fields, taken)


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .npz or pickled file (.pth, .pt, .bin) by name.

    Pickled files are read by torch's `weights_only=True`: tensors, and no object that could run code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind, or holds more than arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the name")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    if path.suffix == ".npz":
        return _read_arrays(path)
    return read_pickled_weights(path)


def _read_arrays(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than arrays ({error}); copy or download it again"
        ) from error
