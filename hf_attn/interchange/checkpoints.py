"""The files of a checkpoint of transformers or timm, in a directory or on the Hub: configuration and tensors."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.safetensors_conversion import previous_pr
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from hf_attn.interchange.pickles import read_index, read_pickled_weights

BOT, BOTS_TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
# Arguments of from_pretrained that say where to look
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def read_config(source: str | os.PathLike, place: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says; None where there is no such file. An address on the Hub that is wrong raises later.

    Raises an OSError where the Hub cannot be reached, which takes long to find out, and once is enough.

    timm's name no type; transformers adds the one of its wrapper of timm, but not to those of before 2023.
    """
    try:
        found, _ = PreTrainedConfig.get_config_dict(str(source), **place)
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        return None
    if "architecture" in found:
        found.setdefault("model_type", "timm_wrapper")
    return found or None


def read_tensors(source: str | os.PathLike, place: dict[str, Any], safe: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, mapped into memory, so that only those looked at are read.

    Args:
        place: PLACE's arguments of from_pretrained.
        safe: safetensors alone; on the Hub those count, too, that its bot has made of pickled weights. False: pickled
            weights, read by `weights_only=True`, where there are no others.

    Raises:
        OSError: if there are no such weights.
        ValueError: if a file is damaged, or holds more than tensors.
    """
    paths = _paths(source, place, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    if not paths and not safe:
        paths = _paths(source, place, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    if not paths:
        paths = _made_safe(source, place)
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors |= _read(path)
    return tensors


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return read_pickled_weights(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error


def _paths(source: str | os.PathLike, place: dict[str, Any], whole: str, index: str) -> list[Path]:
    if (path := find_file(source, whole, place)) is not None:
        return [path]
    if (path := find_file(source, index, place)) is None:
        return []
    shards = sorted(set(read_index(path)["weight_map"].values()))
    found = [find_file(source, shard, place) for shard in shards]
    if missing := [shard for shard, path in zip(shards, found, strict=True) if path is None]:
        raise OSError(f"{source} lacks {len(missing)} of its {len(shards)} files of weights, {missing[0]} first")
    return [path for path in found if path is not None]


def _made_safe(source: str | os.PathLike, place: dict[str, Any]) -> list[Path]:
    """The safetensors that the Hub's own bot has made of pickled weights, and offers to the repository's owner."""
    pickled = find_file(source, WEIGHTS_NAME, place) or find_file(source, WEIGHTS_INDEX_NAME, place)
    if pickled is None:
        raise OSError(f"{source} has no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}")
    on_hub = not (Path(source).exists() or is_offline_mode() or place.get("local_files_only"))
    if on_hub and place.get("revision") in (None, "main"):
        offer = _offer(str(source), place.get("token"))
        if offer is not None:
            there = {**place, "revision": offer}
            return _paths(source, there, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    raise OSError(
        f"{source} has no weights as safetensors, only pickled ones, which can run code when they are read and are "
        "refused: give use_safetensors=False to have torch read tensors from them and nothing else, or convert them "
        f"once by `hf-attn import {source} DIRECTORY`"
    )


def _offer(repo: str, token: str | bool | None) -> str | None:
    """The revision of the bot's pull request, if there is one of the newest weights."""
    try:
        offer = previous_pr(HfApi(token=token), repo, BOTS_TITLE, token)
    except HfHubHTTPError:
        return None
    return offer.git_reference if offer is not None and offer.author == BOT else None


def find_file(source: str | os.PathLike, name: str, place: dict[str, Any]) -> Path | None:
    found = cached_file(
        str(source), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=True, **place
    )
    return None if found is None else Path(found)
