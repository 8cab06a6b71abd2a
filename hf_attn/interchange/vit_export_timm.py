"""Our Vision Transformer as a directory that timm reads.

    from hf_attn.interchange.vit_export_timm import export_timm
    export_timm(model, "for-timm", processor)
    timm.create_model("local-dir:for-timm", pretrained=True)

timm's config.json names one of its architectures, and arguments that may change all of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_conversion import TIMM_CROP_MODES
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.interchange.timm_architectures import POOLINGS
from hf_attn.interchange.vit_shared import POSITIONS, logger, model_tensors
from hf_attn.interchange.vit_timm import table
from hf_attn.positions import grid_sinusoids
from hf_attn.training.checkpoints import whole_directory

ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # by what no argument can say
DISTILLED = "deit_base_distilled_patch16_224"
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
THEIR_POOLINGS = {ours: theirs for theirs, ours in POOLINGS.items()}


def export_timm(model: Any, output_dir: str | Path, processor: AttnViTImageProcessor | None = None) -> dict[str, Any]:
    """Write a model for timm. Sinusoids are written as learned positions.

    Args:
        model: AttnViTForImageClassification or AttnViTModel.
        output_dir: one that exists is replaced, once all is written.
        processor: what prepares pictures; without it, timm takes its default for any model.

    Returns:
        The arguments of timm's architecture.

    Raises:
        ValueError: for what timm lacks; the message names it.
    """
    config, tensors = model.config, model_tensors(model)
    if lacking := list(_lacking(config, tensors)):
        raise ValueError(f"timm lacks {', '.join(lacking)}")
    if not config.antialias_positions:
        logger.warning("timm resamples positions in another way: answers differ for pictures of other sizes")
    if config.position_embedding == "sinusoids":
        rows, columns = config.grid_shape
        tensors[POSITIONS] = grid_sinusoids(rows, columns, config.hidden_size).to(model.dtype)
    arguments = _arguments(config, len(tensors.get("classifier.bias", ())))
    architecture = DISTILLED if config.pooling == "prefix_tokens" else ARCHITECTURES[config.layer_norm_eps]
    preprocessing = {} if processor is None else timm_settings(processor)
    with torch.device("meta"):
        theirs = timm.create_model(
            architecture,
            pretrained_cfg=_pretrained_cfg(config, architecture, preprocessing),
            **arguments,
        )
    given = table(config, theirs.state_dict()).give(tensors)
    theirs.load_state_dict({name: tensor.contiguous() for name, tensor in given.items()}, assign=True)
    labels = list(config.id2label.values()) if "classifier.bias" in tensors else []
    named = any(label != f"LABEL_{index}" for index, label in enumerate(labels))
    with whole_directory(Path(output_dir)) as temporary:
        save_for_hf(theirs, str(temporary), {"label_names": labels} if named else None, safe_serialization=True)
    return arguments


def _lacking(config: AttnViTConfig, tensors: dict[str, torch.Tensor]) -> Iterator[str]:
    if "decoder.weight" in tensors:
        yield "masked image modelling: export the encoder, an AttnViTModel"
    if config.pooling not in (*THEIR_POOLINGS, "prefix_tokens"):
        yield f"pooling {config.pooling!r}"
    elif config.pooling == "prefix_tokens" and (config.num_register_tokens != 1 or config.layer_norm_eps != 1e-6):
        yield "pooling 'prefix_tokens' but for DeiT's, with one register and layer_norm_eps 1e-6"
    if config.activation_function not in ACTIVATIONS:
        yield f"activation_function {config.activation_function!r}"
    if config.layer_norm_eps not in ARCHITECTURES:
        known = " or ".join(map(str, ARCHITECTURES))
        yield (
            f"layer_norm_eps {config.layer_norm_eps}: set {known} in config.json, if answers may differ by that "
            "(1e-12 and 1e-06 make 2e-4 to 2e-3 in the logits of a random ViT-base)"
        )
    rows, columns = config.grid_shape
    padded = rows * config.patch_shape[0], columns * config.patch_shape[1]
    if padded != config.image_shape:
        yield f"an image_size ({config.image_size}) that is padded"


def _arguments(config: AttnViTConfig, classes: int) -> dict[str, Any]:
    distilled = config.pooling == "prefix_tokens"
    on_prefix = config.position_embedding == "learned" and config.class_token and config.position_on_class_token
    return {
        "img_size": list(config.image_shape),
        "patch_size": list(config.patch_shape),
        "in_chans": config.num_channels,
        "num_classes": classes,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,  # which timm rounds down
        "qk_norm": config.query_key_norm,
        "init_values": None if config.layer_scale_init is None else 1e-5,
        "class_token": config.class_token,
        "reg_tokens": 0 if distilled else config.num_register_tokens,
        "global_pool": "token" if distilled else THEIR_POOLINGS[config.pooling],
        "fc_norm": config.final_norm == "after_pooling",
        "pos_embed": "none" if config.position_embedding == "none" else "learn",
        "no_embed_class": not on_prefix,
        "pre_norm": False,
        "act_layer": ACTIVATIONS[config.activation_function],
        "dynamic_img_pad": config.pad_to_patch,
    }


def _pretrained_cfg(config: AttnViTConfig, architecture: str, preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Instead of what timm knows of the weights that it has for that architecture."""
    return {
        "architecture": architecture,
        "input_size": (config.num_channels, *config.image_shape),
        "fixed_input_size": True,
        "num_classes": config.num_labels,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist") if architecture == DISTILLED else "head",
        **preprocessing,
    }


def timm_settings(processor: AttnViTImageProcessor) -> dict[str, Any]:
    """What `timm.data.create_transform` takes, of its `pretrained_cfg`.

    Raises:
        ValueError: for what it cannot do.
    """
    if not processor.do_resize or processor.size is None:
        raise ValueError("do_resize False: timm resizes all pictures; set a size")
    if not processor.do_rescale:
        raise ValueError("do_rescale False: timm reads pictures of grey levels")
    if processor.resize_mode == "longest_edge" and not processor.do_normalize:
        raise ValueError("do_normalize False with resize_mode 'longest_edge': timm fills pictures with its mean alone")
    if processor.background is not None:
        logger.warning("timm lays nothing under transparent pictures; it drops the transparency")
    if processor.crop_offset == "floor" and (processor.crop_pct < 1 or processor.resize_mode != "exact"):
        logger.warning("timm crops at the even neighbour where the middle falls between pixels, a pixel elsewhere")
    modes = {ours: theirs for theirs, ours in TIMM_CROP_MODES.items()}
    channels = processor.num_channels
    return {
        "input_size": (channels, processor.size["height"], processor.size["width"]),
        "interpolation": processor.resample.name.lower(),
        "mean": tuple(processor.image_mean) if processor.do_normalize else (0.0,) * channels,
        "std": tuple(processor.image_std) if processor.do_normalize else (1.0,) * channels,
        "crop_pct": processor.crop_pct,
        "crop_mode": modes[processor.resize_mode],
    }
