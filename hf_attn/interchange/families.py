"""Every family of checkpoints that our models can be, by the `model_type` of its config.json."""

from typing import Any

from hf_attn.interchange.detr_transformers import DETR
from hf_attn.interchange.loading import Family, load_foreign
from hf_attn.interchange.vit_transformers import VIT

FAMILIES: dict[str, Family] = {"detr": DETR, "vit": VIT}


def load(model_class: Any, source: Any, **kwargs: Any) -> Any | None:
    """What `from_pretrained` of our models makes of another library's checkpoint, see `load_foreign`."""
    return load_foreign(model_class, source, FAMILIES, **kwargs)
