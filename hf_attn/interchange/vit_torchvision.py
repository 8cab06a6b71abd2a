"""torchvision's VisionTransformer: vit_b_16, vit_b_32, vit_l_16, vit_l_32 and vit_h_14, files of weights alone."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.names import STACKED, VECTOR, Names, Row, with_bias
from hf_attn.interchange.vit_shared import OF_ALL, label_fields, positions, processor_of_file
from hf_attn.interchange.vit_timm import heads_of

LAYER = (  # the norms come first in a ViT
    ("ln_1", "attention_norm"),
    ("self_attention.out_proj", "attention.out_proj"),
    ("ln_2", "feed_forward_norm"),
    ("mlp.0", "feed_forward.up_proj"),
    ("mlp.3", "feed_forward.down_proj"),
    ("mlp.linear_1", "feed_forward.up_proj"),  # so called before version 0.14, as in the files that are offered
    ("mlp.linear_2", "feed_forward.down_proj"),
)
FIRST_LAYER = "encoder.layers.encoder_layer_0."


def recognise(tensors: Mapping[str, torch.Tensor]) -> bool:
    stem = {"conv_proj.weight", "conv_proj.conv_last.weight"} & tensors.keys()
    return bool(stem) and f"{FIRST_LAYER}self_attention.in_proj_weight" in tensors


def configure(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What names and sizes show. Heads have 64 dimensions, in vit_h_14 80; pictures are square.

    Raises:
        ValueError: for a stem of several convolutions, and for a layer under the head.
    """
    if "conv_proj.weight" not in tensors:
        raise ValueError("conv_proj is a stem of several convolutions; this model cuts pictures in patches by one")
    if "heads.pre_logits.weight" in tensors:
        raise ValueError("heads.pre_logits is a layer under the head (representation_size), which this model has not")
    width, channels, patch, _ = tensors["conv_proj.weight"].shape
    side = round((tensors["encoder.pos_embedding"].shape[1] - 1) ** 0.5)
    up = next(
        f"{FIRST_LAYER}mlp.{name}.bias" for name in ("0", "linear_1") if f"{FIRST_LAYER}mlp.{name}.bias" in tensors
    )
    classes = len(tensors["heads.head.bias"]) if "heads.head.bias" in tensors else 0
    return {
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith("in_proj_weight") for name in tensors),
        "num_attention_heads": heads_of(width),
        "intermediate_size": len(tensors[up]),
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        **(_labels(classes) if classes else {}),
    }


def _labels(number: int) -> dict[str, Any]:
    """torchvision's names for ImageNet's classes."""
    from torchvision.models import ViT_B_16_Weights  # many models, for those who need them

    categories = ViT_B_16_Weights.DEFAULT.meta["categories"]
    return label_fields(categories if number == len(categories) else [f"LABEL_{index}" for index in range(number)])


def table(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    places = "encoder.pos_embedding"
    rows = [
        Row("class_token", "model.embeddings.class_token", VECTOR),
        *with_bias("conv_proj", "model.embeddings.patch_embedding"),
        *positions(config, places, "", 0, theirs[places].shape[1]),
    ]
    layer = "encoder.layers.encoder_layer_{}."
    for name, ours in LAYER:
        rows += with_bias(f"{layer}{name}", f"model.layers.{{}}.{ours}")
    for part in ("weight", "bias"):
        parts = tuple(f"model.layers.{{}}.attention.{of}_proj.{part}" for of in "qkv")
        rows.append(Row(f"{layer}self_attention.in_proj_{part}", parts, STACKED))
    return Names([*rows, *with_bias("encoder.ln", "model.final_norm"), *with_bias("heads.head", "classifier")])


def processor_settings(config: AttnViTConfig) -> dict[str, Any]:
    """What torchvision's `IMAGENET1K_V1` weights want: the shorter edge resized to 256, bilinear, and 224 cut out.

    Its weights for other sizes are SWAG's, resized to that size, bicubic. Two that a size does not tell apart are
    others: vit_l_16 resizes to 242, and `IMAGENET1K_SWAG_LINEAR_V1` to 224, bicubic.
    """
    height, width = config.image_shape
    of_torchvision = (height, width) == (224, 224)
    return {
        "size": {"height": height, "width": width},
        "resize_mode": "shortest_edge",
        "crop_pct": 224 / 256 if of_torchvision else 1.0,
        "resample": "bilinear" if of_torchvision else "bicubic",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


TORCHVISION_FILE = FileFormat(
    name="vit-torchvision",
    title="weights of a ViT of torchvision",
    recognise=recognise,
    configure=configure,
    table=table,
    companions=processor_of_file(processor_settings),
    **OF_ALL,
)
