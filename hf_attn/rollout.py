"""Where a picture classifier looks: the attention of one layer, or that of all layers followed back to the patches.

The *reader* is what the classifier reads of the tokens: the class token; or all patches alike, where it reads their
mean; several of these in equal shares, where it reads them side by side; or the patches that attention pooling reads.
A heat map says how much of each patch the reader took in.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_attn.attention import AttentionRecord, AttentionRecorder, MultiHeadAttention, record_attention

# --- on attention maps ---------------------------------------------------------------------------------------------


def attention_rollout(maps: Sequence[torch.Tensor], start: torch.Tensor | None = None) -> torch.Tensor:
    """How much of each input token has come to each token after the last layer (Abnar & Zuidema 2020, section 3).

    Each layer mixes its tokens half by its attention, averaged over its heads, and half keeps them (the residual
    connection): A' = (A + I) / 2. The rollout is the product A'(last) · ... · A'(first).

    Args:
        maps: (batch, heads, tokens, tokens) for each layer, the first layer first. Heads that are to be fused by
            something else than their mean come fused, as one head: `[m.amax(1, keepdim=True) for m in maps]`.
        start: (batch, rows, tokens), shares of the tokens after the last layer. They are followed down the layers as
            they are, so that a single one, say a one for the class token and zeros, costs a vector times a matrix in
            each layer instead of a product of matrices. By default one row for each token.

    Returns:
        (batch, rows or tokens, tokens), each row summing to one (to what the row of `start` sums to).

    Raises:
        ValueError: if there are no maps, or they have not the same square shape.
    """
    shapes = [tuple(weights.shape) for weights in maps]
    if not shapes or len({(shape[0], *shape[2:]) for shape in shapes}) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"maps are {shapes}; there must be (batch, heads, tokens, tokens) for each layer, all alike")
    batch, _, queries, tokens = shapes[0]
    if queries != tokens:
        raise ValueError(f"maps of {queries} queries and {tokens} keys; rollout needs self-attention of all queries")
    if start is None:
        start = torch.eye(tokens, device=maps[0].device, dtype=maps[0].dtype).expand(batch, tokens, tokens)
    return _follow_down(start, (_precise(weights).mean(dim=1) for weights in reversed(maps)))


def _follow_down(shares: torch.Tensor, maps: Iterable[torch.Tensor]) -> torch.Tensor:
    """(batch, rows, tokens) shares through (batch, tokens, tokens) maps, from the last layer to the first."""
    for weights in maps:
        mixing = weights + torch.eye(weights.shape[-1], device=weights.device, dtype=weights.dtype)
        shares = shares.to(weights.dtype) @ (mixing / mixing.sum(dim=-1, keepdim=True))
    return shares


# --- on a model and its pictures -----------------------------------------------------------------------------------


@torch.no_grad()
def class_attention(
    model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1, head: int | None = None
) -> torch.Tensor:
    """How much of each patch the reader takes in by one layer, in one head or in the mean of all.

    Args:
        model: a Vision Transformer of this package, with or without a head.
        pixel_values: (batch, channels, height, width), as for the model.
        layer: index of the layer, a negative one from the end.
        head: index of the head; the mean of all by default.

    Returns:
        (batch, rows, columns) in float32; what the reader took of itself and of registers is missing from one.

    Raises:
        ValueError: if layer or head is out of range, or the model is none to ask where it looks.
    """
    maps = head_attention(model, pixel_values, [layer], None if head is None else [head])
    return maps.mean(dim=(1, 2))


@torch.no_grad()
def head_attention(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> torch.Tensor:
    """`class_attention` of many layers and heads at once, all by default: (batch, layers, heads, rows, columns).

    Where the class token is the reader, only its row of the attention is computed, not the square of all tokens.
    """
    _check_model(model)
    only_reader = [0] if model.config.pooling == "class_token" else None
    with (
        _record_pooling(model) as pooling,
        record_attention(model, "layers", layers, heads, queries=only_reader) as record,
    ):
        model(pixel_values)
    maps = torch.stack([_precise(weights) for (weights,) in record.maps.values()], dim=1)
    if not only_reader:
        maps = _reader(model, maps.shape[-1], pooling).to(maps.dtype)[:, None, None] @ maps
    return _on_the_grid(model, pixel_values, maps.squeeze(-2))


@torch.no_grad()
def rollout_map(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """How much of each patch has come to the reader by all layers together: (batch, rows, columns).

    `attention_rollout`, followed from the reader alone. It makes the map of one head of one layer at a time, so that
    large pictures fit as well.
    """
    _check_model(model)
    with _record_pooling(model) as pooling, _keep_projections(model) as layers:
        model(pixel_values)
    reader = _reader(model, layers[0].k.shape[-2], pooling)
    shares = _follow_down(reader, (layer.mean_over_heads() for layer in reversed(layers)))
    return _on_the_grid(model, pixel_values, shares.squeeze(1))


class _Projections(AttentionRecorder):
    """Keeps what one attention compared instead of the map, which is many times larger and can be made of it."""

    def __init__(self, module: MultiHeadAttention):
        super().__init__(heads=None, queries=None)
        self.module = module

    def record(self, module: MultiHeadAttention, q: torch.Tensor, k: torch.Tensor, attention_mask) -> None:
        self.q, self.k, self.attention_mask = q, k, attention_mask

    def mean_over_heads(self) -> torch.Tensor:
        """(batch, tokens, tokens)"""
        heads = zip(self.q.split(1, dim=1), self.k.split(1, dim=1), strict=True)
        maps = (_precise(self.module.weights(q, k, self.attention_mask)).squeeze(1) for q, k in heads)
        return reduce(torch.add, maps) / self.q.shape[1]


@contextmanager
def _keep_projections(model: PreTrainedModel) -> Iterator[list[_Projections]]:
    layers = [
        _Projections(module)
        for name, module in model.named_modules()
        if isinstance(module, MultiHeadAttention) and "layers." in name
    ]
    for layer in layers:
        layer.module.recorders.append(layer)
    try:
        yield layers
    finally:
        for layer in layers:
            layer.module.recorders.remove(layer)


def _check_model(model: PreTrainedModel) -> None:
    if not hasattr(model.base_model, "patch_grid"):
        raise ValueError(
            f"{type(model).__name__} reads no picture as a whole; give an AttnViTModel, or one with a head"
        )


def _record_pooling(model: PreTrainedModel):
    """A context whose record holds the map of the attention pooling, where the model has one."""
    return record_attention(model, "attention_pooling") if model.config.pooling == "attention" else nullcontext()


def _reader(model: PreTrainedModel, tokens: int, pooling: AttentionRecord | None) -> torch.Tensor:
    """(batch or 1, 1, tokens): the share of each token in what the classifier reads."""
    if pooling is not None:
        ((weights,),) = pooling.maps.values()  # of the patches alone
        return nn.functional.pad(_precise(weights).mean(dim=1), (model.config.num_prefix_tokens, 0))
    reads, prefix = torch.zeros(tokens), model.config.num_prefix_tokens
    if model.config.pooling == "class_token":
        reads[0] = 1.0
    elif model.config.pooling == "prefix_tokens":
        reads[:prefix] = 1 / prefix
    else:
        reads[prefix:] = 1 / (tokens - prefix)
    if model.config.pooling == "class_token_and_mean":
        reads = reads / 2
        reads[0] = 0.5
    return reads.to(model.device).view(1, 1, tokens)


def _on_the_grid(model: PreTrainedModel, pixel_values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """(batch, ..., tokens) → (batch, ..., rows, columns), of the patches alone."""
    rows, columns = model.base_model.patch_grid(*pixel_values.shape[-2:])
    shares = shares[..., model.config.num_prefix_tokens :]
    if shares.shape[-1] != rows * columns:
        raise ValueError(
            f"{shares.shape[-1]} patches were read of {rows} x {columns}: the model is in training mode and leaves "
            "patches out; call model.eval() first"
        )
    return shares.unflatten(-1, (rows, columns))


def _precise(weights: torch.Tensor) -> torch.Tensor:
    return weights.to(torch.promote_types(weights.dtype, torch.float32))
