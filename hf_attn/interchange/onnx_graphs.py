"""Our models as graphs of tensors in and tensors out, of any batch and size, with an example of each input to trace.

The inputs and outputs of the translator's two graphs have the names that Optimum, Hugging Face's exporter, gives them.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import Dim

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer, (batch, heads, length, head_dim) each

TRACED = 5  # any length above 1 would do: torch.export takes 0 and 1 for special


class Graph(NamedTuple):
    """What becomes one file.

    name: of the file.
    module: what is traced.
    inputs: an example of each of its arguments, a tensor or a list of pairs.
    sizes: in the same structure, the dimensions that may have any size.
    input_names, output_names: of the tensors, in order.
    """

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    sizes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]


# --- the translator --------------------------------------------------------------------------------------------------


class EncoderGraph(nn.Module):
    """The memory, and what each layer of the decoder reads of it, which is projected once for a sentence."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder = model.model.encoder
        self.readers: Any = nn.ModuleList([layer.cross_attention for layer in model.model.decoder.layers])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, list[Pair]]:
        """(batch, source) ids and 1 for a token, 0 for padding → (batch, source, hidden_size), and pairs."""
        memory = self.encoder(input_ids, attention_mask).last_hidden_state
        return memory, [reader.keys_and_values(memory, memory) for reader in self.readers]


class DecoderStepGraph(nn.Module):
    """The next word: one token for each sentence, after those whose keys and values are given."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder = model.model.decoder
        self.lm_head = model.lm_head
        self.logits_bias = model.logits_bias

    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, past: list[Pair], memory: list[Pair]
    ) -> tuple[torch.Tensor, list[Pair]]:
        """Decode one token.

        Args:
            input_ids: (batch, 1).
            encoder_attention_mask: (batch, source), 1 for a token of the memory, 0 for padding.
            past: keys and values of the tokens before, of each layer; length 0 before the first. Their number is the
                token's position.
            memory: those of the memory, from the encoder's graph.

        Returns:
            Logits, (batch, 1, vocabulary), and `past` with the token's own keys and values.
        """
        cache = StepCache(past, memory)
        x = self.decoder.words_in_places(self.decoder.embed_tokens(input_ids), None, past[0][0].shape[2])
        memory_mask = encoder_attention_mask.bool()[:, None, None, :]
        for layer in self.decoder.layers:  # whose one query may read all that went before: no other mask
            x = layer(x, None, None, memory_mask, cache=cache)
        logits = self.lm_head(self.decoder.final_norm(x))
        if self.logits_bias is not None:
            logits = logits + self.logits_bias
        return logits, [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers]


class StepCache:
    """As much of transformers' EncoderDecoderCache as a decoder layer asks for, made of plain tensors."""

    def __init__(self, past: list[Pair], memory: list[Pair]):
        self.self_attention_cache, self.cross_attention_cache = LayerCaches(past), LayerCaches(memory)
        self.is_updated = dict.fromkeys(range(len(memory)), True)


class LayerCaches:
    def __init__(self, pairs: list[Pair]):
        self.layers = [LayerCache(*pair) for pair in pairs]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> Pair:
        layer = self.layers[layer_idx]
        layer.keys, layer.values = torch.cat([layer.keys, keys], dim=2), torch.cat([layer.values, values], dim=2)
        return layer.keys, layer.values


class LayerCache:
    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values


def translator_graphs(model: Any) -> list[Graph]:
    config = model.config
    batch, source, past = Dim("batch", min=1), Dim("source", min=1), Dim("past", min=0)
    layers = range(config.decoder_layers)
    ids = torch.full((2, TRACED), config.decoder_start_token_id)
    shape = 2, config.num_attention_heads, TRACED, config.hidden_size // config.num_attention_heads

    def pairs() -> list[Pair]:  # each tensor by itself, for what is one in tracing is one input
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in layers]

    of_source, of_words = ({0: batch, 1: source},) * 2, {0: batch}
    encoder = Graph(
        "encoder.onnx",
        EncoderGraph(model),
        inputs=(ids, torch.ones_like(ids)),
        sizes=of_source,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", *_pair_names("present", "encoder", layers)],
    )
    decoder = Graph(
        "decoder.onnx",
        DecoderStepGraph(model),
        inputs=(ids[:, :1], torch.ones_like(ids), pairs(), pairs()),
        sizes=(
            of_words,
            of_source[0],
            [({0: batch, 2: past},) * 2 for _ in layers],
            [({0: batch, 2: source},) * 2 for _ in layers],
        ),
        input_names=[
            "input_ids",
            "encoder_attention_mask",
            *_pair_names("past_key_values", "decoder", layers),
            *_pair_names("past_key_values", "encoder", layers),
        ],
        output_names=["logits", *_pair_names("present", "decoder", layers)],
    )
    return [encoder, decoder]


def _pair_names(kind: str, of: str, layers: range) -> list[str]:
    return [f"{kind}.{layer}.{of}.{part}" for layer in layers for part in ("key", "value")]


# --- pictures --------------------------------------------------------------------------------------------------------


class PictureGraph(nn.Module):
    """A model of pictures of one size, (batch, channels, height, width), with the outputs of these names."""

    def __init__(self, model: Any, outputs: list[str]):
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values)
        return tuple(found[name] for name in self.outputs)


class WholePictureGraph(PictureGraph):
    """As `PictureGraph`, with the mask that an image processor gives, of ones alone.

    Our DETR looks at each picture in its own size. A graph cannot take a batch apart, so the pictures of a batch must
    be of one size, without padding; all that is said of a padded one is NaN, so that nobody takes it for an answer.
    """

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        is_whole = pixel_mask.bool().flatten(1).all(dim=1)[:, None, None]
        return tuple(torch.where(is_whole, output, torch.nan) for output in super().forward(pixel_values))


def vit_graphs(model: Any) -> list[Graph]:
    outputs = ["logits"] if hasattr(model, "classifier") else ["last_hidden_state", "pooler_output"]
    pixels, sizes = _pixels_of_patches(model.config)
    return [Graph("model.onnx", PictureGraph(model, outputs), (pixels,), (sizes,), ["pixel_values"], outputs)]


def detr_graphs(model: Any) -> list[Graph]:
    outputs, backbone = ["logits", "pred_boxes"], model.model.backbone
    if backbone.is_vit:
        pixels, sizes = _pixels_of_patches(backbone.body.config)
    else:
        pixels, sizes = _pixels_of_strides(model.config.num_channels, stride(backbone))
    mask = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long)
    of_mask = {0: sizes[0], 1: sizes[2], 2: sizes[3]}
    names = ["pixel_values", "pixel_mask"]
    return [Graph("model.onnx", WholePictureGraph(model, outputs), (pixels, mask), (sizes, of_mask), names, outputs)]


def stride(backbone: Any) -> int:
    """Pixels from one column of a feature map of timm to the next."""
    return int(backbone.body.feature_info.reduction()[-1])


def _pixels_of_patches(config: Any) -> tuple[torch.Tensor, dict[int, Any]]:
    """Pictures to trace a ViT with, and which of their sizes are free: whole patches, where it pads none."""
    height, width = config.patch_shape
    pixels = torch.zeros(2, config.num_channels, 2 * height, 3 * width)
    if config.pad_to_patch:
        return pixels, {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}
    rows, columns = Dim("rows", min=1), Dim("columns", min=1)
    free = {2: height * rows if height > 1 else rows, 3: width * columns if width > 1 else columns}
    return pixels, {0: Dim("batch", min=1), **free}


def _pixels_of_strides(channels: int, stride: int) -> tuple[torch.Tensor, dict[int, Any]]:
    """Pictures to trace a network of timm with; a feature map of one row or column would be another graph."""
    pixels = torch.zeros(2, channels, 2 * stride, 3 * stride)
    return pixels, {0: Dim("batch", min=1), 2: Dim("height", min=stride + 1), 3: Dim("width", min=stride + 1)}
