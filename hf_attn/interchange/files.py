"""Single files of weights without a configuration beside them: names and sizes tell what they are."""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        configure: makes our configuration of names and sizes, with None for the number of heads where these do not
            tell it; raises a ValueError for what our model cannot express.
    """

    name: str
    recognise: Callable[[Mapping[str, torch.Tensor]], bool]
    configure: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]


def open_file(path: Path, format: FileFormat, num_attention_heads: int | None = None) -> Opened:
    """Read a file as what it was taken for, see `read_file`.

    Args:
        num_attention_heads: where that is known, for sizes seldom tell it.
    """
    tensors = read_file(path)
    with said_of(path, format), _lacking():
        fields = format.configure(tensors)
        if num_attention_heads is not None:
            fields["num_attention_heads"] = num_attention_heads
        elif "num_attention_heads" in fields and fields["num_attention_heads"] is None:
            raise ValueError(
                f"weights alone do not show the number of heads, and a width of {fields['hidden_size']} has none by "
                "rule: give it, as by --config num_attention_heads=12, or import the directory with its config.json"
            )
        taken = format.table(format.config_class(**fields), tensors).take(tensors)
    return Opened(str(path), format, fields, taken)


@contextmanager
def _lacking() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(f"it lacks {error}") from error


def read_file(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a .safetensors, .npz or pickled file (.pth, .pt, .bin) by name.

    Those of a .npz file are read when they are looked at; other files are mapped into memory. Pickled files are read
    by torch's `weights_only=True`: tensors, and no object that could run code.

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
        return Arrays(path)
    return read_pickled_weights(path)


class Arrays(Mapping[str, torch.Tensor]):
    """The arrays of a .npz file, each read when it is looked at, and not kept.

    The largest come first: one and its transposed copy are in memory together, and then little else is yet.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._opened() as arrays:
            sizes = {info.filename: info.file_size for info in arrays.zip.infolist()}
            self._names = sorted(arrays.files, key=lambda name: -sizes.get(f"{name}.npy", 0))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as arrays:
            return torch.from_numpy(arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                yield arrays
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{self.path} is damaged, or holds more than arrays ({error}); copy or download it again"
            ) from error
