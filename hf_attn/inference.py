"""What `prepare_for_inference()` makes: weights laid out for the processor, and what follows a product done with it.

A model keeps its layers as they are. Beside them stands a twin, made of their weights, that computes the same with
fewer and faster calls: queries, keys and values by one product, activation, residual and LayerScale inside a product.
The model asks its twin wherever that may answer, and its layers wherever not: in training, under autograd, where
attention or hidden states are asked for, where somebody hooked into a layer or records it.
"""

import ctypes
import mmap
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.utils.output_capturing import _active_collector

from .attention import MultiHeadAttention
from .linear import Linear, linear, onednn_is_faster, onednn_layout, onednn_works

DTYPES = (None, torch.float32, torch.bfloat16, torch.int8)
IN_ONEDNN = {  # activations of transformers that oneDNN computes inside a product, and their names there
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
}
CAPTURING = "output_capturing_hook"  # transformers' name of its hooks
MOST_KEYS = 1024  # up to which the scores of a head are worth writing out
IN_CACHE = 2**22  # bytes of scores that are worth keeping near the processor until they are read
KEPT = 31 * 2**20  # bytes
PAGE_OUT = 21  # MADV_PAGEOUT, since Linux 5.4
ROWS = 256  # for which the layout is chosen


class NoTwin(Exception):
    """A layer is not what it was made as, so no twin can be made of it."""


# --- products --------------------------------------------------------------------------------------------------------


class ReadyLinear:
    """x Wᵀ + b of one linear layer, or of several that read the same x, side by side.

    Args:
        layers: whose weights and biases it has.
        dtype: of inputs and results.
        activation: of transformers, applied to the result.
        bias: (outputs,), beside that of the layers.
        scale: (outputs,) factors of the result.
    """

    def __init__(
        self,
        layers: nn.Linear | Sequence[nn.Linear],
        dtype: torch.dtype,
        activation: str | None = None,
        bias: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ):
        layers = _plain_layers(layers)
        self.activation = None if activation is None else ACT2FN[activation]
        weight = torch.cat([layer.weight for layer in layers])
        own_bias = torch.cat([_bias(layer) for layer in layers])
        own_bias = own_bias if bias is None else own_bias + bias
        if scale is not None:
            weight, own_bias = weight * scale[:, None], own_bias * scale
        self.weight, self.bias = weight.to(dtype), own_bias.to(dtype)
        for layer in layers:
            let_go(layer.weight)

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        """(..., inputs) → (..., outputs), activated, or with `add` added."""
        y = linear(x, self.weight, self.bias)
        y = y if self.activation is None else self.activation(y)
        return y if add is None else y + add


def _bias(layer: nn.Linear) -> torch.Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias


def let_go(weight: torch.Tensor) -> None:
    """Tell Linux that a weight is not needed for now: what was mapped from a file need not stay in memory, and comes
    back by itself when it is read (madvise(2), MADV_PAGEOUT). Elsewhere, and of what is no file, nothing happens."""
    if sys.platform != "linux" or weight.device.type != "cpu" or not weight.is_contiguous():
        return
    first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = weight.data_ptr() + weight.numel() * weight.element_size() - first
    if size >= mmap.PAGESIZE:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), PAGE_OUT)


def _plain_layers(layers: nn.Linear | Sequence[nn.Linear]) -> list[nn.Linear]:
    """Raises NoTwin for what is more than its weight and bias, such as an adapter, or has a weight of another kind."""
    layers = list(layers) if isinstance(layers, Sequence) else [layers]
    for layer in layers:
        if type(layer).forward not in (nn.Linear.forward, Linear.forward) or type(layer.weight) is not nn.Parameter:
            raise NoTwin
    return layers


class OneDnnLinear(ReadyLinear):
    """The same, by oneDNN and in its layout."""

    def __init__(self, layers, dtype, activation=None, bias=None, scale=None):
        super().__init__(layers, dtype, activation, bias, scale)
        self.fused, self.algorithm = IN_ONEDNN.get(activation, ("none", ""))
        if self.fused != "none":
            self.activation = None
        self.weight = onednn_layout(self.weight, ROWS)
        # As `onednn_linear`. Below `_op` Python no longer asks of each argument whether it is a fake, which takes as
        # long as a small product.
        operators = torch.ops.mkldnn._linear_pointwise
        self.product, self.sum = operators.default._op, operators.binary._op

    def __call__(self, x, add=None):
        if add is not None:
            return self.sum(x, add, self.weight, self.bias, "add")
        y = self.product(x, self.weight, self.bias, self.fused, [], self.algorithm)
        return y if self.activation is None else self.activation(y)


class Int8Linear(ReadyLinear):
    """The same with weights and inputs of eight bits, each row by a scale of its own, so that what becomes of a row
    does not depend on its neighbours; results are float32.

    An output's weights lie in -127 … 127 times their scale, and so do a row's inputs; these have seven bits without
    VNNI, whose sums are wide enough.
    """

    def __init__(self, layers, dtype, activation=None, bias=None, scale=None):
        super().__init__(layers, torch.float32, activation, bias, scale)
        self.levels = 127 if _has_vnni() else 63
        self.least = torch.tensor(1e-20)  # of a row of zeros
        # float32 rows, to be divided by a scale and moved by a zero point → float32
        self.product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op
        largest = torch.linalg.vector_norm(self.weight, torch.inf, dim=1)
        scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        whole = self.weight.div_(scales[:, None]).round_().to(torch.int8)  # in place: a vocabulary's layer is large
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that such tensors will go; int8_works() asks whether they are there
            quantized = torch._make_per_channel_quantized_tensor(
                whole, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0
            )
            self.weight = torch.ops.quantized.linear_prepack(quantized, None)

    def __call__(self, x, add=None):
        scales = torch.add(self.least, x.abs().amax(dim=-1, keepdim=True), alpha=1 / self.levels)
        y = self.product(x / scales, 1.0, self.levels + 1, self.weight)
        torch.addcmul(self.bias, y, scales, out=y)
        y = y if self.activation is None else self.activation(y)
        return y if add is None else y.add_(add)


class LooseLinear:
    """What `ReadyLinear` does, by the layers as they are, without a copy of their weights."""

    def __init__(
        self,
        layers: nn.Linear | Sequence[nn.Linear],
        dtype: torch.dtype,
        activation: str | None = None,
        bias: torch.Tensor | None = None,
    ):
        self.layers = _plain_layers(layers)
        self.activation = None if activation is None else ACT2FN[activation]
        self.further_bias = bias

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        parts = [linear(x, layer.weight, layer.bias) for layer in self.layers]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        y = y if self.further_bias is None else y + self.further_bias
        y = y if self.activation is None else self.activation(y)
        return y if add is None else y + add


def _has_vnni() -> bool:
    ask = getattr(torch.cpu, "_is_vnni_supported", None)
    return ask is not None and ask()


@cache
def int8_works() -> bool:
    """Whether this PyTorch has the operators of `Int8Linear`, and they multiply rightly."""
    try:
        with torch.random.fork_rng(devices=[]):  # a layer begins with random numbers
            layer = nn.Linear(32, 16)
        x = torch.linspace(-1, 1, 4 * 32).view(4, 32)
        with torch.inference_mode():
            expected = layer(x)
            found = Int8Linear(layer, torch.float32)(x)
        return bool((found - expected).abs().max() < 0.05 * expected.abs().max())
    except (AttributeError, RuntimeError, TypeError):
        return False


def kind_of_linear(dtype: torch.dtype, device: torch.device) -> type[ReadyLinear]:
    """Which of the above is fastest there.

    Raises:
        ValueError: if eight bits are asked for where they are not to be had.
    """
    if dtype == torch.int8:
        if device.type != "cpu" or not int8_works():
            raise ValueError(
                f"torch.int8 needs a CPU and PyTorch's quantized operators, but the model is on {device} with PyTorch "
                f"{torch.__version__}; use torch.bfloat16"
            )
        return Int8Linear
    pays = dtype == torch.bfloat16 or (dtype == torch.float32 and onednn_is_faster())
    return OneDnnLinear if device.type == "cpu" and pays and onednn_works(dtype) else ReadyLinear


# --- parts of layers -------------------------------------------------------------------------------------------------


class ReadyNorm:
    """A LayerNorm in another number format, or nothing for nothing."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype):
        self.is_norm = type(norm) is nn.LayerNorm
        if isinstance(norm, nn.LayerNorm) and self.is_norm:
            self.shape, self.eps = norm.normalized_shape, norm.eps
            self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        elif type(norm) is not nn.Identity:
            raise NoTwin

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps) if self.is_norm else x


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """(batch, heads, queries, head_dim) and (batch, heads, keys, head_dim) → (batch, heads, queries, head_dim)

    `mask` is added to the scores, (batch, 1, 1 or queries, keys).
    """
    if _formula_is_faster(query, key):
        query = query if scaling == 1 else query * scaling
        size = query[0, ..., 0].numel() * key.shape[-2] * query.element_size()  # bytes of a row's scores
        some = max(1, IN_CACHE // size)
        if some >= len(query):
            return _formula(query, key, value, mask)
        attended = torch.empty_like(query)
        for i in range(0, len(query), some):
            rows = slice(i, i + some)
            attended[rows] = _formula(query[rows], key[rows], value[rows], None if mask is None else mask[rows])
        return attended
    return nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)


def _formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = query @ key.transpose(-2, -1)
    scores = scores if mask is None else scores.add_(mask)
    return torch.softmax(scores, dim=-1, out=scores) @ value


def joined(heads: torch.Tensor) -> torch.Tensor:
    """(batch, heads, length, head_dim) → (batch, length, heads · head_dim)"""
    return heads.transpose(1, 2).flatten(-2)


def _formula_is_faster(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Than sdpa's kernel for CPUs, which gives float32 to MKL, and bfloat16 too, by turns in float32."""
    if query.device.type != "cpu" or key.shape[-2] > MOST_KEYS:
        return False
    if query.shape[-2] == 1:
        return query.shape[0] >= 8 and key.shape[-2] >= 16
    if query.dtype == torch.float32:
        return onednn_is_faster() and key.shape[-2] <= MOST_KEYS // 2
    return query.dtype == torch.bfloat16 and query.numel() * key.shape[-2] >= 2**21


def added_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """(batch, keys), 1 for what may be read → (batch, 1, 1, keys), to be added to scores"""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)[:, None, None]


class ReadySelfAttention:
    """Every place of x reads all that the mask leaves of it."""

    def __init__(
        self,
        attention: MultiHeadAttention,
        kind: type[ReadyLinear],
        dtype: torch.dtype,
        scale: torch.Tensor | None = None,
    ):
        self.heads, self.scaling = attention.config.num_attention_heads, 1.0
        scales = torch.ones(3, attention.config.hidden_size, device=attention.q_proj.weight.device)
        if type(attention.q_norm) is nn.Identity:
            scales[0] = attention.scaling  # of the queries, which is of the scores
        else:
            self.scaling = attention.scaling
        self.qkv_proj = kind([attention.q_proj, attention.k_proj, attention.v_proj], dtype, scale=scales.flatten())
        self.q_norm, self.k_norm = ReadyNorm(attention.q_norm, dtype), ReadyNorm(attention.k_norm, dtype)
        self.out_proj = kind(attention.out_proj, dtype, scale=scale)

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None = None, add: torch.Tensor | None = None):
        """(batch, length, hidden_size) → the same, with `add` added; `mask` as in `attend`."""
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        attended = attend(self.q_norm(query), self.k_norm(key), value, mask, self.scaling)
        return self.out_proj(joined(attended), add)


# --- twins -----------------------------------------------------------------------------------------------------------


class Twin:
    """What stands beside a module's layers.

    Args:
        module: whose weights it is made of.
        dtype: of its products; int8 counts as float32 outside them.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self.dtype = torch.float32 if dtype == torch.int8 else dtype
        self.weights = _weights(module)
        self.attentions = [part for part in module.modules() if isinstance(part, MultiHeadAttention)]
        # What is given back teaches glibc to keep as much the next time, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD):
        # memory that comes fresh from the system costs more than many a layer that writes to it
        torch.empty(KEPT, dtype=torch.uint8)

    def may_answer(self, module: nn.Module) -> bool:
        """Whether nobody wants to see the layers at work."""
        return (
            not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
            and not torch.is_autocast_enabled(next(module.parameters()).device.type)
            and not _active_collector.get()
            and not any(attention.recorders for attention in self.attentions)
            and all(attention.config._attn_implementation == "sdpa" for attention in self.attentions)
            and not any(map(_is_hooked, _parts(module)))
        )


def _parts(module: nn.Module) -> list[nn.Module]:
    """As `modules()`, in a tenth of its time, which every call of a small model would notice."""
    parts = [module]
    for part in parts:
        parts.extend(child for child in part._modules.values() if child is not None)
    return parts


def _weights(module: nn.Module) -> list[tuple[int, int]]:
    """Where the weights are, and how often they were written to."""
    return [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for part in _parts(module)
        for weight in (*part._parameters.values(), *part._buffers.values())
        if weight is not None
    ]


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody else than transformers, whose hooks sleep unless asked, wants to see this module called."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "_hf_hook" in module.__dict__ or any(getattr(hook, "__name__", "") != CAPTURING for hook in hooks)


class Preparable:
    """For an `nn.Module`, before it among the bases: `_make_twin` says how its twin is made, if it has one."""

    _twin: Twin | None = None
    _asked_dtype: torch.dtype | None = None

    def prepare_for_inference(self: Any, dtype: torch.dtype | None = None) -> Any:
        """Lay the weights out for this processor, once, so that every later call in evaluation is faster.

        Results are the same up to rounding (float32: 1e-5 of the largest at most). The weights themselves stay as they
        are, also in `state_dict()` and `save_pretrained()`; the copies take the memory of `dtype` once more. Weights
        that change are noticed, and laid out anew; `train()` lets go of the copies. Where a twin does not apply
        (gradients, attention or hidden states asked for, hooks, another attention kernel than sdpa, autocast,
        torch.compile), the layers answer as before.

        Args:
            dtype: number format of the products: that of the weights by default; torch.bfloat16, which processors
                with AVX512-BF16 or AMX multiply twice as fast, with 8 bits of precision instead of 24; for translators
                also torch.int8, weights and inputs of a product rounded to 8 bits, each row by itself.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: for another number format, or one that this model or machine does not have.
        """
        if dtype not in DTYPES or (dtype == torch.int8 and not self._has_int8()):
            names = "torch.float32, torch.bfloat16" + (", torch.int8" if self._has_int8() else "")
            raise ValueError(
                f"dtype is {dtype}; {type(self).__name__} can be prepared in {names}, or None for its own"
            )
        self.eval()
        for module in self.modules():
            if isinstance(module, Preparable):
                module._asked_dtype = dtype
                module._twin = module._made_twin()
        return self

    def train(self: Any, mode: bool = True) -> Any:
        if mode:
            self._twin = None
        return super().train(mode)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_twin": None}  # its weights are in layouts that cannot be copied

    def ready(self: Any) -> Any | None:
        """The twin, up to date, where it may answer instead of the layers."""
        if self._twin is None or not self._twin.may_answer(self):
            return None
        if self._twin.weights != _weights(self):
            self._twin = self._made_twin()
        return self._twin

    def _made_twin(self: Any) -> Twin | None:
        own = next(self.parameters())
        dtype = own.dtype if self._asked_dtype is None else self._asked_dtype
        with torch.no_grad():
            try:
                return self._make_twin(kind_of_linear(dtype, own.device), dtype)
            except NoTwin:
                return None

    def _make_twin(self, kind: type[ReadyLinear], dtype: torch.dtype) -> Twin | None:
        """A twin whose products are of this kind and number format."""
        return None

    def _has_int8(self) -> bool:
        return False
