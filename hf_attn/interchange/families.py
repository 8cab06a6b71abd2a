"""Every kind of checkpoint that our models can be."""

from typing import Any

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.interchange import vit_jax, vit_timm, vit_torchvision, vit_transformers
from hf_attn.interchange.checkpoints import PLACE, read_config
from hf_attn.interchange.detr_original import DETR_DC5_ORIGINAL, DETR_ORIGINAL
from hf_attn.interchange.detr_transformers import DETR
from hf_attn.interchange.fairseq import FAIRSEQ
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.loading import Family, load_foreign
from hf_attn.interchange.m2m import M2M
from hf_attn.interchange.marian import MARIAN

# By the `model_type` of config.json, and by --format
FAMILIES: dict[str, Family] = {
    "marian": MARIAN,
    "m2m_100": M2M,
    **vit_transformers.FAMILIES,
    **vit_timm.FAMILIES,
    "detr": DETR,
}
FILES: tuple[FileFormat, ...] = (
    FAIRSEQ,
    vit_timm.TIMM_FILE,
    vit_jax.JAX_FILE,
    vit_torchvision.TORCHVISION_FILE,
    DETR_ORIGINAL,
    DETR_DC5_ORIGINAL,
)
FORMATS = {format.name: format for format in FILES}


def is_translator(source: Any, **kwargs: Any) -> bool:
    """Whether a directory, or a repository, holds a translator of another library, by its config.json.

    Args:
        kwargs: of `from_pretrained`, of which only those count that say where to look.
    """
    theirs = read_config(source, {name: kwargs[name] for name in PLACE if name in kwargs}) or {}
    family = FAMILIES.get(theirs.get("model_type", ""))
    return family is not None and family.config_class is AttnTranslatorConfig


def load(model_class: Any, source: Any, **kwargs: Any) -> Any | None:
    """What `from_pretrained` of our models makes of another library's checkpoint, see `load_foreign`."""
    return load_foreign(model_class, source, FAMILIES, **kwargs)


def load_processor(config_class: Any, source: Any, **kwargs: Any) -> dict[str, Any] | None:
    """The settings of our image processor that another library's config.json holds; None where it holds none.

    Args:
        config_class: of the model that the processor is for.
        kwargs: of `from_pretrained`.
    """
    theirs = read_config(source, {name: kwargs[name] for name in PLACE if name in kwargs}) or {}
    family = FAMILIES.get(theirs.get("model_type", ""))
    if family is None or family.processor is None or family.config_class is not config_class:
        return None
    return family.processor(theirs)
