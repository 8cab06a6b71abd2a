"""transformers' ViT, as google/vit-* are on the Hub, by the names on disk, which are older than those in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.interchange.loading import Family, Opened
from hf_attn.interchange.names import VECTOR, Change, Names, Row, with_bias

SAME_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
LABELS = ("id2label", "label2id", "problem_type")
LAYER = (  # "Attention is all you need", figure 1, left; the norms come first here
    ("layernorm_before", "attention_norm"),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.out_proj"),
    ("layernorm_after", "feed_forward_norm"),
    ("intermediate.dense", "feed_forward.up_proj"),
    ("output.dense", "feed_forward.down_proj"),
)


def configure(theirs: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: theirs[name] for name in (*SAME_FIELDS, *LABELS) if name in theirs}
    fields.setdefault("layer_norm_eps", 1e-12)
    if theirs.get("qkv_bias") is False:
        raise ValueError("qkv_bias is false: this model's queries, keys and values have a bias")
    return {
        **fields,
        "activation_function": theirs.get("hidden_act", "gelu"),
        "dropout": theirs.get("hidden_dropout_prob", 0.0),
        "attention_dropout": theirs.get("attention_probs_dropout_prob", 0.0),
    }


def table(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    base = "vit." if any(name.startswith("vit.") for name in theirs) else ""
    rows = [
        Row(f"{base}embeddings.cls_token", "model.embeddings.class_token", VECTOR),
        Row(
            f"{base}embeddings.position_embeddings",
            ("model.embeddings.class_position", "model.embeddings.positions"),
            positions(config.grid_shape),
        ),
        Row(f"{base}embeddings.mask_token", "model.embeddings.mask_token", VECTOR),
        *with_bias(f"{base}embeddings.patch_embeddings.projection", "model.embeddings.patch_embedding"),
    ]
    for name, ours in LAYER:
        rows += with_bias(f"{base}encoder.layer.{{}}.{name}", f"model.layers.{{}}.{ours}")
    rows += with_bias(f"{base}layernorm", "model.final_norm")
    rows += with_bias("classifier", "classifier")
    return Names(rows, beside=[rf"{base}pooler\.dense\.(weight|bias)"])  # which no classifier reads


def positions(grid: tuple[int, int], prefix: int = 1) -> Change:
    """(1, prefix + rows · columns, d) ↔ (d,) of the class token, if it has one, and (rows, columns, d)"""

    def take(theirs: torch.Tensor) -> list[torch.Tensor]:
        token, places = theirs[0, :prefix], theirs[0, prefix:]
        if places.shape[0] != grid[0] * grid[1]:
            raise ValueError(f"it has {places.shape[0]} positions for a grid of {grid[0]} rows and {grid[1]} columns")
        return [*token, places.unflatten(0, grid)]

    def give(ours: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*(token[None] for token in ours[:-1]), ours[-1].flatten(0, 1)])[None]

    return Change(take, give)


def image_processor(opened: Opened, place: dict[str, Any]) -> list[AttnViTImageProcessor]:
    """What prepares pictures for the model, where a file says how."""
    try:
        return [AttnViTImageProcessor.from_pretrained(opened.source, **place)]
    except OSError:
        return []


VIT = Family(
    title="a ViT of transformers",
    config_class=AttnViTConfig,
    configure=configure,
    table=table,
    head=("classifier.",),
    resampled=("model.embeddings.positions", "model.embeddings.patch_embedding.weight"),
    companions=image_processor,
)
