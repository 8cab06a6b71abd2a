"""DETR's layers and heads: post-norm, positions on queries and keys but not on values (Carion et al. 2020, fig 10)."""

import math
from itertools import pairwise

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import MultiHeadAttention
from .configuration_detr import AttnDetrConfig
from .linear import Linear

EDGE = 1e-5  # how near to the picture's edge a logit of a coordinate can say something is: authors' inverse_sigmoid


class FeedForward(nn.Module):
    def __init__(self, config: AttnDetrConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))


def with_gains(attention: MultiHeadAttention) -> MultiHeadAttention:
    """The same, with the gains of its projections under Glorot's initialisation: the authors' queries, keys and values
    come from one matrix (3d, d), whose bound is √½ of that of three matrices (d, d)."""
    for projection in attention.children():
        if isinstance(projection, nn.Linear):
            projection.gain = 1.0  # type: ignore[assignment]
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.gain = math.sqrt(0.5)  # type: ignore[assignment]
    return attention


class DetrEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: AttnDetrConfig, layer_idx: int):
        super().__init__()
        self.self_attention = with_gains(MultiHeadAttention(config, layer_idx=layer_idx))
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, mask=None, **kwargs: Unpack[TransformersKwargs]):
        placed = x + positions
        attended, _ = self.self_attention(placed, placed, x, mask, **kwargs)
        x = self.self_attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class DetrDecoderLayer(GradientCheckpointingLayer):
    """Queries read each other, then the memory. `waves` is not used: a learned query says what it wants by itself."""

    def __init__(self, config: AttnDetrConfig, layer_idx: int):
        super().__init__()
        self.self_attention = with_gains(MultiHeadAttention(config, layer_idx=layer_idx))
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._add_cross_attention(config, layer_idx)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def _add_cross_attention(self, config: AttnDetrConfig, layer_idx: int) -> None:
        self.cross_attention = with_gains(MultiHeadAttention(config, layer_idx=layer_idx))

    def forward(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        waves: torch.Tensor | None,
        memory: torch.Tensor,
        positions: torch.Tensor,
        mask=None,
        memory_mask=None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        placed = x + queries
        attended, _ = self.self_attention(placed, placed, x, mask, **kwargs)
        x = self.self_attention_norm(x + self.dropout(attended))
        attended = self.read_memory(x, queries, waves, memory, positions, memory_mask, **kwargs)
        x = self.cross_attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))

    def read_memory(self, x, queries, waves, memory, positions, memory_mask, **kwargs) -> torch.Tensor:
        attended, _ = self.cross_attention(x + queries, memory + positions, memory, memory_mask, **kwargs)
        return attended


class PlaceProjection(Linear):
    """Of the waves of a place; begins so that queries read what is near their anchor."""


class ConditionalCrossAttention(MultiHeadAttention):
    """Content matches content and place matches place, each by itself, and the two scores add up
    (Meng et al. 2021, "Conditional DETR", section 3.3)."""

    def __init__(self, config: AttnDetrConfig, layer_idx: int = 0):
        super().__init__(config, layer_idx=layer_idx)
        self.scaling = (2 * self.head_dim) ** -0.5
        self.q_position_proj = PlaceProjection(config.hidden_size, config.hidden_size)
        self.k_position_proj = PlaceProjection(config.hidden_size, config.hidden_size)

    def forward(  # type: ignore[override]
        self, query, query_position, key, key_position, attention_mask=None, output_attentions=None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, queries, hidden_size) twice and (batch, keys, hidden_size) twice; returns as its base does."""
        split = self._split_heads
        q = torch.cat([split(self.q_proj(query)), split(self.q_position_proj(query_position))], dim=-1)
        k = torch.cat([split(self.k_proj(key)), split(self.k_position_proj(key_position))], dim=-1)
        attended, weights = self.read(q, k, split(self.v_proj(key)), attention_mask, output_attentions, **kwargs)
        return self.out_proj(attended), weights


class ConditionalDecoderLayer(DetrDecoderLayer):
    """As `DetrDecoderLayer`, but a query looks around its anchor, as far as what it has read so far tells it."""

    def _add_cross_attention(self, config: AttnDetrConfig, layer_idx: int) -> None:
        self.cross_attention = with_gains(ConditionalCrossAttention(config, layer_idx))
        self.reach = MLP(config.hidden_size, config.hidden_size, config.hidden_size, layers=2, last=FromOne)

    def read_memory(self, x, queries, waves, memory, positions, memory_mask, **kwargs) -> torch.Tensor:
        attended, _ = self.cross_attention(x, waves * self.reach(x), memory, positions, memory_mask, **kwargs)
        return attended


class HeadLinear(Linear):
    """Begins as torch begins a linear layer; those of the transformer begin by Glorot."""


class FromAnchors(HeadLinear):
    """Begins at zero: boxes begin at their anchors."""


class FromOne(HeadLinear):
    """Begins near one: of each wave of an anchor, all of it counts."""


class ClassHead(HeadLinear):
    """Class logits of each query; under focal loss they begin at a probability of 1 %."""


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int, last: type[HeadLinear] = HeadLinear):
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList([HeadLinear(*pair) for pair in pairwise(widths)])
        self.layers.append(last(widths[-1], outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class BoxHead(MLP):
    """(..., hidden_size) → (..., 4) cxcywh in (0, 1); beginning at the anchor, where there is one."""

    def __init__(self, config: AttnDetrConfig):
        last = FromAnchors if config.conditional_attention else HeadLinear
        super().__init__(config.hidden_size, config.hidden_size, 4, layers=3, last=last)

    def forward(self, x: torch.Tensor, anchors: torch.Tensor | None = None) -> torch.Tensor:
        moved = super().forward(x)
        moved = moved.to(torch.promote_types(moved.dtype, torch.float32))  # bfloat16's 8 bits are too few for a place
        if anchors is not None:
            moved = moved + torch.logit(anchors.to(moved.dtype), eps=EDGE)
        return moved.sigmoid()
