"""What is refused in the configuration of any model, before memory is allocated for it."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

# transformers runs code that lies beside weights as part of a package of this name
READ_FROM_A_REPOSITORY = __name__.startswith("transformers_modules.")
MOST_PARAMETERS = 10**12  # 4 terabytes in float32
MOST_LABELS = 10**6
# What transformers, its Trainer or a repository adds to the fields of any configuration; what begins with _, too
ADDED = {
    *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "loss_type"),
    *("attn_implementation", "experts_implementation", "output_attentions", "per_layer_config", "name_or_path"),
    *("dtype", "torch_dtype", "num_labels", "model_type", "transformers_version", "quantization_config"),
    *("auto_map", "custom_pipelines", "tokenizer_class", "task_specific_params"),
}


def check_given(config: PreTrainedConfig, given: dict[str, Any]) -> None:
    """Look at what a configuration was given beside its fields.

    The package has its own pipelines: what a repository says of the code of another is forgotten, for transformers
    would ask leave to run it.

    Raises:
        ValueError: that names what is no field of the configuration, and what may have been meant; for labels without
            end, each of which would get a name.
    """
    if not READ_FROM_A_REPOSITORY:
        given.pop("custom_pipelines", None)
    labels = given.get("num_labels")
    if labels is not None and labels > MOST_LABELS:
        raise ValueError(f"num_labels {labels:,} is above {MOST_LABELS:,}; check it")
    known = {*config.__dataclass_fields__, *config.attribute_map, *ADDED}  # type: ignore[attr-defined]
    generation = GenerationConfig._get_default_generation_params()  # which transformers moves out of a configuration
    wrong = [name for name in given if name not in known and name not in generation and not name.startswith("_")]
    check_unknown(type(config), wrong, known)


def check_unknown(config_class: type[PreTrainedConfig], wrong: Sequence[str], known: Iterable[str]) -> None:
    """Raise a ValueError if there are wrong names of fields, with those of the known ones that may have been meant."""
    if not wrong:
        return
    known = list(known)
    meant = [near for name in wrong for near in get_close_matches(name, known, n=1)]
    remark = f"; was {', '.join(map(repr, meant))} meant? " if meant else ". "
    raise ValueError(
        f"{config_class.__name__} has no field {', '.join(map(repr, wrong))}{remark}Correct the name or leave it out: "
        "nothing would read it"
    )


def check_counts(config: PreTrainedConfig, names: Iterable[str]) -> None:
    """Raise a ValueError that names the first that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} {getattr(config, name)} is not at least 1")


def check_parameters(embedded: int, layers: int, hidden_size: int, intermediate_size: int) -> None:
    """Raise a ValueError if a model of about this size could be nobody's: the file is broken, or worse.

    Args:
        embedded: rows of all tables of `hidden_size` columns.
        layers: each with four square matrices of attention at least, and two of the feed-forward network.
    """
    number = embedded * hidden_size + layers * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size)
    if number > MOST_PARAMETERS:
        raise ValueError(
            f"a model of {layers:,} layers, hidden_size {hidden_size:,}, intermediate_size {intermediate_size:,} and "
            f"{embedded:,} embedded rows has {number:,} parameters, more than {MOST_PARAMETERS:,}; check these sizes"
        )
