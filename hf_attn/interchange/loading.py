"""`from_pretrained` of our models for the checkpoints of other libraries."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from hf_attn.interchange.checkpoints import PLACE, read_config, read_tensors
from hf_attn.interchange.names import Names, counted, listed

logger = logging.get_logger(__name__)


class Configure(Protocol):
    def __call__(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of our configuration, from what their config.json says.

        Raises:
            ValueError: for a setting that our model cannot express, which the message names.
        """


class Table(Protocol):
    def __call__(self, config: Any, theirs: Mapping[str, torch.Tensor]) -> Names:
        """The names in a checkpoint with this configuration of ours; of its tensors, only names and shapes count."""


@dataclass(frozen=True)
class Family:
    """Checkpoints of another library that one of our models can be.

    Args:
        title: for messages.
        config_class: ours.
        configure: makes our configuration of theirs.
        table: makes the table of names, of a model with its head.
        head: how the names of our head begin, which fine-tuning may begin anew.
        resampled: how names begin of tensors that are resampled on loading where the configuration says so.
        generation: the settings of `generate` that their config.json holds, for repositories without a file of them.
    """

    title: str
    config_class: type[PreTrainedConfig]
    configure: Configure
    table: Table
    head: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    generation: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def load_foreign(
    model_class: Any,
    source: str | os.PathLike,
    families: Mapping[str, Family],
    use_safetensors: bool | None = None,
    **kwargs: Any,
) -> Any | None:
    """A model of ours with the weights of another library's checkpoint; None if it is none, but one of our own.

    Args:
        model_class: the model to make.
        source: a directory, or a name on the Hub.
        families: by `model_type` of config.json.
        use_safetensors: False reads pickled weights where there are no others.
        kwargs: of `from_pretrained`: fields of our configuration instead of what the checkpoint says, among them
            `num_labels`; with `ignore_mismatched_sizes=True` a head that does not fit, or is not there, begins anew.

    Raises:
        OSError: if there are no weights, or only pickled ones.
        ValueError: if our model cannot be that one, or tensors are missing, too many, or of other sizes.
    """
    place = {name: kwargs[name] for name in PLACE if name in kwargs}
    theirs = read_config(source, place)
    if theirs is None or theirs.get("model_type") in (None, model_class.config_class.model_type):
        return None
    family = _family(source, theirs["model_type"], families, model_class)
    try:
        fields = family.configure(theirs)
        origin = family.config_class(**fields)
        config, kwargs = _configuration(family, fields, kwargs)
        stored = read_tensors(source, place, safe=use_safetensors is not False)
        taken = family.table(origin, stored).take(stored)
        weights = _fitting(taken, model_class, config, family, bool(kwargs.get("ignore_mismatched_sizes")))
    except ValueError as error:
        raise ValueError(f"{source} ({family.title}): {error}") from error
    wants_report = kwargs.pop("output_loading_info", False)
    kwargs = {name: value for name, value in kwargs.items() if name not in PLACE}
    with _no_report():
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, **kwargs
        )
    model.config._name_or_path = str(source)
    if family.generation is not None and "generation_config" not in kwargs:
        model.generation_config = _generation(source, place, family.generation(theirs))
    return (model, report) if wants_report else model


def _generation(source: Any, place: dict[str, Any], from_config: dict[str, Any]) -> GenerationConfig:
    """What generation_config.json says; without one, what config.json does."""
    try:
        return GenerationConfig.from_pretrained(str(source), **place)
    except OSError:
        return GenerationConfig(**from_config)


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' report on missing tensors: those that may be missing were named before."""
    theirs = logging.get_logger("transformers.modeling_utils")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.setLevel(level)


def _family(source: Any, kind: str, families: Mapping[str, Family], model_class: Any) -> Family:
    """Of a `model_type`; raises a ValueError for one that this class cannot be."""
    readable = [repr(name) for name, family in families.items() if family.config_class is model_class.config_class]
    if repr(kind) not in readable:
        own = repr(model_class.config_class.model_type)
        raise ValueError(
            f"{source} is a model of type {kind!r}, which {model_class.__name__} cannot be; it can be those of type "
            f"{', '.join([own, *readable])}"
        )
    return families[kind]


def _configuration(
    family: Family, fields: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Our configuration, with what `kwargs` say instead; and the other `kwargs`."""
    given = kwargs.pop("config", None)
    if given is None:
        return family.config_class.from_dict(dict(fields), return_unused_kwargs=True, **kwargs)
    if type(given) is not family.config_class:
        raise ValueError(f"config is a {type(given).__name__} and must be a {family.config_class.__name__}")
    return given, kwargs


def _fitting(
    taken: dict[str, torch.Tensor], model_class: Any, config: PreTrainedConfig, family: Family, anew: bool
) -> dict[str, torch.Tensor]:
    """The tensors that the model has. Raises a ValueError unless they are all of its own, in their sizes."""
    with torch.device("meta"):
        model = model_class(config)
    wanted = {name: weight.shape for name, weight in model.state_dict().items()}
    base = f"{model_class.base_model_prefix}."
    if not any(name.startswith(base) for name in wanted):  # it is the base model itself
        taken = {name.removeprefix(base): weight for name, weight in taken.items()}
    ignored = [re.compile(pattern) for pattern in model_class._keys_to_ignore_on_load_unexpected or ()]
    taken = {n: w for n, w in taken.items() if n in wanted or not any(p.search(n) for p in ignored)}
    resized = tuple(name.removeprefix(base) for name in family.resampled) + family.resampled
    other = {
        name
        for name, weight in taken.items()
        if name in wanted and weight.shape != wanted[name] and not name.startswith(resized)
    }
    tied = set(model.all_tied_weights_keys)
    missing = wanted.keys() - taken.keys() - {name for name in tied if model.all_tied_weights_keys[name] in taken}
    if anew and (begun := {name for name in missing | other if name.startswith(family.head)}):
        logger.warning(f"{', '.join(sorted(begun))} begin anew: the checkpoint's do not fit, or are not there")
        taken = {name: weight for name, weight in taken.items() if name not in begun}
        missing, other = missing - begun, other - begun
    faults = []
    if missing:
        faults.append(f"lacks {counted(missing, 'tensor')}: {listed(missing)}")
    if unexpected := taken.keys() - wanted.keys():
        faults.append(f"has {counted(unexpected, 'tensor')} that the model does not: {listed(unexpected)}")
    if other:
        sizes = [f"{name} {tuple(taken[name].shape)} instead of {tuple(wanted[name])}" for name in other]
        faults.append(f"has other sizes than the model: {listed(sizes)}")
    if faults:
        heads = bool(family.head) and all(name.startswith(family.head) for name in missing | other)
        remedy = "; for a head that begins anew, give num_labels=... and ignore_mismatched_sizes=True" if heads else ""
        raise ValueError("it " + ", and ".join(faults) + remedy)
    return taken
