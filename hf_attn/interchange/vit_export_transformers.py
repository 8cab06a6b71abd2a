"""Our Vision Transformer as a directory that transformers reads as its ViT or, what that lacks, as DINOv2.

    from hf_attn.interchange.vit_export_transformers import export_transformers
    export_transformers(model, "for-transformers", processor)

DINOv2 has LayerScale, registers, and a classifier that reads the class token and the mean of the patches side by side,
so that one that reads only one of the two has zeros for the other there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_resize import size_before_crop
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.interchange.vit_shared import logger, model_tensors
from hf_attn.interchange.vit_transformers import table, table_dinov2
from hf_attn.modeling_vit import AttnViTForImageClassification, AttnViTForMaskedImageModeling, AttnViTModel
from hf_attn.training.checkpoints import whole_directory

HEADS = {  # what the class of theirs is called beside its family
    AttnViTForImageClassification: "ForImageClassification",
    AttnViTForMaskedImageModeling: "ForMaskedImageModeling",
    AttnViTModel: "Model",
}
NAMES = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
WHITE = [255, 255, 255]


def export_transformers(
    model: Any, output_dir: str | Path, processor: AttnViTImageProcessor | None = None
) -> PreTrainedConfig:
    """Write a model for transformers, by the names on disk, as the Hub has them.

    An encoder without a head becomes ViTModel, which is to be loaded by `add_pooling_layer=False`, for its pooler is
    another layer; or Dinov2Model. What prepares pictures is written where `processor` says it.

    Args:
        model: AttnViTForImageClassification, AttnViTForMaskedImageModeling or AttnViTModel.
        output_dir: one that exists is replaced, once all is written.

    Returns:
        The configuration written.

    Raises:
        ValueError: for what neither format has; the message names it.
    """
    tensors = model_tensors(model)
    head = next(name for ours, name in HEADS.items() if isinstance(model, ours))
    kind, lacking = _kind(model.config, head)
    if lacking:
        raise ValueError(f"transformers' {NAMES[kind]} lacks {', '.join(lacking)}; timm may have it")
    settings = None if processor is None else transformers_settings(processor)
    config = _their_config(kind, model, head)
    names = (table if kind == "vit" else table_dinov2)(model.config, _their_positions(kind, model.config, head))
    given = names.give(tensors if kind == "vit" else _as_dinov2(tensors, kind, model.config))
    with whole_directory(Path(output_dir)) as temporary:
        config.save_pretrained(temporary)
        save_file(
            {name: tensor.contiguous() for name, tensor in given.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        if settings is not None:
            text = json.dumps(settings, indent=2) + "\n"
            (temporary / IMAGE_PROCESSOR_NAME).write_text(text, encoding="utf-8")
    return config


def _kind(config: AttnViTConfig, head: str) -> tuple[str, list[str]]:
    """The family that comes nearest, and what it lacks."""
    plain = config.layer_scale_init is None and not config.num_register_tokens and config.pooling == "class_token"
    if plain or head == "ForMaskedImageModeling":
        return "vit", [*_lacking(config), *_lacking_vit(config, head)]
    kind = "dinov2_with_registers" if config.num_register_tokens else "dinov2"
    if config.antialias_positions != (kind == "dinov2_with_registers"):
        logger.warning(f"{NAMES[kind]} resamples positions in another way: answers differ for pictures of other sizes")
    return kind, [*_lacking(config), *_lacking_dinov2(config)]


def _lacking(config: AttnViTConfig) -> Iterator[str]:
    if config.position_embedding != "learned":
        yield f"position_embedding {config.position_embedding!r}"
    if not config.class_token:
        yield "models without a class token"
    elif not config.position_on_class_token:
        yield "a class token without a position"
    if config.query_key_norm:
        yield "norms of queries and keys (query_key_norm)"
    if config.final_norm != "before_pooling":
        yield f"final_norm {config.final_norm!r}"
    if config.pad_to_patch:
        yield "pad_to_patch"


def _lacking_vit(config: AttnViTConfig, head: str) -> Iterator[str]:
    if config.layer_scale_init is not None:
        yield "LayerScale"
    if config.num_register_tokens:
        yield "registers"
    if head == "ForMaskedImageModeling" and config.patch_shape[0] != config.patch_shape[1]:
        yield f"a decoder for patches of {config.patch_shape[0]}x{config.patch_shape[1]}"


def _lacking_dinov2(config: AttnViTConfig) -> Iterator[str]:
    if config.pooling not in ("class_token", "mean", "class_token_and_mean"):
        yield f"pooling {config.pooling!r}"
    if config.intermediate_size % config.hidden_size:
        yield f"an intermediate_size ({config.intermediate_size}) that is no multiple of hidden_size"


def _their_config(kind: str, model: Any, head: str) -> PreTrainedConfig:
    config = model.config
    fields = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.activation_function,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "id2label": dict(config.id2label),
        "label2id": {label: index for index, label in config.id2label.items()},
        "problem_type": config.problem_type,
        "architectures": [NAMES[kind] + head],
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if kind == "vit":
        fields |= {"intermediate_size": config.intermediate_size, "encoder_stride": config.patch_shape[0]}
    else:
        fields |= {
            "mlp_ratio": config.intermediate_size // config.hidden_size,
            "layerscale_value": 1.0 if config.layer_scale_init is None else config.layer_scale_init,
            "drop_path_rate": config.drop_path_rate,
            "apply_layernorm": config.apply_layernorm,
        }
    if kind == "dinov2":
        fields["use_mask_token"] = False
    if kind == "dinov2_with_registers":
        fields["num_register_tokens"] = config.num_register_tokens
    return CONFIG_MAPPING[kind](**fields)


def _their_positions(kind: str, config: AttnViTConfig, head: str) -> dict[str, torch.Tensor]:
    """What the table of names has to know of their tensors: the prefix, and the number of positions."""
    rows, columns = config.grid_shape
    base = "" if head == "Model" else f"{kind}."
    return {f"{base}embeddings.position_embeddings": torch.empty(1, 1 + rows * columns, 1, device="meta")}


def _as_dinov2(tensors: dict[str, torch.Tensor], kind: str, config: AttnViTConfig) -> dict[str, torch.Tensor]:
    """With what DINOv2 always has: LayerScale, a mask token beside registers, and a head on twice as much."""
    ones = torch.ones_like(tensors["model.final_norm.weight"])
    added = {}
    if config.layer_scale_init is None:
        for layer in range(config.num_hidden_layers):
            added[f"model.layers.{layer}.attention_scale.weight"] = ones.clone()
            added[f"model.layers.{layer}.feed_forward_scale.weight"] = ones.clone()
    if kind == "dinov2_with_registers":
        added["model.embeddings.mask_token"] = torch.zeros_like(ones)
    if "classifier.weight" in tensors and config.pooling != "class_token_and_mean":
        weight = tensors["classifier.weight"]
        both = [weight, torch.zeros_like(weight)]
        added["classifier.weight"] = torch.cat(both if config.pooling == "class_token" else both[::-1], dim=1)
    return {**tensors, **added}


def transformers_settings(processor: AttnViTImageProcessor) -> dict[str, Any]:
    """Settings of transformers' ViTImageProcessor, of DeiTImageProcessor, which crops, or of BitImageProcessor, which
    keeps proportions.

    Raises:
        ValueError: for what none of them can.
    """
    if processor.num_channels != 3:
        raise ValueError(f"num_channels {processor.num_channels}: transformers' processors give RGB")
    if processor.background not in (None, WHITE):
        raise ValueError(f"background {processor.background}: transformers lays white under transparent pictures")
    settings = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": processor.do_normalize,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "resample": int(processor.resample),
        **({"do_convert_rgb": True} if processor.background else {}),
    }
    if not processor.do_resize or processor.size is None:
        return {**settings, "image_processor_type": "ViTImageProcessor", "do_resize": False}
    settings["do_resize"] = True
    size = (processor.size["height"], processor.size["width"])
    before = size_before_crop(size, processor.crop_pct)
    if processor.resize_mode == "exact" and before == size:
        return {**settings, "image_processor_type": "ViTImageProcessor", "size": processor.size}
    if processor.crop_offset == "round":
        logger.warning("transformers crops up and left where the middle falls between pixels, a pixel elsewhere")
    cropped = {**settings, "do_center_crop": True, "crop_size": processor.size}
    if processor.resize_mode == "exact":
        enlarged = {"height": before[0], "width": before[1]}
        return {**cropped, "image_processor_type": "DeiTImageProcessor", "size": enlarged}
    if processor.resize_mode == "longest_edge" or size[0] != size[1]:
        raise ValueError(
            f"resize_mode {processor.resize_mode!r} to {size[0]}x{size[1]}: transformers' processors keep proportions "
            "only by the shortest edge, for a square"
        )
    return {**cropped, "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": before[0]}}
