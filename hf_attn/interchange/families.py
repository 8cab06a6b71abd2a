"""Every kind of checkpoint that our models can be."""

from typing import Any

from hf_attn.interchange import vit_transformers
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.loading import Family, load_foreign

# By the `model_type` of config.json, and by --format
FAMILIES: dict[str, Family] = {**vit_transformers.FAMILIES}
FILES: tuple[FileFormat, ...] = ()
FORMATS = {format.name: format for format in FILES}


def load(model_class: Any, source: Any, **kwargs: Any) -> Any | None:
    """What `from_pretrained` of our models makes of another library's checkpoint, see `load_foreign`."""
    return load_foreign(model_class, source, FAMILIES, **kwargs)
