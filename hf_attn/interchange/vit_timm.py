"""timm's VisionTransformer, directories and single files: the original, AugReg, DeiT (I to III), SigLIP, sbb and more.

A directory's config.json names an architecture and arguments, and timm itself says, building it without weights, what
that is. A single file has nothing beside it: what its tensors do not show is timm's rule, see `configure_file`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_conversion import from_timm_settings
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.loading import Family
from hf_attn.interchange.names import STACKED, VECTOR, Change, Names, Row, with_bias
from hf_attn.interchange.vit_shared import (
    MEAN_OF_BIASES,
    MEAN_OF_HEADS,
    OF_ALL,
    image_processor,
    imagenet_labels,
    positions,
    processor_of_file,
    side_or_pair,
    with_bias_left_out,
)

HEADS_OF_64 = 64  # dimensions of a head in most models
SIXTEEN_HEADS = (1152, 1280, 1408, 1664)  # in models of these widths: so400m, huge, giant, gigantic

KEYS_AND_VALUES = Change(lambda theirs: theirs.chunk(2), lambda ours: torch.cat(list(ours)))
LAYER = (  # the norms come first in a ViT
    ("norm1", "attention_norm"),
    ("attn.proj", "attention.out_proj"),
    ("norm2", "feed_forward_norm"),
    ("mlp.fc1", "feed_forward.up_proj"),
    ("mlp.fc2", "feed_forward.down_proj"),
    ("attn.q_norm", "attention.q_norm"),
    ("attn.k_norm", "attention.k_norm"),
)
SCALES = (
    ("ls1.gamma", "attention_scale.weight"),
    ("ls2.gamma", "feed_forward_scale.weight"),
    ("gamma_1", "attention_scale.weight"),  # in DeiT III's own files
    ("gamma_2", "feed_forward_scale.weight"),
)
POOLING = (  # of SigLIP and sbb's "map"
    ("attn_pool.q", "q_proj"),
    ("attn_pool.proj", "out_proj"),
)


# --- the names -------------------------------------------------------------------------------------------------------


def table(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    rows = [
        Row("cls_token", "model.embeddings.class_token", VECTOR),
        *with_bias("patch_embed.proj", "model.embeddings.patch_embedding"),
    ]
    registers = "dist_token" if "dist_token" in theirs else "reg_token"
    length = theirs["pos_embed"].shape[1] if "pos_embed" in theirs else 0
    rows += positions(config, "pos_embed", registers, config.num_register_tokens, length)
    for name, ours in LAYER:
        rows += with_bias(f"blocks.{{}}.{name}", f"model.layers.{{}}.{ours}")
    rows += [Row(f"blocks.{{}}.{name}", f"model.layers.{{}}.{ours}") for name, ours in SCALES]
    rows += _stacked(theirs)
    rows += [row for norm in _final_norms(config) for row in with_bias(norm, "model.final_norm")]
    return Names([*rows, *_attention_pooling(), *_heads(config)])


def _stacked(theirs: Mapping[str, torch.Tensor]) -> list[Row]:
    """Queries, keys and values of a layer."""
    ours = [f"model.layers.{{}}.attention.{part}_proj" for part in "qkv"]
    if "blocks.0.attn.qkv.weight" in theirs and "blocks.0.attn.qkv.bias" not in theirs:
        return [with_bias_left_out("blocks.{}.attn.qkv", ours)]
    return [
        Row(f"blocks.{{}}.attn.qkv.{part}", tuple(f"{name}.{part}" for name in ours), STACKED)
        for part in ("weight", "bias")
    ]


def _final_norms(config: AttnViTConfig) -> list[str]:
    return ["fc_norm", "norm"] if config.final_norm == "after_pooling" else ["norm"]


def _attention_pooling() -> list[Row]:
    head = "model.attention_pooling"
    rows = [Row("attn_pool.latent", f"{head}.query", VECTOR)]
    for part in ("weight", "bias"):
        ours = (f"{head}.attention.k_proj.{part}", f"{head}.attention.v_proj.{part}")
        rows.append(Row(f"attn_pool.kv.{part}", ours, KEYS_AND_VALUES))
    for name, mine in POOLING:
        rows += with_bias(name, f"{head}.attention.{mine}")
    rows += with_bias("attn_pool.norm", f"{head}.feed_forward_norm")
    rows += with_bias("attn_pool.mlp.fc1", f"{head}.feed_forward.up_proj")
    return rows + with_bias("attn_pool.mlp.fc2", f"{head}.feed_forward.down_proj")


def _heads(config: AttnViTConfig) -> list[Row]:
    if config.pooling != "prefix_tokens":
        return with_bias("head", "classifier")
    return [
        Row(("head.weight", "head_dist.weight"), "classifier.weight", MEAN_OF_HEADS),
        Row(("head.bias", "head_dist.bias"), "classifier.bias", MEAN_OF_BIASES),
    ]


# --- directories -----------------------------------------------------------------------------------------------------


def configure(theirs: Mapping[str, Any]) -> dict[str, Any]:
    from hf_attn.interchange.timm_architectures import fields_of  # timm, for those who need it

    return fields_of(theirs)


def processor_settings(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What timm does to a picture before this model sees it, by its config.json, for `AttnViTImageProcessor`."""
    from hf_attn.interchange.timm_architectures import settings_of

    return settings_of(theirs)


# --- single files ----------------------------------------------------------------------------------------------------


def recognise(tensors: Mapping[str, torch.Tensor]) -> bool:
    return {"patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.weight"} <= tensors.keys()


def configure_file(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What names and sizes show, and for the rest timm's rules.

    A head has 64 dimensions, and models of the widths of SIXTEEN_HEADS have that many heads; the activation is the
    exact GELU; pictures are square; norms have eps 1e-6. Where the final norm comes after the pooling ("fc_norm"), the
    mean of the patches is read; where it comes before, what attention pooling gives, if there is any, or the class
    token, or without one the mean.

    Raises:
        ValueError: if the patches are no square.
    """
    kernel = tensors["patch_embed.proj.weight"]
    width, channels, *patch = kernel.shape
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else int("dist_token" in tensors)
    has_class_token = "cls_token" in tensors
    prefix = registers + int(has_class_token)
    embedding, sides = _grid(tensors, prefix)
    pooling = "attention" if "attn_pool.latent" in tensors else "class_token" if has_class_token else "mean"
    if "fc_norm.weight" in tensors:
        pooling = "mean"
    if "dist_token" in tensors:
        pooling = "prefix_tokens"
    classes = len(tensors["head.bias"]) if "head.bias" in tensors else 0
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "num_attention_heads": heads_of(width),
        "intermediate_size": len(tensors["blocks.0.mlp.fc1.bias"]),
        "image_size": side_or_pair(sides * patch[0], sides * patch[1]),
        "patch_size": side_or_pair(*patch),
        "num_channels": channels,
        "class_token": has_class_token,
        "num_register_tokens": registers,
        "pooling": pooling,
        "final_norm": "after_pooling" if "fc_norm.weight" in tensors else "before_pooling",
        "position_embedding": embedding,
        "position_on_class_token": embedding == "learned" and tensors["pos_embed"].shape[1] != sides**2,
        "layer_scale_init": 1e-5 if {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & tensors.keys() else None,
        "query_key_norm": "blocks.0.attn.q_norm.weight" in tensors,
        **(imagenet_labels(classes) if classes else {}),
    }


def heads_of(width: int) -> int | None:
    """The number of heads by timm's rule; None if the width has none by it."""
    if width in SIXTEEN_HEADS:
        return 16
    return None if width % HEADS_OF_64 else width // HEADS_OF_64


def _grid(tensors: Mapping[str, torch.Tensor], prefix: int) -> tuple[str, int]:
    """Whether positions are learned, and the side of the grid: 14 where they do not show it."""
    if "pos_embed" not in tensors:
        return "none", 14
    length = tensors["pos_embed"].shape[1]
    for patches in (length, length - prefix):
        side = round(patches**0.5)
        if side**2 == patches:
            return "learned", side
    raise ValueError(
        f"{length} positions are no square of patches, with or without {prefix} tokens before them: import the "
        "directory with its config.json, which says the size of the pictures"
    )


def processor_settings_of_file(config: AttnViTConfig) -> dict[str, Any]:
    """What timm does by default for a ViT: mean and deviation 0.5, bicubic, 90 % of each edge kept.

    A file does not say it. The original models have that mean, AugReg's, SigLIP's and sbb's; DeiT's and DINOv2's have
    ImageNet's.
    """
    settings = {"input_size": (config.num_channels, *config.image_shape), "crop_pct": 0.9}
    return from_timm_settings({**settings, "mean": (0.5,) * config.num_channels, "std": (0.5,) * config.num_channels})


TIMM = Family(
    title="a ViT of timm",
    configure=configure,
    table=table,
    processor=processor_settings,
    companions=image_processor,
    **OF_ALL,
)
# transformers gives this type to the configurations of timm, which name none
FAMILIES = {"timm_wrapper": TIMM}
TIMM_FILE = FileFormat(
    name="vit-timm",
    title="weights of a ViT of timm",
    recognise=recognise,
    configure=configure_file,
    table=table,
    companions=processor_of_file(processor_settings_of_file),
    **OF_ALL,
)
