"""The twins of DETR's parts: a ResNet without batch norm, and layers of fewer products.

pixels (b, c, H, W) → convolutions with batch norm folded into them, ReLU and residual inside → (b, C, h, w)
tokens (b, t, d) → encoder layers, queries and keys of x + positions by one product → memory; decoder layers likewise
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .attention import MultiHeadAttention
from .inference import NoTwin, OneDnnLinear, ReadyLinear, ReadyNorm, Twin, added_mask, attend, joined
from .inference_vit import ReadyViTLayer
from .linear import is_close, onednn_linear

FRESH = 2**24  # bytes from which memory tends to come fresh from the system, which takes longer than a convolution
LARGE = 2**18  # pixels of a picture, or pairs of queries and keys, that keep all cores busy by themselves
BLOCKS = {  # of timm's ResNets: the convolutions, batch norms and activations one after the other
    "BasicBlock": (("conv1", "bn1", "act1"), ("conv2", "bn2", "act2")),
    "Bottleneck": (("conv1", "bn1", "act1"), ("conv2", "bn2", "act2"), ("conv3", "bn3", "act3")),
}
WITHOUT_EFFECT = (nn.Identity, nn.Dropout, type(None))

# --- convolutions ----------------------------------------------------------------------------------------------------


class Memory:
    """Places that large feature maps are written to again and again, instead of into fresh memory.

    What goes through the network alternates between two, what is inside a block between two more.
    """

    def __init__(self) -> None:
        self.places: dict[int, torch.Tensor] = {}
        self.last = {"stream": 1, "inside": 1}

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """(batch, channels, height, width), channels last, where nothing of this use was last; None if it is small."""
        batch, channels, height, width = shape
        size = batch * channels * height * width * dtype.itemsize
        if size < FRESH:
            return None
        self.last[use] = 1 - self.last[use]
        number = 2 * (use == "inside") + self.last[use]
        if number not in self.places or len(self.places[number]) < size:
            with torch.inference_mode(False):  # or it could be written to in inference mode only
                self.places[number] = torch.empty(size, dtype=torch.uint8)
        return self.places[number][:size].view(dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def holds(self, x: torch.Tensor) -> bool:
        return any(place.data_ptr() == x.data_ptr() for place in self.places.values())


class ReadyConvolution:
    """A convolution with the batch norm after it in its weights, then ReLU, or an addition and ReLU.

    Raises:
        NoTwin: for anything else, or batch norm that normalises by the batch itself.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module, relu: bool, dtype: torch.dtype):
        if (
            not isinstance(convolution, nn.Conv2d)
            or not isinstance(norm, nn.BatchNorm2d)
            or type(convolution) is not nn.Conv2d
            or type(norm) is not nn.BatchNorm2d
            or type(convolution.weight) is not nn.Parameter
            or convolution.padding_mode != "zeros"
            or isinstance(convolution.padding, str)
            or norm.training
            or norm.running_mean is None
        ):
            raise NoTwin
        weight, bias = fuse_conv_bn_weights(
            convolution.weight.double(),
            None if convolution.bias is None else convolution.bias.double(),
            norm.running_mean,
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )
        self.weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = bias.detach().to(dtype)
        self.relu = relu
        self.settings = (list(convolution.padding), list(convolution.stride), list(convolution.dilation))
        self.groups = convolution.groups

    def __call__(
        self, x: torch.Tensor, memory: Memory, use: str = "stream", add: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, channels, height, width), channels last → the same; `add` may be written to."""
        padding, stride, dilation = self.settings
        y = nn.functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)
        y = y if add is None else y.add_(add)
        return y.relu_() if self.relu else y

    def shape(self, x: torch.Tensor) -> tuple[int, ...]:
        """Of what becomes of x."""
        return x.shape[0], self.weight.shape[0], *_sides(x, self.weight.shape[2:], *self.settings)


class OneDnnConvolution(ReadyConvolution):
    """The same by one call of oneDNN. Weights stay as they are: a layout of oneDNN's own is for one size of picture,
    and for another one slower by half."""

    def __call__(self, x, memory, use="stream", add=None):
        into = memory.take(use, self.shape(x), x.dtype) if add is None else add
        if add is None and into is not None:
            into.zero_()
        if into is None:
            activation = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise.default(
                x, self.weight, self.bias, *self.settings, self.groups, activation, [], ""
            )
        activation = "relu" if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            into, x, self.weight, self.bias, *self.settings, self.groups, "add", 1.0, activation, [], ""
        )


class ReadyPooling:
    """torch's own without fresh memory for where the largest values were, which nobody asks for.

    Raises:
        NoTwin: for another pooling than over all of a window, padded with nothing at all.
    """

    def __init__(self, pooling: nn.MaxPool2d):
        self.settings = [
            2 * [side] if isinstance(side, int) else list(side)
            for side in (pooling.kernel_size, pooling.padding, pooling.stride, pooling.dilation)
        ]
        if pooling.ceil_mode or pooling.return_indices:
            raise NoTwin

    def __call__(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        kernel, padding, stride, dilation = self.settings
        shape = (*x.shape[:2], *_sides(x, kernel, padding, stride, dilation))
        places = memory.take("inside", shape, torch.int64) if x.device.type == "cpu" else None
        if places is None:
            return nn.functional.max_pool2d(x, kernel, stride, padding, dilation)
        pooled = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        torch.ops.aten.max_pool2d_with_indices.out(
            x, kernel, stride, padding, dilation, False, out=pooled, indices=places
        )
        return pooled


def _sides(x: torch.Tensor, *settings: Iterable[int]) -> list[int]:
    """Height and width after a window of some kernel, padding, stride and dilation has gone over x."""
    return [
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, padding, stride, dilation in zip(x.shape[2:], *settings, strict=True)
    ]


def kind_of_convolution(dtype: torch.dtype, device: torch.device) -> type[ReadyConvolution]:
    """Which of the two is faster there."""
    return OneDnnConvolution if device.type == "cpu" and convolutions_work(dtype) else ReadyConvolution


@cache
def convolutions_work(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators of `OneDnnConvolution`, which are private, and they are right."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):  # layers begin with random numbers
            convolution, norm = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16).eval()
            x = torch.linspace(-1, 1, 8 * 6 * 10).sin().view(1, 8, 6, 10).contiguous(memory_format=torch.channels_last)
            are_close = []
            for add in (None, torch.ones(1, 16, 3, 5).contiguous(memory_format=torch.channels_last)):
                expected = ReadyConvolution(convolution, norm, True, torch.float32)(x, Memory(), add=add)
                add = None if add is None else add.to(dtype)
                found = OneDnnConvolution(convolution, norm, True, dtype)(x.to(dtype), Memory(), add=add)
                are_close.append(is_close(found, expected, dtype))
            return all(are_close)
    except (AttributeError, RuntimeError, TypeError):
        return False


# --- ResNets of timm -------------------------------------------------------------------------------------------------


class ReadyBlock:
    """A residual block: convolutions one after the other, of which the last adds what came in."""

    def __init__(self, block: Any, dtype: torch.dtype, kind: type[ReadyConvolution]):
        further = [getattr(block, name, None) for name in ("drop_block", "aa", "se", "drop_path")]
        steps = [[getattr(block, name) for name in names] for names in BLOCKS[type(block).__name__]]
        if any(_name(one) != "timm.layers.drop.DropPath" and type(one) not in WITHOUT_EFFECT for one in further):
            raise NoTwin
        if any(type(activation) is not nn.ReLU for *_, activation in steps):
            raise NoTwin
        *self.first, self.last = [kind(convolution, norm, True, dtype) for convolution, norm, _ in steps]
        self.shortcut = [] if block.downsample is None else ready_parts([block.downsample], dtype, kind)

    def __call__(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        shortcut = run(self.shortcut, x, memory)
        for convolution in self.first:
            x = convolution(x, memory, "inside")
        return self.last(x, memory, add=shortcut)


def ready_parts(modules: Iterable[nn.Module], dtype: torch.dtype, kind: type[ReadyConvolution]) -> list[Any]:
    """Convolutions with what follows them, pooling and blocks, in the order in which pictures meet them.

    Raises:
        NoTwin: if there is anything else.
    """
    queue = list(_flat(modules))
    parts: list[Any] = []
    while queue:
        module = queue.pop(0)
        if _name(module) in {f"timm.models.resnet.{name}" for name in BLOCKS}:
            parts.append(ReadyBlock(module, dtype, kind))
        elif isinstance(module, nn.MaxPool2d) and type(module) is nn.MaxPool2d:
            parts.append(ReadyPooling(module))
        elif type(module) is nn.AvgPool2d:
            parts.append(module)
        elif type(module) not in WITHOUT_EFFECT:
            norm = queue.pop(0) if queue else module
            relu = bool(queue) and type(queue[0]) is nn.ReLU
            parts.append(kind(module, norm, relu, dtype))
            queue = queue[1:] if relu else queue
    return parts


def _flat(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential:
            yield from _flat(module)
        else:
            yield module


def _name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def run(parts: list[Any], x: torch.Tensor, memory: Memory) -> torch.Tensor:
    for part in parts:
        x = part(x) if isinstance(part, nn.Module) else part(x, memory)
    return x


class ReadyResNet(Twin):
    """Of a `Backbone` whose body is a ResNet of timm.

    Raises:
        NoTwin: for another network.
    """

    def __init__(self, backbone: Any, dtype: torch.dtype):
        super().__init__(backbone, dtype)
        if _name(backbone.body) != "timm.models._features.FeatureListNet":
            raise NoTwin
        kind = kind_of_convolution(dtype, next(backbone.parameters()).device)
        self.parts = ready_parts(backbone.body.values(), dtype, kind)
        self.memories: list[Memory] = []  # those that no thread works with

    def may_answer(self, module: nn.Module) -> bool:
        return super().may_answer(module) and not any(part.training for part in module.modules())

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, feature channels, rows, columns)"""
        batch, _, height, width = pixel_values.shape
        if batch > 1 and height * width >= LARGE and pixel_values.device.type == "cpu":
            return torch.cat([self(picture) for picture in pixel_values.split(1)])
        memory = self.memories.pop() if self.memories else Memory()
        x = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        features = run(self.parts, x, memory)
        features = features.clone() if memory.holds(features) else features
        self.memories.append(memory)
        return features.to(pixel_values.dtype)


class ReadyViTFeatures(Twin):
    """Of a `Backbone` whose body is a ViT of this package."""

    def __init__(self, backbone: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(backbone, dtype)
        self.body = backbone.body
        (last,) = (self.body.stage_names.index(name) for name in self.body.out_features)
        self.layers = [ReadyViTLayer(layer, kind, self.dtype) for layer in self.body.layers[:last]]

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, hidden_size, rows, columns)"""
        self.body._check_all_patches_stay()
        x = self.body.embeddings(pixel_values)
        states = x.to(self.dtype)
        for layer in self.layers:
            states = layer(states)
        grid = self.body.embeddings.patch_embedding.grid(*pixel_values.shape[-2:])
        return self.body._feature_map(states.to(x.dtype), grid)


# --- layers of the transformer ---------------------------------------------------------------------------------------


class ReadyAttention:
    """Queries read a memory; keys are of other states than values."""

    def __init__(self, attention: MultiHeadAttention, kind: type[ReadyLinear], dtype: torch.dtype):
        if not all(type(norm) is nn.Identity for norm in (attention.q_norm, attention.k_norm)):
            raise NoTwin
        self.heads, self.is_onednn = attention.config.num_attention_heads, kind is OneDnnLinear
        self.scale = attention.q_proj.weight.new_full((attention.q_proj.out_features,), attention.scaling)
        self.q_proj, self.k_proj = kind(attention.q_proj, dtype, scale=self.scale), kind(attention.k_proj, dtype)
        self.v_proj, self.out_proj = kind(attention.v_proj, dtype), kind(attention.out_proj, dtype)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        add: torch.Tensor,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) each, `mask` as in `attend` → the same as `query`, with `add` added"""
        q, k = self.split(self.q_proj(query)), self.split(self.k_proj(key))
        return self.out_proj(self.read(q, k, self.split(self.v_proj(value)), mask), add)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size) → (batch, heads, length, head_dim)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`attend` of queries that are scaled, joined, and faster where many read many keys."""
        if self.is_onednn and q.shape[-2] * k.shape[-2] >= LARGE:
            return attend_by_onednn(q, k, v, mask)
        return joined(attend(q, k, v, mask, 1.0))


def attend_by_onednn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`attend`, joined, head by head: sdpa gives float32 to MKL, and all heads at once need much fresh memory.

    Queries are scaled; `mask` is the same for all queries, (batch, 1, 1, keys).
    """
    q, k, v = q.contiguous(), k.contiguous(), v.transpose(-2, -1).contiguous()  # other strides take a slow way
    attended = torch.empty_like(q)
    for picture in range(len(q)):
        for head in range(q.shape[1]):
            scores = onednn_linear(q[picture, head], k[picture, head])
            scores = scores if mask is None else scores.add_(mask[picture, 0])
            torch.softmax(scores, dim=-1, out=scores)
            attended[picture, head] = onednn_linear(scores, v[picture, head])
    return joined(attended)


class ReadyConditionalAttention(ReadyAttention):
    """Content reads content, place reads place: of `ConditionalCrossAttention`."""

    def __init__(self, attention: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(attention, kind, dtype)
        self.q_position_proj = kind(attention.q_position_proj, dtype, scale=self.scale)
        self.k_position_proj = kind(attention.k_position_proj, dtype)

    def read_places(self, x, places, memory, positions, mask) -> torch.Tensor:
        """(batch, queries, hidden_size) twice, (batch, tokens, hidden_size) twice → as x, which is added"""
        q = torch.cat([self.split(self.q_proj(x)), self.split(self.q_position_proj(places))], dim=-1)
        k = torch.cat([self.split(self.k_proj(memory)), self.split(self.k_position_proj(positions))], dim=-1)
        return self.out_proj(self.read(q, k, self.split(self.v_proj(memory)), mask), x)


class ReadyEncoderLayer:
    def __init__(self, layer: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        activation = layer.self_attention.config.activation_function
        self.self_attention = ReadyAttention(layer.self_attention, kind, dtype)
        self.self_attention_norm = ReadyNorm(layer.self_attention_norm, dtype)
        self.up_proj = kind(layer.feed_forward.up_proj, dtype, activation)
        self.down_proj = kind(layer.feed_forward.down_proj, dtype)
        self.feed_forward_norm = ReadyNorm(layer.feed_forward_norm, dtype)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any):
        placed = x + positions
        x = self.self_attention_norm(self.self_attention(placed, placed, x, mask, add=x))
        return self.feed_forward(x)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.feed_forward_norm(self.down_proj(self.up_proj(x), add=x))


class ReadyDecoderLayer(ReadyEncoderLayer):
    """Of a `DetrDecoderLayer`, or of its conditional descendant, which has a `reach`."""

    def __init__(self, layer: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(layer, kind, dtype)
        self.reach: list[ReadyLinear] | None = None
        self.cross_attention: Any
        if hasattr(layer, "reach"):
            first, last = layer.reach.layers
            self.reach = [kind(first, dtype, "relu"), kind(last, dtype)]
            self.cross_attention = ReadyConditionalAttention(layer.cross_attention, kind, dtype)
        else:
            self.cross_attention = ReadyAttention(layer.cross_attention, kind, dtype)
        self.cross_attention_norm = ReadyNorm(layer.cross_attention_norm, dtype)

    def __call__(self, x, queries, waves, memory, positions, mask, memory_mask, **kwargs):  # type: ignore[override]
        queries = queries.to(x.dtype)
        placed = x + queries
        x = self.self_attention_norm(self.self_attention(placed, placed, x, mask, add=x))
        if self.reach is None:
            x = self.cross_attention(x + queries, memory + positions, memory, memory_mask, add=x)
        else:
            places = waves.to(x.dtype) * self.reach[1](self.reach[0](x))
            x = self.cross_attention.read_places(x, places, memory, positions, memory_mask)
        return self.feed_forward(self.cross_attention_norm(x))


class ReadyEncoder(Twin):
    def __init__(self, encoder: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(encoder, dtype)
        self.layers = [ReadyEncoderLayer(layer, kind, self.dtype) for layer in encoder.layers]

    def __call__(self, features: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, tokens, hidden_size) twice, (batch, tokens) mask → the memory, in the features' number format"""
        x, positions, mask = features.to(self.dtype), positions.to(self.dtype), added_mask(mask, self.dtype)
        for layer in self.layers:
            x = layer(x, positions, mask)
        return x.to(features.dtype)


class ReadyDecoder(Twin):
    """Layers for a decoder to call instead of its own: norm and boxes between them stay as they are.

    Its states are cast to `dtype` before the first layer, and to `result` after each.
    """

    def __init__(self, decoder: Any, kind: type[ReadyLinear], dtype: torch.dtype):
        super().__init__(decoder, dtype)
        self.result = decoder.final_norm.weight.dtype
        self.layers = [ReadyDecoderLayer(layer, kind, self.dtype) for layer in decoder.layers]

    def cast(self, *states: torch.Tensor) -> list[torch.Tensor]:
        return [one.to(self.dtype) for one in states]
