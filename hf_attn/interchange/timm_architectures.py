"""What timm itself says that a model's config.json is: an architecture and arguments, built without weights."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import GELU, Attention, AttentionPoolLatent, GELUTanh, LayerNorm, Mlp, PatchEmbed, QuickGELU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from hf_attn.image_processing_conversion import from_timm_settings
from hf_attn.interchange.vit_shared import imagenet_labels, label_fields, side_or_pair

ACTIVATIONS = {
    nn.GELU: "gelu",
    GELU: "gelu",
    GELUTanh: "gelu_pytorch_tanh",
    QuickGELU: "quick_gelu",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
}
POOLINGS = {"token": "class_token", "avg": "mean", "map": "attention"}


def home_model(theirs: Mapping[str, Any]) -> Any:
    """timm's own model of a config.json, without weights.

    Raises:
        ValueError: if timm does not know it.
    """
    own = {name: said for name, said in theirs.items() if name not in ("model_type", "_commit_hash")}  # but for these
    try:
        with tempfile.TemporaryDirectory() as directory, torch.device("meta"):
            Path(directory, "config.json").write_text(json.dumps(own), encoding="utf-8")
            return timm.create_model(f"local-dir:{directory}", pretrained=False)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"timm {timm.__version__} cannot build architecture {theirs.get('architecture')!r}: {error}"
        ) from error


def fields_of(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our configuration; raises a ValueError that names what our model cannot express."""
    model = home_model(theirs)
    if unlike := list(_features(model)):
        raise ValueError(f"architecture {theirs['architecture']!r} has {', '.join(unlike)}, which this model has not")
    return {**_shape(model), **(_labels(theirs, model.num_classes) if model.num_classes else {})}


def _features(model: Any) -> Iterator[str]:
    """What a model of timm has that ours cannot."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        yield f"a network of its own, {type(model).__name__}"
        return
    block = model.blocks[0]
    if type(model.patch_embed) is not PatchEmbed:
        yield f"another stem, {type(model.patch_embed).__name__}"
    elif not isinstance(model.patch_embed.norm, nn.Identity):
        yield "a norm of the patches"
    if not isinstance(model.norm_pre, nn.Identity):
        yield "a norm before the first layer (pre_norm, CLIP's)"
    if isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity):
        yield "no final norm (final_norm=False)"
    if type(block) is not Block:
        yield f"layers of another kind, {type(block).__name__}"
        return
    yield from _features_of_layer(block)
    if model.global_pool not in POOLINGS:
        yield f"global_pool={model.global_pool!r}"
    elif model.pool_include_prefix:
        yield "pool_include_prefix=True"
    if model.global_pool == "map" and type(model.attn_pool) is not AttentionPoolLatent:
        yield f"another pooling, {type(model.attn_pool).__name__}"


def _features_of_layer(block: Any) -> Iterator[str]:
    if type(block.attn) is not Attention:
        yield f"another attention, {type(block.attn).__name__}"
    elif not isinstance(block.attn.norm, nn.Identity):
        yield "a norm of what attention has read (scale_attn_norm)"
    if type(block.mlp) is not Mlp:
        yield f"another feed-forward layer, {type(block.mlp).__name__}"
    elif not isinstance(block.mlp.norm, nn.Identity):
        yield "a norm in the feed-forward layer (scale_mlp_norm)"
    elif type(block.mlp.act) not in ACTIVATIONS:
        yield f"activation {type(block.mlp.act).__name__}"
    if block.attn.proj.bias is None:
        yield "proj_bias=False"
    if type(block.norm1) not in (LayerNorm, nn.LayerNorm):
        yield f"another norm, {type(block.norm1).__name__}"


def _shape(model: Any) -> dict[str, Any]:
    """The fields of our configuration."""
    block, stem = model.blocks[0], model.patch_embed
    distilled = isinstance(model, VisionTransformerDistilled)
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "activation_function": ACTIVATIONS[type(block.mlp.act)],
        "layer_norm_eps": block.norm1.eps,
        "image_size": side_or_pair(*stem.img_size),
        "patch_size": side_or_pair(*stem.patch_size),
        "num_channels": model.in_chans,
        "pad_to_patch": stem.dynamic_img_pad,
        "class_token": model.has_class_token,
        "num_register_tokens": model.num_reg_tokens + int(distilled),
        "pooling": "prefix_tokens" if distilled else POOLINGS[model.global_pool],
        "final_norm": "after_pooling" if isinstance(model.norm, nn.Identity) else "before_pooling",
        "position_embedding": "none" if model.pos_embed is None else "learned",
        "position_on_class_token": not model.no_embed_class,
        "layer_scale_init": None if isinstance(block.ls1, nn.Identity) else 1e-5,
        "query_key_norm": not isinstance(block.attn.q_norm, nn.Identity),
    }


def _labels(theirs: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Names of the classes from the file, with its descriptions; without any, those of the ImageNet of that size."""
    said = {**theirs.get("pretrained_cfg", {}), **theirs}
    names, descriptions = said.get("label_names"), said.get("label_descriptions") or {}
    if not names:
        return imagenet_labels(number)
    numbered = {
        int(index): name for index, name in (names.items() if isinstance(names, Mapping) else enumerate(names))
    }
    named = [numbered.get(index, f"LABEL_{index}") for index in range(number)]
    return label_fields([descriptions.get(name, name) for name in named])


def settings_of(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What timm does to a picture before this model sees it, by its config.json, for `AttnViTImageProcessor`."""
    return from_timm_settings(resolve_model_data_config(home_model(theirs)))
