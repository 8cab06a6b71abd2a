"""The twin of ViT's encoder layers: six products a layer become four, with nothing but two norms between them."""

from typing import Any

import torch

from .inference import ReadyLinear, ReadyNorm, ReadySelfAttention, Twin
from .linear import products_by_onednn


class ReadyViTLayer:
    def __init__(self, layer: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        config = layer.attention.config
        attention_scale, feed_forward_scale = (
            getattr(scale, "weight", None) for scale in (layer.attention_scale, layer.feed_forward_scale)
        )
        self.attention_norm = ReadyNorm(layer.attention_norm, dtype)
        self.attention = ReadySelfAttention(layer.attention, kind, dtype, attention_scale)
        self.feed_forward_norm = ReadyNorm(layer.feed_forward_norm, dtype)
        self.up_proj = kind(layer.feed_forward.up_proj, dtype, config.activation_function)
        self.down_proj = kind(layer.feed_forward.down_proj, dtype, scale=feed_forward_scale)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.attention_norm(x), add=x)
        return self.down_proj(self.up_proj(self.feed_forward_norm(x)), add=x)


class ReadyViT(Twin):
    def __init__(self, model: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(model, dtype)
        self.layers = [ReadyViTLayer(layer, kind, self.dtype) for layer in model.layers]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) → the same, in the number format of x"""
        states = x.to(self.dtype)
        with products_by_onednn():
            for layer in self.layers:
                states = layer(states)
        return states.to(x.dtype)
