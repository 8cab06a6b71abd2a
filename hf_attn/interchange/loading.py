"""`from_pretrained` of our models for the checkpoints of other libraries."""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import get_annotations
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging

from hf_attn.interchange.checkpoints import PLACE, find_file, read_config, read_tensors
from hf_attn.interchange.names import Names, counted, listed

logger = logging.get_logger(__name__)

# The class of each model that has all parts, for messages
WHOLE = {
    "AttnTranslatorConfig": "AttnTranslatorForConditionalGeneration",
    "AttnViTConfig": "AttnViTForImageClassification",
    "AttnDetrConfig": "AttnDetrForObjectDetection",
}
COUNTER = ".num_batches_tracked"  # of batch norm, which checkpoints lack that have frozen it; it begins at 0


class DamagedError(ValueError):
    """A file holds what none of its kind does: no other library should make a model of it, either."""


class Configure(Protocol):
    def __call__(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of our configuration, from what their config.json says.

        Raises:
            ValueError: for a setting that our model cannot express, which the message names.
        """


class Table(Protocol):
    def __call__(self, config: Any, theirs: Mapping[str, torch.Tensor]) -> Names:
        """The names in a checkpoint with this configuration of ours; of its tensors, only names and shapes count."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is known of one kind of checkpoint.

    Args:
        title: for messages.
        config_class: ours.
        table: makes the table of names, of a model with its head.
        head: how the names of our head begin, which fine-tuning may begin anew.
        other_heads: the same of models with another head.
        head_of_base: the same of a head that our model without one has, too, and theirs has not: there it begins anew.
        resampled: how names begin of tensors that are resampled on loading where the configuration says so.
        companions: makes what prepares the model's input, of a checkpoint and PLACE's arguments: none where none is
            there.
    """

    title: str
    config_class: type[PreTrainedConfig]
    table: Table
    head: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    head_of_base: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    companions: Callable[["Opened", dict[str, Any]], list[Any]] = lambda opened, place: []


@dataclass(frozen=True, kw_only=True)
class Family(Kind):
    """Checkpoints of another library with their config.json.

    Args:
        configure: makes our configuration of theirs.
        generation: the settings of `generate` that their config.json holds, for repositories without a file of them.
        processor: the settings of our image processor that it holds, for the same.
        own_generation: settings that only our models know, and that make them generate as theirs do.
    """

    configure: Configure
    generation: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    processor: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    own_generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A checkpoint, read as far as it takes to know which model of ours it is.

    Args:
        fields: of our configuration.
        tensors: by our names, of a model with its head.
        generation: settings of `generate`.
        has_decoder: whether it was trained to fill in masked patches, and has what does that.
    """

    source: str
    kind: Kind
    fields: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    generation: GenerationConfig | None = None
    has_decoder: bool = False

    @property
    def has_head(self) -> bool:
        return any(name.startswith(self.kind.head) for name in self.tensors) if self.kind.head else True


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
        ValueError: if our model cannot be that one, a file is damaged, or tensors are missing, too many, or of other
            sizes.
    """
    if kwargs.get("_from_auto"):  # then AutoConfig has found it to be one of ours
        return None
    if Path(source).is_file():
        raise ValueError(
            f"{source} is a file, and from_pretrained reads directories: `hf-attn import {source} DIRECTORY` makes "
            "one of a file of weights"
        )
    place = {name: kwargs.pop(name) for name in PLACE if name in kwargs}
    theirs = read_config(source, place)
    if theirs is None or theirs.get("model_type") in (None, model_class.config_class.model_type):
        return None
    family = family_of(source, theirs, families, model_class.config_class)
    opened = open_checkpoint(source, family, theirs, place, safe=use_safetensors is not False)
    return as_model(opened, model_class, **kwargs)


def family_of(
    source: Any, theirs: Mapping[str, Any], families: Mapping[str, Family], config_class: Any = None
) -> Family:
    """Raises a ValueError for a type that no model of ours, or not the one with this configuration, can be."""
    model_type = theirs.get("model_type")
    of_class = {kind: family for kind, family in families.items() if config_class in (None, family.config_class)}
    if model_type not in of_class:
        readable = ", ".join(map(repr, ([] if config_class is None else [config_class.model_type]) + list(of_class)))
        ours = {kind: family.config_class for kind, family in families.items()}
        ours |= {found.model_type: found for found in ours.values()}
        use = f"; use {WHOLE[ours[model_type].__name__]}" if model_type in ours else ""
        raise ValueError(
            f"{source} is a model of type {model_type!r}; what can be read here is of type {readable}{use}"
        )
    return of_class[model_type]


def open_checkpoint(
    source: str | os.PathLike, family: Family, theirs: Mapping[str, Any], place: dict[str, Any], safe: bool = True
) -> Opened:
    """Read a directory or a repository with config.json, as `load_foreign` does."""
    with said_of(source, family):
        fields = family.configure(theirs)
        tensors = read_tensors(source, place, safe)
        taken = family.table(family.config_class(**fields), tensors).take(tensors)
    generation = None if family.generation is None else _generation(source, place, family.generation(theirs))
    for name, value in family.own_generation.items():  # update() knows only transformers' own
        setattr(generation, name, value)
    has_decoder = bool(family.other_heads) and any(name.startswith("decoder.") for name in tensors)
    return Opened(str(source), family, fields, taken, generation, has_decoder)


def as_model(opened: Opened, model_class: Any, **kwargs: Any) -> Any:
    """The model. Arguments and errors are those of `load_foreign`."""
    if kwargs.get("dtype") == "auto":  # transformers would look for it in a configuration, or in a file
        kwargs["dtype"] = next(weight.dtype for weight in opened.tensors.values() if weight.is_floating_point())
    with said_of(opened.source, opened.kind):
        config, kwargs = _configuration(opened, kwargs)
        own = {name: kwargs[name] for name in inspect.signature(model_class).parameters if name in kwargs}
        with torch.device("meta"):
            model = model_class(config, **own)
        weights = _fitting(opened, model, bool(kwargs.get("ignore_mismatched_sizes")))
    wants_report = kwargs.pop("output_loading_info", False)
    with _no_report():
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, **kwargs
        )
    model.config._name_or_path = opened.source
    if opened.generation is not None and "generation_config" not in kwargs:
        model.generation_config = opened.generation
    return (model, report) if wants_report else model


@contextmanager
def said_of(source: Any, kind: Kind) -> Iterator[None]:
    """Errors name the checkpoint and what it was taken for; a value of another type is a `DamagedError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source} ({kind.title}): {error}") from error
    except StrictDataclassError as error:
        raise DamagedError(f"{source} ({kind.title}): {' '.join(str(error).split())}") from error


def _generation(source: Any, place: dict[str, Any], from_config: dict[str, Any]) -> GenerationConfig:
    """What generation_config.json says; without one, what config.json does."""
    file = find_file(source, GENERATION_CONFIG_NAME, place)
    if file is None:
        return GenerationConfig(**from_config)
    try:
        return GenerationConfig.from_pretrained(str(source), **place)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{file} is damaged ({error}); copy or download it again, or remove it") from error


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' report on missing tensors: those that may be missing were named before."""
    theirs = logging.get_logger("transformers.modeling_utils")
    theirs.addFilter(_is_no_report)
    try:
        yield
    finally:
        theirs.removeFilter(_is_no_report)


def _is_no_report(record: Any) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _configuration(opened: Opened, kwargs: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Our configuration, with what `kwargs` say instead; and the other `kwargs`."""
    given, wanted = kwargs.pop("config", None), opened.kind.config_class
    if given is None:
        fields = dict(opened.fields)
        if kwargs.get("num_labels") not in (None, len(fields.get("id2label") or ())):  # then names are others', too
            fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
        if "id2label" in kwargs:
            _check_labels(kwargs["id2label"])
            fields["label2id"] = {label: int(number) for number, label in kwargs["id2label"].items()}
        # Here and not by from_dict, which would set them after the configuration has been checked
        fields |= {name: kwargs.pop(name) for name in own_fields(wanted) & kwargs.keys()}
        return wanted.from_dict(fields, return_unused_kwargs=True, **kwargs)
    if type(given) is not wanted:
        raise ValueError(f"config is a {type(given).__name__} and must be a {wanted.__name__}")
    return given, kwargs


def _check_labels(labels: Any) -> None:
    is_whole = isinstance(labels, Mapping) and all(isinstance(label, str) for label in labels.values())
    if not is_whole or not all(str(number).isdecimal() for number in labels):
        raise ValueError(f'id2label is {labels!r:.80}; write it as {{"0": "cat", "1": "dog"}}')


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """The names of the fields that a checkpoint decides."""
    return {"id2label", *(name for name in get_annotations(config_class) if not name.startswith("_"))}


def _fitting(opened: Opened, model: Any, anew: bool) -> dict[str, torch.Tensor]:
    """The tensors that the model has. Raises a ValueError unless they are all of its own, in their sizes."""
    taken, kind = opened.tensors, opened.kind
    wanted = {name: weight.shape for name, weight in model.state_dict().items()}
    base = f"{model.base_model_prefix}."
    is_base = not any(name.startswith(base) for name in wanted)
    if is_base:
        taken = {name.removeprefix(base): weight for name, weight in taken.items()}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    taken = {n: w for n, w in taken.items() if n in wanted or not any(p.search(n) for p in ignored)}
    counters = [name for name in wanted if name.endswith(COUNTER) and name not in taken]
    taken |= {name: torch.zeros(wanted[name], dtype=torch.long) for name in counters}
    heads = kind.head + kind.other_heads
    resized, head = ((*names, *(name.removeprefix(base) for name in names)) for names in (kind.resampled, heads))
    other = {
        name
        for name, weight in taken.items()
        if name in wanted and weight.shape != wanted[name] and not name.startswith(resized)
    }
    tied = set(model.all_tied_weights_keys)
    missing = wanted.keys() - taken.keys() - {name for name in tied if model.all_tied_weights_keys[name] in taken}
    begun = {name for name in missing | other if anew and name.startswith(head)}
    of_base = tuple(name.removeprefix(base) for name in kind.head_of_base)
    if is_base and of_base and not any(name.startswith(of_base) for name in taken):
        begun |= {name for name in missing if name.startswith(of_base)}
    if begun:
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
        is_head = bool(head) and all(name.startswith(head) for name in missing | other)
        remedy = "; for a head that begins anew, give num_labels=... and ignore_mismatched_sizes=True"
        raise ValueError("it " + ", and ".join(faults) + (remedy if is_head else ""))
    return taken
