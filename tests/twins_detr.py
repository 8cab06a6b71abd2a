"""Our DETR and transformers', with the same randomised weights and buffers."""

import re

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
from tests.tiny import randomise, randomise_statistics

SHAPE = {"encoder_layers": 2, "decoder_layers": 3, "num_queries": 9, "num_labels": 5}
NAMES = (  # ours, transformers'
    (r"^model\.tokens\.backbone\.body\.", "model.backbone.model."),
    (r"^model\.tokens\.input_projection", "model.input_projection"),
    (r"^model\.query_embedding", "model.query_position_embeddings"),
    (r"^model\.decoder\.box_head", "bbox_predictor"),
    (r"^class_head", "class_labels_classifier"),
    (r"decoder\.final_norm", "decoder.layernorm"),
    (r"self_attention\.out_proj", "self_attn.o_proj"),
    (r"cross_attention\.out_proj", "encoder_attn.o_proj"),
    (r"self_attention_norm", "self_attn_layer_norm"),
    (r"cross_attention_norm", "encoder_attn_layer_norm"),
    (r"self_attention\.", "self_attn."),
    (r"cross_attention\.", "encoder_attn."),
    (r"feed_forward_norm", "final_layer_norm"),
    (r"feed_forward\.up_proj", "mlp.fc1"),
    (r"feed_forward\.down_proj", "mlp.fc2"),
)


def transformers_detr(backbone: str = "resnet18", kernel: str = "sdpa", **fields) -> DetrForObjectDetection:
    """Theirs on a network of timm, begun by their rules, in eval mode; `output_stride` is that of the backbone."""
    kwargs = {"output_stride": fields.pop("output_stride")} if "output_stride" in fields else {}
    body = TimmBackboneConfig(backbone=backbone, out_indices=[1, 2, 3, 4], **kwargs)
    config = DetrConfig(backbone_config=body, attn_implementation=kernel, **{**SHAPE, **fields})
    return DetrForObjectDetection(config).eval()


def twins(
    backbone: str = "resnet18", output_stride: int | None = None, kernel: str = "sdpa"
) -> tuple[AttnDetrForObjectDetection, DetrForObjectDetection]:
    """Both, in eval mode. What LayerNorm, biases and batch norm begin with would hide errors, and is made noise."""
    kwargs = {} if output_stride is None else {"output_stride": output_stride}
    config = AttnDetrConfig(
        backbone=backbone, backbone_kwargs=kwargs, frozen_batch_norm=True, attn_implementation=kernel, **SHAPE
    )
    torch.manual_seed(0)
    ours = AttnDetrForObjectDetection(config).eval()
    randomise(ours, std=0.02)
    for part in (ours.model.encoder, ours.model.decoder, ours.class_head):
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm) or name == "bias":
                    nn.init.normal_(parameter, mean=float(name == "weight"), std=0.3)
    randomise_statistics(ours)
    theirs = transformers_detr(backbone, kernel, **kwargs)
    wanted, found = theirs.state_dict().keys(), {}
    for name, value in ours.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if name in wanted:
            found[name] = value
        else:
            assert name.endswith("num_batches_tracked"), name
    theirs.load_state_dict(found)
    return ours, theirs
