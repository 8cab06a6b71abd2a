"""transformers' ViT, DeiT, DINOv2 and MAE, by the names on disk, as on the Hub, which are older than those in memory.

All are the network of Dosovitskiy et al. 2021, figure 1. DeiT (Touvron et al. 2021, section 4) adds a token of
distillation, here a register; DINOv2 (Oquab et al. 2024) LayerScale, and registers (Darcet et al. 2024). What is left
aside is said: ViT's pooler, a tanh layer that no classifier reads, and the decoder of MAE (He et al. 2022).
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from hf_attn.configuration_vit import AttnViTConfig, height_and_width
from hf_attn.interchange.loading import Family
from hf_attn.interchange.names import VECTOR, Change, Names, Row, with_bias
from hf_attn.interchange.vit_shared import (
    MEAN_OF_BIASES,
    MEAN_OF_HEADS,
    OF_ALL,
    ROW,
    image_processor,
    logger,
    positions,
    with_bias_left_out,
)

SAME_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
LABELS = ("id2label", "label2id", "problem_type")
BACKBONE = ("out_features", "out_indices", "apply_layernorm")
PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")  # of the encoder below a head

ATTENTION = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
)
LAYER = (  # the norms come first in a ViT
    ("layernorm_before", "attention_norm"),
    ("attention.output.dense", "attention.out_proj"),
    ("layernorm_after", "feed_forward_norm"),
    ("intermediate.dense", "feed_forward.up_proj"),
    ("output.dense", "feed_forward.down_proj"),
)
DINO_LAYER = (
    ("norm1", "attention_norm"),
    ("attention.output.dense", "attention.out_proj"),
    ("norm2", "feed_forward_norm"),
    ("mlp.fc1", "feed_forward.up_proj"),
    ("mlp.fc2", "feed_forward.down_proj"),
)
SCALES = (("layer_scale1.lambda1", "attention_scale.weight"), ("layer_scale2.lambda1", "feed_forward_scale.weight"))
IN_MEMORY = {  # names on disk → those of transformers 5 in memory
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
PIXELS = Change(
    lambda theirs: [theirs[:, :, 0, 0]], lambda ours: ours[0][:, :, None, None]
)  # 1×1 convolution ↔ linear


# --- the configuration ---------------------------------------------------------------------------------------------


def configure_vit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    said = _with_defaults(theirs)
    if _is(said, "ForMaskedImageModeling") and height_and_width(said["patch_size"]) != (said["encoder_stride"],) * 2:
        raise ValueError(
            f"encoder_stride {said['encoder_stride']} is not patch_size {said['patch_size']}: here a patch becomes as "
            "many pixels as it was"
        )
    return {**_same(theirs, said), "intermediate_size": said["intermediate_size"]}


def configure_deit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """With two heads, the mean of what they say counts, as in transformers; with one, it reads the class token."""
    pooling = "prefix_tokens" if _is(theirs, "ForImageClassificationWithTeacher") else "class_token"
    return {**configure_vit(theirs), "num_register_tokens": 1, "pooling": pooling}


def configure_dinov2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Stochastic depth, which no released model has, is as strong in each of their layers, and grows with ours."""
    said = _with_defaults(theirs)
    if said["use_swiglu_ffn"]:
        raise ValueError("use_swiglu_ffn is true (DINOv2-giant): this model's feed-forward layers have no gate")
    if not said["reshape_hidden_states"]:
        raise ValueError("reshape_hidden_states is false: this model's feature maps are grids; set it to true")
    return {
        **_same(theirs, said),
        **{name: theirs[name] for name in BACKBONE if name in theirs},
        "intermediate_size": int(said["hidden_size"] * said["mlp_ratio"]),
        "layer_scale_init": said["layerscale_value"],
        "drop_path_rate": said["drop_path_rate"],
        "num_register_tokens": said.get("num_register_tokens", 0),
        "pooling": "class_token_and_mean" if _is(said, "ForImageClassification") else "class_token",
        "antialias_positions": said["model_type"] == "dinov2_with_registers",
    }


def _with_defaults(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What they say, and where a file leaves it out, transformers' default."""
    return {**CONFIG_MAPPING[theirs["model_type"]]().to_dict(), **theirs}


def _is(theirs: Mapping[str, Any], head: str) -> bool:
    return any(name.endswith(head) for name in theirs.get("architectures") or ())


def _same(theirs: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What all have. Queries, keys and values without a bias get zeros for one."""
    return {
        **{name: said[name] for name in SAME_FIELDS},
        **{name: theirs[name] for name in LABELS if name in theirs},
        "activation_function": said["hidden_act"],
        "dropout": said["hidden_dropout_prob"],
        "attention_dropout": said["attention_probs_dropout_prob"],
    }


# --- the names -----------------------------------------------------------------------------------------------------


def table(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Names of ViT, DeiT and MAE."""
    base = _base(theirs)
    if any(name.startswith(f"{base}pooler.") for name in theirs):
        logger.warning("The pooler is left aside: pooler_output is the class token after the final norm, without tanh")
    rows = _embeddings(config, theirs, base, "distillation_token", VECTOR)
    rows += _layers(theirs, f"{base}encoder.layer.{{}}.", f"{base}layers.{{}}.", LAYER)
    return Names([*rows, *_heads(base)], beside=[rf"{base}pooler\..*"])


def table_mae(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Names of the encoder of MAE. Its positions, sinusoids that are not trained there, are learned ones here."""
    base = _base(theirs)
    rows = _embeddings(config, theirs, base, "distillation_token", VECTOR)
    rows += _layers(theirs, f"{base}encoder.layer.{{}}.", f"{base}layers.{{}}.", LAYER)
    return Names([*rows, *with_bias(f"{base}layernorm", "model.final_norm")], beside=[r"decoder\..*"])


def table_dinov2(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    base = _base(theirs)
    layer = f"{base}encoder.layer.{{}}."
    rows = _embeddings(config, theirs, base, "register_tokens", ROW)
    rows += _layers(theirs, layer, layer, DINO_LAYER)
    rows += [Row(f"{layer}{name}", f"model.layers.{{}}.{ours}") for name, ours in SCALES]
    return Names([*rows, *_heads(base)])


def _base(theirs: Mapping[str, torch.Tensor]) -> str:
    return next((base for base in PREFIXES if any(name.startswith(base) for name in theirs)), "")


def _embeddings(
    config: AttnViTConfig, theirs: Mapping[str, torch.Tensor], base: str, registers: str, mask: Change
) -> list[Row]:
    places = f"{base}embeddings.position_embeddings"
    if places not in theirs:
        raise ValueError(f"it lacks {places}")
    return [
        Row(f"{base}embeddings.cls_token", "model.embeddings.class_token", VECTOR),
        Row(f"{base}embeddings.mask_token", "model.embeddings.mask_token", mask),
        *positions(
            config,
            places,
            f"{base}embeddings.{registers}",
            count=config.num_register_tokens,
            length=theirs[places].shape[1],
        ),
        *with_bias(f"{base}embeddings.patch_embeddings.projection", "model.embeddings.patch_embedding"),
    ]


def _layers(
    theirs: Mapping[str, torch.Tensor], on_disk: str, in_memory: str, names: tuple[tuple[str, str], ...]
) -> list[Row]:
    rows = []
    for layer, renamed in ((on_disk, {}), (in_memory, IN_MEMORY)):
        for name, ours in (*ATTENTION, *names):
            full, mine = layer + renamed.get(name, name), f"model.layers.{{}}.{ours}"
            without = (name, ours) in ATTENTION and _lacks_bias(theirs, full)
            rows += [with_bias_left_out(full, [mine])] if without else with_bias(full, mine)
    return rows


def _lacks_bias(theirs: Mapping[str, torch.Tensor], layer: str) -> bool:
    first = layer.replace("{}", "0")
    return f"{first}.weight" in theirs and f"{first}.bias" not in theirs


def _heads(base: str) -> list[Row]:
    return [
        *with_bias(f"{base}layernorm", "model.final_norm"),
        *with_bias("classifier", "classifier"),
        Row("decoder.0.weight", "decoder.weight", PIXELS),
        Row("decoder.0.bias", "decoder.bias"),
        Row(("cls_classifier.weight", "distillation_classifier.weight"), "classifier.weight", MEAN_OF_HEADS),
        Row(("cls_classifier.bias", "distillation_classifier.bias"), "classifier.bias", MEAN_OF_BIASES),
    ]


# --- the families --------------------------------------------------------------------------------------------------

SAME = {**OF_ALL, "companions": image_processor}
VIT = Family(title="a ViT of transformers", configure=configure_vit, table=table, **SAME)
DEIT = Family(title="a DeiT of transformers", configure=configure_deit, table=table, **SAME)
VIT_MAE = Family(title="an MAE of transformers", configure=configure_vit, table=table_mae, **SAME)
DINOV2 = Family(title="a DINOv2 of transformers", configure=configure_dinov2, table=table_dinov2, **SAME)
DINOV2_WITH_REGISTERS = Family(
    title="a DINOv2 with registers of transformers", configure=configure_dinov2, table=table_dinov2, **SAME
)
FAMILIES = {
    "vit": VIT,
    "deit": DEIT,
    "vit_mae": VIT_MAE,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_WITH_REGISTERS,
}
