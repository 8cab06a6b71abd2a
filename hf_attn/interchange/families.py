"""Every kind of checkpoint that our models can be."""

from typing import Any

from hf_attn.interchange.detr_original import DETR_DC5_ORIGINAL, DETR_ORIGINAL
from hf_attn.interchange.detr_transformers import DETR
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.loading import Family, load_foreign
from hf_attn.interchange.vit_transformers import VIT

# By the `model_type` of config.json, and by --format
FAMILIES: dict[str, Family] = {"detr": DETR, "vit": VIT}
FILES: tuple[FileFormat, ...] = (DETR_ORIGINAL, DETR_DC5_ORIGINAL)
FORMATS = {format.name: format for format in FILES}


def load(model_class: Any, source: Any, **kwargs: Any) -> Any | None:
    """What `from_pretrained` of our models makes of another library's checkpoint, see `load_foreign`."""
    return load_foreign(model_class, source, FAMILIES, **kwargs)
