"""Pickled weights, which can run code when they are read, become safetensors."""

import json
import pickle
import re
from argparse import Namespace  # attributes and nothing else: a training script's arguments
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hf_attn.training.checkpoints import whole_file

MODEL = ("model", "state_dict")  # where training scripts put a model's tensors


def convert_pickled_weights(directory: str | Path) -> list[Path]:
    """Write the weights of a directory once more, as safetensors; the pickled ones stay.

    torch reads them with `weights_only=True`: tensors and containers, and no object that could run code.

    Args:
        directory: with `pytorch_model.bin`, or with several such files and their index.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: if nothing pickled is there.
        FileExistsError: if there are safetensors already.
        ValueError: if a file holds anything but tensors by name, or is broken; what was written before it is removed.
    """
    directory = Path(directory)
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if (directory / name).exists():
            raise FileExistsError(f"{directory / name} is there already, and is what gets loaded")
    index = directory / WEIGHTS_INDEX_NAME
    if not index.exists():
        if not (directory / WEIGHTS_NAME).exists():
            raise FileNotFoundError(f"{directory} has neither {WEIGHTS_NAME} nor {WEIGHTS_INDEX_NAME}")
        return [_convert(directory / WEIGHTS_NAME, directory / SAFE_WEIGHTS_NAME)]
    stored = read_index(index)
    names = {name: _safe_name(name) for name in sorted(set(stored["weight_map"].values()))}
    if there := [safe for safe in names.values() if (directory / safe).exists()]:
        raise FileExistsError(f"{directory / there[0]} is there already; move it away")
    written: list[Path] = []
    try:
        for name, safe in names.items():
            written.append(_convert(directory / name, directory / safe))
        stored["weight_map"] = {weight: names[name] for weight, name in stored["weight_map"].items()}
        with whole_file(directory / SAFE_WEIGHTS_INDEX_NAME) as temporary:  # last: from now on these are loaded
            temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return [*written, directory / SAFE_WEIGHTS_INDEX_NAME]


def read_index(path: Path) -> dict[str, Any]:
    """What the index of several files of weights holds: under "weight_map", the file of each tensor.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(name, str) for name in stored["weight_map"].values()):
            raise ValueError("a file has no name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    return stored


def _safe_name(name: str) -> str:
    """As transformers calls the safetensors of pytorch_model-00001-of-00002.bin."""
    return Path(name.replace("pytorch_model", "model")).with_suffix(".safetensors").name


def _convert(source: Path, target: Path) -> Path:
    weights = read_pickled_weights(source)
    seen: set[int] = set()
    for name, weight in weights.items():
        weight = weight.contiguous()
        place = weight.untyped_storage().data_ptr()
        weights[name] = weight.clone() if place in seen else weight  # of tied weights, each becomes one of its own
        seen.add(place)
    with whole_file(target) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return target


class PickledWeights(dict[str, torch.Tensor]):
    """Tensors by name.

    Args:
        settings: what the script was told that trained the model; empty where the file does not say.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]):
        super().__init__(tensors)
        self.settings = dict(settings)


def settings_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Those of `PickledWeights`; none of what was read from another file."""
    return tensors.settings if isinstance(tensors, PickledWeights) else {}


def read_pickled_weights(path: Path) -> PickledWeights:
    """The tensors of a file that `torch.save` has written, mapped into memory.

    Of a training script's checkpoint, those of its model, and its settings: what else is there, as the optimizer's
    state, is left out. torch reads by `weights_only=True`, and no object that could run code.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it holds anything else, or is broken.
    """
    is_zip = _is_zip(path)
    try:
        with torch.serialization.safe_globals([Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # broken bytes can mean anything, and fail as anything
        raise ValueError(
            f"{path} holds more than tensors, or is broken ({_reason(error)}); it is not read further, for what is "
            "pickled can run code. Download it again, or get the weights as safetensors; if you trust the file, have "
            "torch read it and save {'model': ..., 'args': ...} alone"
        ) from error
    settings = _settings(found)
    for name in MODEL:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(weight, torch.Tensor) for weight in found.values()):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name (a state_dict)")
    return PickledWeights(found, settings)


def _settings(checkpoint: Any) -> Mapping[str, Any]:
    """`args` of a training script; of fairseq's, which has nothing there since 2020, `model` in `cfg`."""
    if not isinstance(checkpoint, Mapping):
        return {}
    said, configuration = checkpoint.get("args"), checkpoint.get("cfg")
    if said is None and isinstance(configuration, Mapping):
        said = configuration.get("model")
    said = vars(said) if isinstance(said, Namespace) else said
    return said if isinstance(said, Mapping) else {}


def _reason(error: Exception) -> str:
    """What torch found wrong, without its advice to read the file in a way that runs code."""
    text = str(error)
    if wanted := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it asks for {wanted[1]}"
    if isinstance(error, pickle.UnpicklingError):
        return "it is not what torch.save writes"
    return text.splitlines()[0].split(". ")[0] if text else "it ends too early"


def _is_zip(path: Path) -> bool:
    """What torch has written since version 1.6, and can map into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
