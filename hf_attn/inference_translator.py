"""The twins of the translator's layers, and decoding with them: one word a step for each row that is not done.

memory (sentences, s, d) → its keys and values once per layer and sentence
words (rows, ) → (rows, d) → each layer adds a key and a value to those of its row, reads them, reads the memory of its
row's sentence → logits (rows, vocabulary). A sentence has as many rows as it has beams.
"""

from typing import Any

import torch

from .inference import ReadyLinear, ReadyNorm, ReadySelfAttention, Twin, added_mask, attend, joined
from .linear import products_by_onednn

BLOCK = 32  # words by which keys and values grow at least


class ReadyFeedForward:
    def __init__(self, feed_forward: Any, kind: Any, dtype: torch.dtype, activation: str):
        self.up_proj = kind(feed_forward.up_proj, dtype, activation)
        self.down_proj = kind(feed_forward.down_proj, dtype)

    def __call__(self, x: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x), add)


class ReadyAddNorm:
    """norm(x + f(x)) or x + f(norm(x)), where f adds by itself."""

    def __init__(self, add_norm: Any, dtype: torch.dtype):
        self.norm, self.pre_norm = ReadyNorm(add_norm.norm, dtype), add_norm.pre_norm

    def __call__(self, x: torch.Tensor, sublayer: Any) -> torch.Tensor:
        if self.pre_norm:
            return sublayer(self.norm(x), x)
        return self.norm(sublayer(x, x))


class ReadyEncoderLayer:
    def __init__(self, layer: Any, kind: Any, dtype: torch.dtype):
        activation = layer.self_attention.config.activation_function
        self.self_attention = ReadySelfAttention(layer.self_attention, kind, dtype)
        self.self_attention_add_norm = ReadyAddNorm(layer.self_attention_add_norm, dtype)
        self.feed_forward = ReadyFeedForward(layer.feed_forward, kind, dtype, activation)
        self.feed_forward_add_norm = ReadyAddNorm(layer.feed_forward_add_norm, dtype)

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = self.self_attention_add_norm(x, lambda x, add: self.self_attention(x, mask, add))
        return self.feed_forward_add_norm(x, self.feed_forward)


class ReadyEncoder(Twin):
    def __init__(self, encoder: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(encoder, dtype)
        self.layers = [ReadyEncoderLayer(layer, kind, self.dtype) for layer in encoder.layers]
        self.final_norm = ReadyNorm(encoder.final_norm, self.dtype)

    def takes(self, attention_mask: torch.Tensor | None) -> bool:
        """Whether the mask is (batch, source), with a token in every row."""
        return attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.any(dim=1).all()))

    def __call__(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, source, hidden_size) words in their places, (batch, source) mask → the memory, as x in its format"""
        is_padded = attention_mask is not None and not attention_mask.all()
        states, mask = x.to(self.dtype), added_mask(attention_mask if is_padded else None, self.dtype)
        with products_by_onednn():
            for layer in self.layers:
                states = layer(states, mask)
        return self.final_norm(states).to(x.dtype)


class KeysAndValues:
    """Those of one decoder layer in a block that grows: words first, so that those so far lie together."""

    def __init__(self) -> None:
        self.length = 0
        self.block: torch.Tensor | None = None  # (words and room for more, 2: keys and values, rows, heads, head_dim)
        self.spare: torch.Tensor | None = None

    def append(self, one: torch.Tensor) -> torch.Tensor:
        """Keys and values of one word more, (2, rows, heads, head_dim) → of all, (2, rows, heads, words, head_dim)"""
        if self.block is None or self.length == len(self.block):
            grown = one.new_empty(2 * self.length or BLOCK, *one.shape)
            if self.block is not None:
                grown[: self.length] = self.block
            self.block, self.spare = grown, None
        self.block[self.length] = one
        self.length += 1
        return self.block[: self.length].permute(1, 2, 3, 0, 4)

    def pick(self, rows: torch.Tensor) -> None:
        """Go on with the chosen rows, in their order."""
        if self.block is None:
            return
        words, both, _, *of_row = self.block.shape
        if self.spare is None or self.spare.shape[2] != len(rows):
            self.spare = self.block.new_empty(words, both, len(rows), *of_row)
        torch.index_select(self.block[: self.length], 2, rows, out=self.spare[: self.length])
        self.block, self.spare = self.spare, self.block


class ReadyDecoderLayer:
    def __init__(self, layer: Any, kind: Any, dtype: torch.dtype):
        own, cross = layer.self_attention, layer.cross_attention
        config = own.config
        self.heads, self.scaling = config.num_attention_heads, own.scaling
        self.qkv_proj = kind([own.q_proj, own.k_proj, own.v_proj], dtype)
        self.out_proj = kind(own.out_proj, dtype)
        self.self_attention_add_norm = ReadyAddNorm(layer.self_attention_add_norm, dtype)
        self.memory_q_proj = kind(cross.q_proj, dtype)
        self.memory_kv_proj = kind([cross.k_proj, cross.v_proj], dtype)
        self.memory_out_proj = kind(cross.out_proj, dtype)
        self.cross_attention_add_norm = ReadyAddNorm(layer.cross_attention_add_norm, dtype)
        self.feed_forward = ReadyFeedForward(layer.feed_forward, kind, dtype, config.activation_function)
        self.feed_forward_add_norm = ReadyAddNorm(layer.feed_forward_add_norm, dtype)

    def keys_and_values(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sentences, source, hidden_size) → (sentences, heads, source, head_dim) twice"""
        sentences, source, _ = memory.shape
        both = self.memory_kv_proj(memory).view(sentences, source, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        key, value = _wide(both).contiguous()
        return key, value

    def __call__(self, x: torch.Tensor, words: KeysAndValues, memory: tuple, mask: torch.Tensor | None):
        """(rows, hidden_size) → the same"""
        x = self.self_attention_add_norm(x, lambda x, add: self.read_words(x, words, add))
        x = self.cross_attention_add_norm(x, lambda x, add: self.read_memory(x, memory, mask, add))
        return self.feed_forward_add_norm(x, self.feed_forward)

    def read_words(self, x: torch.Tensor, words: KeysAndValues, add: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        qkv = _wide(self.qkv_proj(x)).view(rows, 3, self.heads, -1).transpose(0, 1)
        keys, values = words.append(qkv[1:])
        attended = attend(qkv[0].unsqueeze(2), keys, values, None, self.scaling)
        return self.out_proj(attended.reshape(rows, -1).to(x.dtype), add)

    def read_memory(self, x: torch.Tensor, memory: tuple, mask: torch.Tensor | None, add: torch.Tensor):
        keys, values = memory  # the rows of a sentence are so many queries of one memory
        query = _wide(self.memory_q_proj(x)).view(len(keys), -1, self.heads, keys.shape[-1]).transpose(1, 2)
        attended = joined(attend(query, keys, values, mask, self.scaling)).flatten(0, 1)
        return self.memory_out_proj(attended.to(x.dtype), add)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """For attention of one query, which CPUs do in float32 faster than in bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x


class ReadyDecoder(Twin):
    """The decoder and the layer to the vocabulary, of a model with head.

    Args:
        kind: `LooseLinear` for weights as they are.
    """

    def __init__(self, model: Any, kind: Any, dtype: torch.dtype):
        super().__init__(model, dtype)
        decoder = model.model.decoder
        self.embed_tokens, self.words_in_places = decoder.embed_tokens, decoder.words_in_places
        self.layers = [ReadyDecoderLayer(layer, kind, self.dtype) for layer in decoder.layers]
        self.final_norm = ReadyNorm(decoder.final_norm, self.dtype)
        self.lm_head = kind(model.lm_head, self.dtype, bias=model.logits_bias)


class Decoding:
    """The state of one decoding: what was read, what was said, and where.

    Args:
        memory: (sentences, source, hidden_size).
        memory_mask: (sentences, source), 1 for a token, 0 for padding, or None.
    """

    def __init__(self, decoder: ReadyDecoder, memory: torch.Tensor, memory_mask: torch.Tensor | None):
        self.decoder = decoder
        memory = memory.to(decoder.dtype)
        self.memory = [layer.keys_and_values(memory) for layer in decoder.layers]
        self.memory_mask = added_mask(memory_mask, self.memory[0][0].dtype)
        self.words = [KeysAndValues() for _ in decoder.layers]
        self.places = decoder.words_in_places.places(0, memory.shape[-1])  # (places computed so far, hidden_size)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read one word more of each row: (rows,) ids → (rows, vocabulary) logits of the next one."""
        decoder, place = self.decoder, self.words[0].length if self.words else 0
        if place >= len(self.places):
            width = decoder.embed_tokens.embedding_dim
            self.places = decoder.words_in_places.places(2 * place or BLOCK, width, ids.device).to(decoder.dtype)
        x = decoder.embed_tokens(ids).to(decoder.dtype) * decoder.words_in_places.scale + self.places[place]
        for layer, words, memory in zip(decoder.layers, self.words, self.memory, strict=True):
            x = layer(x, words, memory, self.memory_mask)
        return decoder.lm_head(decoder.final_norm(x))

    def pick(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
        """Go on with the chosen rows, in their order, and, where they are fewer, with the chosen sentences."""
        for words in self.words:
            words.pick(rows)
        if sentences is not None:
            self.memory = [(k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.memory]
            if self.memory_mask is not None:
                self.memory_mask = self.memory_mask.index_select(0, sentences)
