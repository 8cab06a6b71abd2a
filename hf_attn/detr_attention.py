"""Where a detector looks: what queries read of the picture, and what places of the picture read of each other.

The maps are in the tokens of the feature map; `hf_attn.drawing` lays them over the picture.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_attn.attention import record_attention


@torch.no_grad()
def query_attention(
    model: PreTrainedModel, pixel_values: torch.Tensor, queries: Sequence[int], layer: int = -1
) -> torch.Tensor:
    """How much of each place of a picture some queries read: cross-attention of a decoder layer, mean of its heads.

    Args:
        model: a DETR of this package, with or without a head, in eval mode.
        pixel_values: (1, channels, height, width), as for the model, without padding.
        queries: their numbers.
        layer: index of the decoder layer, a negative one from the end.

    Returns:
        (queries, rows, columns) in float32, each map summing to one.

    Raises:
        ValueError: if a query or the layer is out of range, the picture is not one, or the model is none to ask or in
            training mode.
    """
    decoder = _base(model, pixel_values).decoder
    return _maps(model, decoder, "cross_attention", pixel_values, queries, layer)


@torch.no_grad()
def encoder_attention(
    model: PreTrainedModel, pixel_values: torch.Tensor, points: Sequence[tuple[float, float]], layer: int = -1
) -> torch.Tensor:
    """How much of each place of a picture some points of it read: self-attention of an encoder layer, mean of heads.

    Args:
        model: as for `query_attention`.
        pixel_values: as for `query_attention`.
        points: (x, y) of each, as fractions of the picture's width and height.
        layer: index of the encoder layer, a negative one from the end.

    Returns:
        (points, rows, columns) in float32, each map summing to one.

    Raises:
        ValueError: as `query_attention`, and for a point outside of the picture.
    """
    base = _base(model, pixel_values)
    rows, columns = base.feature_grid(*pixel_values.shape[-2:])
    tokens = []
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"point ({x:g}, {y:g}) is not in the picture; give x and y as fractions from 0 to 1")
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        tokens.append(row * columns + column)
    return _maps(model, base.encoder, "self_attention", pixel_values, tokens, layer)


def _base(model: PreTrainedModel, pixel_values: torch.Tensor) -> PreTrainedModel:
    """The body of a detector, if the question makes sense."""
    base = model.base_model
    if not hasattr(base, "feature_grid"):
        raise ValueError(f"{type(model).__name__} is no DETR of this package; give an AttnDetrForObjectDetection")
    if model.training:
        raise ValueError("the model is in training mode, where it drops at random what it reads; call model.eval()")
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(
            f"pixel_values are {tuple(pixel_values.shape)}; give one picture, (1, channels, height, width)"
        )
    return base


def _maps(
    model: PreTrainedModel,
    part: torch.nn.Module,
    kind: str,
    pixel_values: torch.Tensor,
    readers: Sequence[int],
    layer: int,
) -> torch.Tensor:
    """(readers, rows, columns): what some readers of a part of the model read, mean of heads."""
    with record_attention(part, kind, layers=[layer], queries=readers) as record:
        model(pixel_values)
    ((weights,),) = record.maps.values()  # (1, heads, readers, tokens)
    return weights[0].float().mean(dim=0).unflatten(-1, model.base_model.feature_grid(*pixel_values.shape[-2:]))
