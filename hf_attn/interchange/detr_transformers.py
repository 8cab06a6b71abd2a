"""transformers' DETR, as facebook/detr-resnet-* are on the Hub, by the names on disk, which are older than those in
memory; and back again."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, logging

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.interchange.companions import companion
from hf_attn.interchange.detr_settings import configure, their_config, their_processor
from hf_attn.interchange.loading import COUNTER, Family, Opened
from hf_attn.interchange.names import Names, Row, counted, with_bias
from hf_attn.interchange.resnets import same_names, transformers_names
from hf_attn.modeling_detr import AttnDetrForObjectDetection
from hf_attn.training.checkpoints import whole_directory

logger = logging.get_logger(__name__)

SELF_ATTENTION = (  # Carion et al. 2020, figure 10
    ("self_attn.q_proj", "self_attention.q_proj"),
    ("self_attn.k_proj", "self_attention.k_proj"),
    ("self_attn.v_proj", "self_attention.v_proj"),
    ("self_attn.out_proj", "self_attention.out_proj"),
    ("self_attn_layer_norm", "self_attention_norm"),
)
CROSS_ATTENTION = (
    ("encoder_attn.q_proj", "cross_attention.q_proj"),
    ("encoder_attn.k_proj", "cross_attention.k_proj"),
    ("encoder_attn.v_proj", "cross_attention.v_proj"),
    ("encoder_attn.out_proj", "cross_attention.out_proj"),
    ("encoder_attn_layer_norm", "cross_attention_norm"),
)
FEED_FORWARD = (
    ("fc1", "feed_forward.up_proj"),
    ("fc2", "feed_forward.down_proj"),
    ("final_layer_norm", "feed_forward_norm"),
)
LAYERS = {
    "encoder": (*SELF_ATTENTION, *FEED_FORWARD),
    "decoder": (*SELF_ATTENTION, *CROSS_ATTENTION, *FEED_FORWARD),
}
BACKBONE, BODY = "backbone.conv_encoder.model.", "model.tokens.backbone.body."
IN_MEMORY = {"out_proj": "o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2", BACKBONE: "backbone.model."}
MASK_HEAD = r"(mask_head|bbox_attention)\..*"


def table(config: AttnDetrConfig, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Of a DetrForObjectDetection, a DetrModel or a DetrForSegmentation, of which the mask head is left out."""
    root = "detr." if any(name.startswith("detr.") for name in theirs) else ""
    base = f"{root}model." if any(name.startswith(f"{root}model.") for name in theirs) else root
    rewritten = {} if any(".out_proj." in name for name in theirs) else IN_MEMORY
    body = base + rewritten.get(BACKBONE, BACKBONE)
    if any(name.startswith(f"{body}_backbone.") for name in theirs):  # transformers' wrapper of timm
        body += "_backbone."
    is_timm = f"{body}embedder.embedder.convolution.weight" not in theirs
    rows = same_names(body, BODY, theirs) if is_timm else transformers_names(body, BODY)
    return Names([*_rows(root, base, rewritten), *rows], beside=mask_head(theirs))


def mask_head(theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Patterns of what a panoptic checkpoint has beside its detector, which the log says."""
    found = [name for name in theirs if re.fullmatch(MASK_HEAD, name)]
    if found:
        logger.warning(
            "this is a panoptic checkpoint: its detector is loaded, and its mask head (mask_head and bbox_attention, "
            f"{counted(found, 'tensor')}) is left out, for this model finds boxes and no masks"
        )
    return [MASK_HEAD] if found else []


def _rows(root: str, base: str, rewritten: Mapping[str, str]) -> list[Row]:
    """All but the backbone; `root` is before the heads, `base` before the rest."""
    rows = [
        *with_bias(f"{base}input_projection", "model.tokens.input_projection"),
        Row(f"{base}query_position_embeddings.weight", "model.query_embedding.weight"),
    ]
    for stack, parts in LAYERS.items():
        for name, ours in parts:
            name = ".".join(rewritten.get(part, part) for part in name.split("."))
            rows += with_bias(f"{base}{stack}.layers.{{}}.{name}", f"model.{stack}.layers.{{}}.{ours}")
    rows += with_bias(f"{base}decoder.layernorm", "model.decoder.final_norm")
    rows += with_bias(f"{root}bbox_predictor.layers.{{}}", "model.decoder.box_head.layers.{}")
    return rows + with_bias(f"{root}class_labels_classifier", "class_head")


def image_processor(opened: Opened, place: dict[str, Any]) -> list[AttnDetrImageProcessor]:
    """What prepares pictures for the model, where a file says how."""
    found = companion(AttnDetrImageProcessor, opened.source, (IMAGE_PROCESSOR_NAME,), place)
    return [] if found is None else [found]


DETR = Family(
    title="a DETR of transformers",
    config_class=AttnDetrConfig,
    configure=configure,
    table=table,
    head=("class_head.", "model.decoder.box_head."),
    head_of_base=("model.decoder.box_head.",),
    companions=image_processor,
)


def export_transformers(
    model: AttnDetrForObjectDetection,
    output_dir: str | os.PathLike,
    image_processor: AttnDetrImageProcessor | None = None,
) -> Path:
    """Write a directory that transformers' `DetrForObjectDetection.from_pretrained` loads, with equal outputs.

    There, batch norm is frozen in any case, and auxiliary losses are off: on, transformers computes another network.

    Args:
        output_dir: one that exists is replaced, once all is written.
        image_processor: to be written beside the model, for transformers' `DetrImageProcessor`.

    Raises:
        ValueError: for a model or a processor that transformers' DETR cannot express.
    """
    output_dir = Path(output_dir)
    settings = their_config(model)
    of_pictures = None if image_processor is None else their_processor(image_processor)
    state = {name: weight for name, weight in model.state_dict().items() if not name.endswith(COUNTER)}
    weights = {name: weight.contiguous() for name, weight in names_to_give(state).give(state).items()}
    with whole_directory(output_dir) as temporary:
        save_file(weights, temporary / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        _write(temporary / CONFIG_NAME, settings)
        if of_pictures is not None:
            _write(temporary / IMAGE_PROCESSOR_NAME, of_pictures)
    return output_dir


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def names_to_give(ours: Iterable[str]) -> Names:
    """The names on disk of a DetrForObjectDetection, for these of ours."""
    body = [Row(f"model.{BACKBONE}{name.removeprefix(BODY)}", name) for name in ours if name.startswith(BODY)]
    return Names([*_rows("", "model.", {}), *body])
