"""How the Hub reads the metadata of a model card, and what it refuses, as far as tests need it.

The lists of licenses, languages and tasks that the Hub knows are not here: an identifier only has to look like one.
"""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

TEXT = ("library_name", "pipeline_tag", "license_name", "license_link", "base_model_relation", "thumbnail")
TEXT_OR_TEXTS = ("license", "language", "tags", "datasets", "metrics", "base_model")
TAG_PREFIXES = {"library_name": "", "pipeline_tag": "", "tags": "", "language": ""}
TAG_PREFIXES |= {"license": "license:", "datasets": "dataset:", "base_model": "base_model:"}
DATASET = {"type": r"([\w-]+/)?[\w.-]+", "name": ".+"}
RESULT = {"task": {"type": ".+"}, "dataset": DATASET, "metrics": [{"type": ".+", "value": ".+"}]}
MODEL_INDEX = [{"name": ".+", "results": [RESULT]}]


def card_metadata(card: str) -> Any:
    """The YAML between two lines of dashes at the top; None where there is none. Raises YAMLError."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def card_tags(metadata: dict[str, Any]) -> list[str]:
    tags = []
    for key, prefix in TAG_PREFIXES.items():
        value = metadata.get(key, [])
        tags += [prefix + text for text in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(tags))


def card_faults(card: str) -> list[str]:
    """What the Hub would refuse, one line each; a card without metadata is none."""
    try:
        metadata = card_metadata(card)
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]
    faults = [f'"{key}" must be a string' for key in TEXT if not isinstance(metadata.get(key, ""), str)]
    for key in TEXT_OR_TEXTS:
        value = metadata.get(key, "")
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            faults.append(f'"{key}" must be a string or a list of strings')
        elif key in ("license", "language") and any(re.search(r"[A-Z\s]", text) for text in texts):
            faults.append(f'"{key}" must be an identifier in lowercase')
    if "model-index" in metadata:
        faults += shape_faults(metadata["model-index"], MODEL_INDEX, "model-index")
    return faults


def shape_faults(value: Any, shape: Any, place: str) -> list[str]:
    """Where a value departs from a shape: lists of at least one, mappings with all the keys, patterns for the rest."""
    if isinstance(shape, str):
        return [] if re.fullmatch(shape, str(value)) else [f'"{place}" must not be {value!r}']
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return [f'"{place}" must be a list that is not empty']
        below = [(item, shape[0], f"{place}[{number}]") for number, item in enumerate(value)]
    elif isinstance(value, dict):
        lacking = [f'"{place}.{key}" is required' for key in shape if value.get(key) is None]
        if lacking:
            return lacking
        below = [(value[key], shape[key], f"{place}.{key}") for key in shape]
    else:
        return [f'"{place}" must be a mapping']
    return [fault for part in below for fault in shape_faults(*part)]
