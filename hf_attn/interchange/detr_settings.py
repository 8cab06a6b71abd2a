"""transformers' DetrConfig and DetrImageProcessor, and ours, in both directions.

Training is the authors', not transformers': every decoder layer learns, what follows the activation is dropped out as
the rest is, and batch norm is frozen, with all of the backbone up to stride 4.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.inputs_detr import Backbone
from hf_attn.interchange.resnets import RESNETS, resnet_of_config
from hf_attn.modeling_detr import AttnDetrForObjectDetection

logger = logging.get_logger(__name__)

FIELDS = {  # theirs, ours
    "num_channels": "num_channels",
    "d_model": "hidden_size",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_ffn_dim": "intermediate_size",
    "activation_function": "activation_function",
    "num_queries": "num_queries",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "class_cost": "class_cost",
    "bbox_cost": "box_cost",
    "giou_cost": "giou_cost",
    "bbox_loss_coefficient": "box_loss_coefficient",
    "giou_loss_coefficient": "giou_loss_coefficient",
    "eos_coefficient": "eos_coefficient",
}
AUTHORS = {"frozen_batch_norm": True, "frozen_stride": 4}  # of a backbone with ImageNet's weights
EQUAL = {  # the same in encoder and decoder here; what transformers has where config.json says nothing
    ("encoder_ffn_dim", "decoder_ffn_dim"): 2048,
    ("encoder_attention_heads", "decoder_attention_heads"): 8,
}
OF_TIMM = ("features_only", "in_chans", "num_channels", "out_indices", "output_stride")
PLAIN = {  # what transformers' DETR has no setting for, and what it always is there
    "conditional_attention": False,
    "denoising_groups": 0,
    "class_loss": "cross_entropy",
    "backbone_config": None,
    "position_temperature": 10000,
    "position_scale": 2 * math.pi,
    "layer_norm_eps": 1e-5,
}
WHOLE = ("class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient")  # whole numbers
INSTEAD = "; save it by save_pretrained, which puts the code beside the weights, for those without this package"


def configure(theirs: Mapping[str, Any]) -> dict[str, Any]:
    _check(theirs)
    fields = {ours: theirs[name] for name, ours in FIELDS.items() if theirs.get(name) is not None}
    fields.setdefault("attention_dropout", 0.0)
    if labels := theirs.get("id2label"):
        fields["id2label"] = {int(number): label for number, label in labels.items()}
        fields["label2id"] = {label: number for number, label in fields["id2label"].items()}
    return {**fields, **backbone_fields(theirs), **AUTHORS}


def _check(theirs: Mapping[str, Any]) -> None:
    """Raises a ValueError for what is another network than ours."""
    for (encoder, decoder), default in EQUAL.items():
        values = theirs.get(encoder, default), theirs.get(decoder, default)
        if values[0] != values[1]:
            raise ValueError(f"{encoder} is {values[0]} and {decoder} {values[1]}: here they are one number for both")
    positions = theirs.get("position_embedding_type", "sine")
    if positions != "sine":
        raise ValueError(
            f"position_embedding_type is {positions!r}: positions are sines here, of any size, and not learned; use a "
            "checkpoint with sines, as all of the authors'"
        )
    if theirs.get("auxiliary_loss"):
        raise ValueError(
            "auxiliary_loss is true, with which transformers feeds each decoder layer the norm of the one before: "
            "that is another network than DETR, and none that this model can be. If it was not trained so, set "
            "auxiliary_loss to false in config.json; here every layer learns in any case"
        )
    dropout, inner = theirs.get("dropout", 0.1), theirs.get("activation_dropout") or 0.0
    if inner not in (0.0, dropout):
        raise ValueError(
            f"activation_dropout is {inner} and dropout {dropout}: here they are one; set activation_dropout to 0 in "
            "config.json, which changes training alone"
        )


def backbone_fields(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone`, `backbone_kwargs` and what else our configuration says of it.

    Raises:
        ValueError: for a network that timm does not have, or that transformers makes another of.
    """
    body = theirs.get("backbone_config") or _body_of_old(theirs)
    kind = body.get("model_type")
    if theirs.get("dilation") and not body.get("output_stride"):
        raise ValueError(
            f"dilation is true, which transformers ignores for a backbone_config of type {kind!r} without "
            "output_stride: set dilation to false in config.json for what transformers computes, or write "
            '"backbone": "resnet50", "use_timm_backbone": true instead of backbone_config for DC5'
        )
    if kind == "resnet":
        return resnet_of_config(body)
    if kind != "timm_backbone":
        raise ValueError(
            f"backbone_config is of type {kind!r}: the backbones here are timm's, and transformers' ResNets"
        )
    fields = {
        "backbone": body.get("backbone"),
        "backbone_kwargs": {"output_stride": body["output_stride"]} if body.get("output_stride") else {},
        "num_channels": body.get("num_channels") or 3,
    }
    if not isinstance(fields["backbone"], str):
        raise ValueError(f"backbone_config names no network of timm, but {fields['backbone']!r}")
    if fields["backbone"].split(".")[0] in RESNETS.values():
        feature = (body.get("out_indices") or [-1])[-1]
        return fields if feature in (-1, 4) else {**fields, "backbone_feature": feature}
    fields["backbone_feature"] = (body.get("out_indices") or [-1])[-1]
    with torch.device("meta"):
        check_norms(Backbone(AttnDetrConfig(**fields)).body, fields["backbone"])
    return fields


def _body_of_old(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What backbone_config would say, where config.json is of before there was one."""
    name, kwargs = theirs.get("backbone"), theirs.get("backbone_kwargs") or {}
    if not theirs.get("use_timm_backbone", True):
        if name:
            raise ValueError(
                f"backbone {name!r} is a repository: write its configuration into config.json as backbone_config"
            )
        return {"model_type": "resnet"}
    if unknown := sorted(set(kwargs) - set(OF_TIMM)):
        raise ValueError(f"backbone_kwargs has {', '.join(unknown)}; what is understood here is {', '.join(OF_TIMM)}")
    return {
        "model_type": "timm_backbone",
        "backbone": name or "resnet50",
        "num_channels": kwargs.get("in_chans", theirs.get("num_channels", 3)),
        "out_indices": [1, 2, 3, 4],
        "output_stride": 16 if theirs.get("dilation") else None,
        **kwargs,
    }


def check_norms(body: nn.Module, name: str) -> None:
    """Raises a ValueError for a network of timm that transformers makes another of: it puts frozen batch norm with an
    epsilon of 1e-5, and nothing after it, in the place of every batch norm."""
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d) and (type(norm) is not nn.BatchNorm2d or norm.eps != 1e-5):
            raise ValueError(
                f"the backbone {name} has {type(norm).__name__} with an epsilon of {norm.eps}, for which transformers "
                "puts plain batch norm with 1e-5: the numbers are others there; use a backbone with plain batch norm, "
                "as ResNets have"
            )


def their_config(model: AttnDetrForObjectDetection) -> dict[str, Any]:
    """What config.json of transformers' DETR says of a model.

    Raises:
        ValueError: for a model that it cannot be; the message names the setting.
    """
    config = model.config
    for name, value in PLAIN.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, for which transformers' DETR has no setting: there it is "
                f"always {value!r}{INSTEAD}"
            )
    settings = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    settings.update(_training_settings(config, settings))
    return {
        **settings,
        **_backbone(model),
        "activation_dropout": config.dropout,
        "architectures": ["DetrForObjectDetection"],
        "auxiliary_loss": False,
        "decoder_attention_heads": config.num_attention_heads,
        "decoder_ffn_dim": config.intermediate_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "id2label": config.id2label,
        "is_encoder_decoder": True,
        "label2id": config.label2id,
        "model_type": "detr",
        "position_embedding_type": "sine",
    }


def _training_settings(config: AttnDetrConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Costs and coefficients, which are whole numbers there."""
    broken = [name for name in WHOLE if settings[name] != int(settings[name])]
    lost = [f"{name} {settings[name]}" for name in broken]
    if config.class_loss_coefficient != 1:
        lost.append(f"class_loss_coefficient {config.class_loss_coefficient}")
    if lost:
        logger.warning(
            f"transformers' DETR has no {', '.join(lost)}, but 1 for classes and whole numbers for the rest: training "
            "there goes on with those, and what the model finds stays the same"
        )
    whole = {name: max(1, round(settings[name])) if name in broken else int(settings[name]) for name in WHOLE}
    return {**whole, "eos_coefficient": float(config.eos_coefficient)}


def _backbone(model: AttnDetrForObjectDetection) -> dict[str, Any]:
    """As in the files of old where that says all, for it is what every version of transformers reads."""
    config, body = model.config, model.model.backbone.body
    check_norms(body, config.backbone)
    kwargs = dict(config.backbone_kwargs or {})
    stride = kwargs.pop("output_stride", None)
    if kwargs:
        raise ValueError(
            f"backbone_kwargs has {', '.join(sorted(kwargs))}, for which transformers' DETR has no settings{INSTEAD}"
        )
    features = len(body.feature_info.info)
    if stride in (None, 16) and features == 5 and config.backbone_feature in (-1, 4):
        return {
            "backbone": config.backbone,
            "dilation": stride == 16,
            "use_pretrained_backbone": False,
            "use_timm_backbone": True,
        }
    return {
        "backbone_config": {
            "backbone": config.backbone,
            "model_type": "timm_backbone",
            "num_channels": config.num_channels,
            "out_indices": [config.backbone_feature],
            "output_stride": stride,
        }
    }


def their_processor(processor: AttnDetrImageProcessor) -> dict[str, Any]:
    """What preprocessor_config.json of transformers' DetrImageProcessor says of one of ours, or of one such itself.

    Raises:
        ValueError: for a setting that it cannot express.
    """
    settings = AttnDetrImageProcessor.from_dict(processor.to_dict()).to_dict()
    background, size = settings.pop("background"), settings["size"]
    only = {"do_rescale": True, "num_channels": 3}
    if background not in (None, [255, 255, 255]):
        raise ValueError(f"background is {background}: transformers lays white under transparent pictures, or nothing")
    for name, value in only.items():
        if settings.pop(name) != value:
            raise ValueError(f"{name} is not {value}: transformers' DetrImageProcessor can do nothing else")
    if size is None:
        settings["do_resize"], settings["size"] = False, {"shortest_edge": 800, "longest_edge": 1333}
    elif set(size) in ({"shortest_edge"}, {"longest_edge"}):
        raise ValueError(f"size is {size}: transformers' DetrImageProcessor wants both edges; give the other, too")
    names = ("do_normalize", "do_pad", "do_resize", "image_mean", "image_std", "pad_size", "resample", "size")
    return {
        **{name: settings[name] for name in names if settings[name] is not None},
        "do_convert_annotations": True,
        "do_convert_rgb": background is not None,
        "do_rescale": True,
        "format": "coco_detection",
        "image_processor_type": "DetrImageProcessor",
        "rescale_factor": 1 / 255,
    }
