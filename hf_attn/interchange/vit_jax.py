"""Google's .npz files of JAX: google-research/vision_transformer (the paper's models, AugReg) and big_vision.

A kernel is (in, out), or with heads (in, heads, dimensions of a head). The oldest files also hold a layer under the
head, `pre_logits`, of pre-training on ImageNet-21k (section 3.1 of the paper: "a MLP with one hidden layer"). This
model has none, so both are left aside, with a warning, and a new head is needed, as the paper takes one, too.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.names import TRANSPOSED, VECTOR, Change, Names, Row
from hf_attn.interchange.vit_shared import OF_ALL, imagenet_labels, logger, positions, processor_of_file, side_or_pair

PREFIXES = ("", "opt/target/", "params/")  # of a whole file: weights alone, a checkpoint, big_vision

# (height, width, in, out) ↔ (out, in, height, width)
KERNEL = Change(lambda theirs: [theirs.permute(3, 2, 0, 1)], lambda ours: ours[0].permute(2, 3, 1, 0))


class Numbers(NamedTuple):
    """flax numbers the parts of a layer: vision_transformer all of them together, big_vision each kind by itself."""

    attention: str
    second_norm: str
    feed_forward: str
    positions: str


VISION_TRANSFORMER = Numbers(
    "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3", "Transformer/posembed_input/pos_embedding"
)
BIG_VISION = Numbers("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding")


def _to_heads(heads: int) -> Change:
    """(d, heads, d / heads) ↔ (d, d) of queries, keys or values"""
    return Change(
        lambda theirs: [theirs.flatten(1).t()],
        lambda ours: ours[0].t().unflatten(1, (heads, -1)),
    )


def _from_heads(heads: int) -> Change:
    """(heads, d / heads, d) ↔ (d, d) of the output"""
    return Change(
        lambda theirs: [theirs.flatten(0, 1).t()],
        lambda ours: ours[0].t().unflatten(0, (heads, -1)),
    )


def _bias_of_heads(heads: int) -> Change:
    """(heads, d / heads) ↔ (d,)"""
    return Change(lambda theirs: [theirs.flatten()], lambda ours: ours[0].unflatten(0, (heads, -1)))


# --- the configuration ---------------------------------------------------------------------------------------------


def recognise(tensors: Mapping[str, torch.Tensor]) -> bool:
    return _prefix(tensors) is not None


def configure(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What names and sizes show, and what the code of both is: flax' LayerNorm and its GELU, which is tanh's.

    Raises:
        ValueError: for hybrids with a ResNet below, and for pictures that were no squares.
    """
    prefix = _prefix(tensors) or ""
    numbers = _numbers(tensors, prefix)
    if f"{prefix}conv_root/kernel" in tensors:
        raise ValueError("it is a hybrid, with a ResNet (conv_root) below; this model cuts pictures in patches alone")
    patch_height, patch_width, channels, width = tensors[f"{prefix}embedding/kernel"].shape
    layer = f"{prefix}Transformer/encoderblock{'' if _in_one_piece(tensors, prefix) else '_0'}/"
    pooled = f"{prefix}MAPHead_0/probe" in tensors
    has_class_token = f"{prefix}cls" in tensors
    on_class_token = numbers is VISION_TRANSFORMER and has_class_token
    places = tensors.get(f"{prefix}{numbers.positions}")
    side = 14 if places is None else _side(places.shape[1] - int(on_class_token))
    classes = len(tensors[f"{prefix}head/bias"]) if f"{prefix}head/bias" in tensors else 0
    return {
        "hidden_size": width,
        "num_hidden_layers": _layers(tensors, prefix),
        "num_attention_heads": tensors[f"{layer}{numbers.attention}/query/kernel"].shape[-2],
        "intermediate_size": tensors[f"{layer}{numbers.feed_forward}/Dense_0/bias"].shape[-1],
        "activation_function": "gelu_pytorch_tanh",
        "image_size": side_or_pair(side * patch_height, side * patch_width),
        "patch_size": side_or_pair(patch_height, patch_width),
        "num_channels": channels,
        "class_token": has_class_token,
        "pooling": "attention" if pooled else "class_token" if has_class_token else "mean",
        "position_embedding": "sinusoids" if places is None else "learned",
        "position_on_class_token": on_class_token,
        **(imagenet_labels(classes) if classes and not _has_layer_under_head(tensors, prefix) else {}),
    }


def _prefix(tensors: Mapping[str, torch.Tensor]) -> str | None:
    found = [
        prefix
        for prefix in PREFIXES
        if {f"{prefix}embedding/kernel", f"{prefix}Transformer/encoder_norm/scale"} <= tensors.keys()
    ]
    return found[0] if found else None


def _numbers(tensors: Mapping[str, torch.Tensor], prefix: str) -> Numbers:
    old = f"{prefix}Transformer/encoderblock_0/{VISION_TRANSFORMER.attention}/query/kernel"
    return VISION_TRANSFORMER if old in tensors else BIG_VISION


def _in_one_piece(tensors: Mapping[str, torch.Tensor], prefix: str) -> bool:
    """Whether a tensor holds its like of all layers, as big_vision's `scan` has them."""
    return f"{prefix}Transformer/encoderblock/LayerNorm_0/scale" in tensors


def _has_layer_under_head(tensors: Mapping[str, torch.Tensor], prefix: str) -> bool:
    return f"{prefix}pre_logits/kernel" in tensors


def _layers(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    if _in_one_piece(tensors, prefix):
        return len(tensors[f"{prefix}Transformer/encoderblock/LayerNorm_0/scale"])
    return sum(
        re.fullmatch(rf"{prefix}Transformer/encoderblock_\d+/LayerNorm_0/scale", name) is not None for name in tensors
    )


def _side(patches: int) -> int:
    side = round(patches**0.5)
    if side**2 != patches:
        raise ValueError(f"{patches} positions of patches are no square, and no file says which rectangle")
    return side


# --- the names -----------------------------------------------------------------------------------------------------


def table(config: AttnViTConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    prefix = _prefix(theirs) or ""
    numbers = _numbers(theirs, prefix)
    places = f"{prefix}{numbers.positions}"
    rows = [
        Row(f"{prefix}embedding/kernel", "model.embeddings.patch_embedding.weight", KERNEL),
        Row(f"{prefix}embedding/bias", "model.embeddings.patch_embedding.bias"),
        Row(f"{prefix}cls", "model.embeddings.class_token", VECTOR),
        *positions(config, places, "", 0, theirs[places].shape[1] if places in theirs else 0),
    ]
    layers = _layer(f"{prefix}Transformer/encoderblock_{{}}/", numbers, config.num_attention_heads)
    if _in_one_piece(theirs, prefix):
        layers = [_of_all_layers(row, config.num_hidden_layers) for row in layers]
    rows += [*layers, *_norm(f"{prefix}Transformer/encoder_norm", "model.final_norm")]
    rows += _attention_pooling(f"{prefix}MAPHead_0", config.num_attention_heads)
    return Names([*rows, *_head(theirs, prefix)], beside=_beside(theirs, prefix))


def _layer(theirs: str, numbers: Numbers, heads: int) -> list[Row]:
    ours = "model.layers.{}."
    return [
        *_norm(f"{theirs}LayerNorm_0", f"{ours}attention_norm"),
        *_attention(f"{theirs}{numbers.attention}", f"{ours}attention", heads),
        *_norm(f"{theirs}{numbers.second_norm}", f"{ours}feed_forward_norm"),
        *_feed_forward(f"{theirs}{numbers.feed_forward}", f"{ours}feed_forward"),
    ]


def _of_all_layers(row: Row, layers: int) -> Row:
    """(layers, ...) ↔ one for each layer"""
    change = Change(
        lambda theirs: [part for layer in theirs for part in row.change.take(layer)],
        lambda ours: torch.stack([row.change.give([layer]) for layer in ours]),
    )
    ours = tuple(str(row.ours).replace("{}", str(layer)) for layer in range(layers))
    return Row(str(row.theirs).replace("encoderblock_{}", "encoderblock"), ours, change)


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}/scale", f"{ours}.weight"), Row(f"{theirs}/bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}/kernel", f"{ours}.weight", TRANSPOSED), Row(f"{theirs}/bias", f"{ours}.bias")]


def _attention(theirs: str, ours: str, heads: int) -> list[Row]:
    rows = [
        Row(f"{theirs}/out/kernel", f"{ours}.out_proj.weight", _from_heads(heads)),
        Row(f"{theirs}/out/bias", f"{ours}.out_proj.bias"),
    ]
    for part in ("query", "key", "value"):
        mine = f"{ours}.{part[0]}_proj"
        rows.append(Row(f"{theirs}/{part}/kernel", f"{mine}.weight", _to_heads(heads)))
        rows.append(Row(f"{theirs}/{part}/bias", f"{mine}.bias", _bias_of_heads(heads)))
    return rows


def _feed_forward(theirs: str, ours: str) -> list[Row]:
    return _linear(f"{theirs}/Dense_0", f"{ours}.up_proj") + _linear(f"{theirs}/Dense_1", f"{ours}.down_proj")


def _attention_pooling(theirs: str, heads: int) -> list[Row]:
    ours = "model.attention_pooling"
    return [
        Row(f"{theirs}/probe", f"{ours}.query", VECTOR),
        *_attention(f"{theirs}/MultiHeadDotProductAttention_0", f"{ours}.attention", heads),
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}.feed_forward_norm"),
        *_feed_forward(f"{theirs}/MlpBlock_0", f"{ours}.feed_forward"),
    ]


def _head(theirs: Mapping[str, torch.Tensor], prefix: str) -> list[Row]:
    return [] if _has_layer_under_head(theirs, prefix) else _linear(f"{prefix}head", "classifier")


def _beside(theirs: Mapping[str, torch.Tensor], prefix: str) -> list[str]:
    """What a checkpoint of training has beside the weights, and a head that reads another layer than ours."""
    beside = [r"opt/state/.*"] if prefix == "opt/target/" else []
    if _has_layer_under_head(theirs, prefix):
        logger.warning(f"{prefix}pre_logits, a layer under the head, and the head are left aside: begin a new head")
        beside.append(rf"{prefix}(pre_logits|head)/(kernel|bias)")
    return beside


def processor_settings(config: AttnViTConfig) -> dict[str, Any]:
    """What both repositories do to a picture: resized to exactly this size, bilinear, values from -1 to 1."""
    height, width = config.image_shape
    return {"size": {"height": height, "width": width}, "resample": "bilinear", "image_mean": 0.5, "image_std": 0.5}


JAX_FILE = FileFormat(
    name="vit-jax",
    title="weights of a ViT of Google's, in JAX",
    recognise=recognise,
    configure=configure,
    table=table,
    companions=processor_of_file(processor_settings),
    **OF_ALL,
)
