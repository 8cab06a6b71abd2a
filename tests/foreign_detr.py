"""DETRs of transformers in which nothing is as it was initialised, and whether ours finds the same as they do."""

import re
from typing import Any

import torch
from torch.testing import assert_close
from transformers import DetrConfig, DetrForObjectDetection

SHAPE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
}
FULL = {  # facebook/detr-resnet-50
    "backbone": "resnet50",
    "d_model": 256,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_queries": 100,
}
SIZES = [(96, 128), (128, 64)]  # height and width


def foreign_detr(kind: Any = DetrForObjectDetection, **fields: Any) -> Any:
    """In eval mode, on timm's resnet18 unless `fields` of DetrConfig say otherwise."""
    body = {} if "backbone_config" in fields else {"use_timm_backbone": True, "backbone": "resnet18"}
    return randomised(kind(DetrConfig(**{**SHAPE, **body, **fields}))).eval()


@torch.no_grad()
def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Noise for everything: weights, biases, norms, and the statistics of batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)  # the counter of batch norm
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs().clamp(max=1))
        elif is_norm:
            tensor.copy_(0.8 + 0.2 * noise)
        elif re.search(r"query|[qk]_proj\.weight", name):
            tensor.copy_(noise * (1 if "query" in name else tensor.shape[-1] ** -0.5))  # or all queries say one
        else:
            tensor.add_({1: 0.2, 2: tensor.shape[-1] ** -0.5, 4: 0.02}[tensor.ndim] * noise)
    return model


def pictures(seed: int = 0) -> list[torch.Tensor]:
    """Of two sizes, each a batch of one: padded, as transformers does with more, they would give other numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *size, generator=generator) for size in SIZES]


@torch.no_grad()
def largest_differences(ours: Any, theirs: Any) -> tuple[float, float]:
    """Of logits and of boxes, over both pictures."""
    of_logits = of_boxes = 0.0
    for pixels in pictures():
        found, expected = ours(pixels), theirs(pixels)
        of_logits = max(of_logits, (found.logits - expected.logits).abs().max().item())
        of_boxes = max(of_boxes, (found.pred_boxes - expected.pred_boxes).abs().max().item())
    return of_logits, of_boxes


@torch.no_grad()
def assert_same_outputs(ours: Any, theirs: Any) -> None:
    for pixels in pictures():
        found, expected = ours(pixels), theirs(pixels)
        assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
        assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-6)
