"""The authors' DETR (facebookresearch/detr): one .pth file, released or written by their training script."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import logging

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.interchange.detr_settings import AUTHORS
from hf_attn.interchange.detr_transformers import BODY, DETR, mask_head
from hf_attn.interchange.files import FileFormat
from hf_attn.interchange.loading import Opened
from hf_attn.interchange.names import STACKED, Names, Row, with_bias
from hf_attn.interchange.pickles import settings_of
from hf_attn.interchange.resnets import resnet_of_tensors, same_names

logger = logging.get_logger(__name__)

FEED_FORWARD = (("linear1", "feed_forward.up_proj"), ("linear2", "feed_forward.down_proj"))
LAYERS = {  # models/transformer.py: TransformerEncoderLayer and TransformerDecoderLayer
    "encoder": (("norm1", "self_attention_norm"), *FEED_FORWARD, ("norm2", "feed_forward_norm")),
    "decoder": (
        ("norm1", "self_attention_norm"),
        ("norm2", "cross_attention_norm"),
        *FEED_FORWARD,
        ("norm3", "feed_forward_norm"),
    ),
}
ATTENTION = {
    "encoder": (("self_attn", "self_attention"),),
    "decoder": (("self_attn", "self_attention"), ("multihead_attn", "cross_attention")),
}
CROSS_ATTENTION = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"  # Conditional DETR and others lack it
BACKBONE = "backbone.0.body."
DC5, DILATED = "detr-dc5-original", {"output_stride": 16}
SETTINGS = {  # of main.py, ours
    "nheads": ("num_attention_heads",),
    "dropout": ("dropout", "attention_dropout"),
    "aux_loss": ("auxiliary_loss",),
    "set_cost_class": ("class_cost",),
    "set_cost_bbox": ("box_cost",),
    "set_cost_giou": ("giou_cost",),
    "bbox_loss_coef": ("box_loss_coefficient",),
    "giou_loss_coef": ("giou_loss_coefficient",),
    "eos_coef": ("eos_coefficient",),
}
ABSENT = "N/A"
# COCO's categories by their ids, which have gaps: of 90 that were planned it has 80
COCO = (
    f"{ABSENT},person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,{ABSENT},"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    f"{ABSENT},backpack,umbrella,{ABSENT},{ABSENT},handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,"
    f"{ABSENT},wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,"
    f"cake,chair,couch,potted plant,bed,{ABSENT},dining table,{ABSENT},{ABSENT},toilet,{ABSENT},tv,laptop,mouse,"
    f"remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,{ABSENT},book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
).split(",")
OF_COCO = (len(COCO), 250)  # classes in the authors' models: of COCO, and of its panoptic segments, things first


def recognise(theirs: Mapping[str, torch.Tensor]) -> bool:
    root = _root(theirs)
    return {f"{root}{CROSS_ATTENTION}", f"{root}query_embed.weight"} <= theirs.keys()


def configure(theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the sizes do not tell, the settings of the training script do. Without those it is the authors': eight
    heads, dropout 0.1. Whether the last stage of the backbone is dilated (DC5) is unknown then, and the log says so.

    Raises:
        ValueError: for norms before attention, learned positions, or a backbone that is no ResNet.
    """
    is_dilated = settings_of(theirs).get("dilation")
    if is_dilated is None:
        logger.warning(
            "tensors do not tell DETR from DETR-DC5, the last stage of whose backbone is dilated, and this is read as "
            f"DETR; if it is DC5, give --format {DC5}, or backbone_kwargs={DILATED}"
        )
    return configure_dilated(theirs) if is_dilated else _configure(theirs)


def configure_dilated(theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The same for DC5, as it was asked for."""
    fields = _configure(theirs)
    return {**fields, "backbone_kwargs": {**fields["backbone_kwargs"], **DILATED}}


def _configure(theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    root = _root(theirs)
    for name, what in (
        ("transformer.encoder.norm.weight", "norms before attention (--pre_norm); this model has them after it"),
        ("backbone.1.row_embed.weight", "learned positions (--position_embedding learned); here they are sines"),
    ):
        if f"{root}{name}" in theirs:
            raise ValueError(f"it has {what}")
    queries, width = theirs[f"{root}query_embed.weight"].shape
    layers = {stack: _count(theirs, f"{root}transformer.{stack}.layers.") for stack in LAYERS}
    body, settings = f"{root}{BACKBONE}", settings_of(theirs)
    return {
        **resnet_of_tensors({name.removeprefix(body): theirs[name] for name in theirs if name.startswith(body)}),
        "hidden_size": width,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "intermediate_size": len(theirs[f"{root}transformer.decoder.layers.0.linear1.bias"]),
        "num_queries": queries,
        **_labels(len(theirs[f"{root}class_embed.bias"]) - 1),
        **{ours: settings[name] for name, fields in SETTINGS.items() if name in settings for ours in fields},
        **AUTHORS,
    }


def _labels(classes: int) -> dict[str, Any]:
    if classes not in OF_COCO:
        return {"num_labels": classes}
    names = [COCO[number] if number < len(COCO) else f"LABEL_{number}" for number in range(classes)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def table(config: AttnDetrConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    root = _root(theirs)
    rows = [
        *same_names(f"{root}{BACKBONE}", BODY, theirs),
        *with_bias(f"{root}input_proj", "model.tokens.input_projection"),
        Row(f"{root}query_embed.weight", "model.query_embedding.weight"),
    ]
    for stack, parts in LAYERS.items():
        layer, ours = f"{root}transformer.{stack}.layers.{{}}", f"model.{stack}.layers.{{}}"
        for name, our_name in ATTENTION[stack]:
            rows += _attention(f"{layer}.{name}", f"{ours}.{our_name}")
        for name, our_name in parts:
            rows += with_bias(f"{layer}.{name}", f"{ours}.{our_name}")
    rows += with_bias(f"{root}transformer.decoder.norm", "model.decoder.final_norm")
    rows += with_bias(f"{root}bbox_embed.layers.{{}}", "model.decoder.box_head.layers.{}")
    rows += with_bias(f"{root}class_embed", "class_head")
    return Names(rows, beside=mask_head(theirs))


def image_processor(opened: Opened, place: dict[str, Any]) -> list[AttnDetrImageProcessor]:
    """The authors' preparation of pictures, which is our default."""
    return [AttnDetrImageProcessor()]


def _attention(theirs: str, ours: str) -> list[Row]:
    """torch.nn.MultiheadAttention has one matrix for queries, keys and values."""
    rows = with_bias(f"{theirs}.out_proj", f"{ours}.out_proj")
    for part in ("weight", "bias"):
        rows.append(Row(f"{theirs}.in_proj_{part}", tuple(f"{ours}.{one}_proj.{part}" for one in "qkv"), STACKED))
    return rows


def _root(theirs: Mapping[str, torch.Tensor]) -> str:
    """What panoptic models have before the names of their detector."""
    return "detr." if f"detr.{CROSS_ATTENTION}" in theirs else ""


def _count(theirs: Mapping[str, torch.Tensor], start: str) -> int:
    return len({name.removeprefix(start).split(".")[0] for name in theirs if name.startswith(start)})


DETR_ORIGINAL = FileFormat(
    name="detr-original",
    title="a DETR of its authors",
    config_class=AttnDetrConfig,
    recognise=recognise,
    configure=configure,
    table=table,
    head=DETR.head,
    companions=image_processor,
)
DETR_DC5_ORIGINAL = replace(  # which has to be asked for
    DETR_ORIGINAL,
    name=DC5,
    title="a DETR-DC5 of its authors",
    recognise=lambda theirs: False,
    configure=configure_dilated,
)
