"""Linear layers, computed on a CPU by whichever of two libraries is faster there.

PyTorch gives float32 products to MKL, which on AMD's processors leaves AVX-512 aside and reaches 40 to 50 % of what
they can do. oneDNN, which comes in the same wheel, reaches 85 to 95 % and differs from MKL by rounding alone. Which of
the two is faster is measured once a process, not read off a processor's name.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

SWITCH = "HF_ATTN_ONEDNN"  # an environment variable: 0 leaves all to PyTorch's choice
WORTH = 2**20  # multiply-adds from which on oneDNN's dearer call has paid for itself
GAIN = 1.15  # how much faster oneDNN must be
TRIED = (256, 512, 1024)  # rows, inputs and outputs of what is measured: about a millisecond each time


class Linear(nn.Linear):
    """torch's linear layer, faster where it can be, in inference and in training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b, as `F.linear`: (..., inputs), (outputs, inputs) and (outputs,) → (..., outputs)."""
    if not _is_for_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDnnLinear.apply(x, weight, bias)
    return onednn_linear(x, weight, bias)


def onednn_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    algorithm: str = "",
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """x Wᵀ + b by oneDNN, then an activation, or with something added; it has no gradient.

    Args:
        weight: (outputs, inputs), of any strides, or in oneDNN's own layout, from `onednn_layout`.
        activation: "none", "relu", "gelu" or "swish".
        algorithm: of gelu: "none" for the exact one, "tanh" for its approximation.
        add: (..., outputs).
    """
    if add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, activation, [], algorithm)


def onednn_layout(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy of a weight in the layout that oneDNN likes for so many rows; it takes others, too, only slower."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        x, rows = x.flatten(0, -2), grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if wants_x else None,
            linear(rows.t(), x.t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


# --- where -----------------------------------------------------------------------------------------------------------


def _is_for_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # where sizes are tensors
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.ndim > 1
        and x.numel() * weight.shape[0] >= WORTH
        and not _is_watched(x, weight)
        and onednn_is_faster()
    )


def _is_watched(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether somebody looks at the operators who knows PyTorch's alone: autocast, vmap, a FLOP counter."""
    return (
        torch.is_autocast_enabled("cpu")
        or type(x) is not torch.Tensor
        or type(weight) not in (torch.Tensor, nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN in this process.

    Raises:
        ValueError: if the environment's switch is neither 0 nor 1 nor empty.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is {wanted!r}; 0 leaves linear layers to PyTorch, 1 or nothing has them measured")
    return wanted != "0" and onednn_works(torch.float32) and _gain() >= GAIN


@cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, which are private, and they multiply rightly in this number format."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (8 * 32, 16 * 32, 16))
            x, weight, bias = x.view(8, 32), weight.view(16, 32).sin(), bias
            expected = x.double() @ weight.double().t() + bias.double()
            found = (
                onednn_linear(x, weight, bias),
                onednn_linear(x, onednn_layout(weight, 8), bias, add=torch.zeros_like(expected, dtype=dtype)),
                onednn_linear(x, weight.t().contiguous().t(), bias, "relu") + (expected < 0) * expected,
            )
            return all(is_close(one, expected, dtype) for one in found)
    except (AttributeError, RuntimeError, TypeError):
        return False


@contextmanager
def products_by_onednn() -> Iterator[None]:
    """Inside, other float32 products of matrices, too, go to oneDNN where it is faster.

    PyTorch can be told so only by allowing bfloat16 inside of them. Where oneDNN would then use it, as with AMX,
    nothing is changed.
    """
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if not (onednn_is_faster() and _stays_float32()):
        yield
        return
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@cache
def _stays_float32() -> bool:
    """Whether oneDNN multiplies in float32 although it may use bfloat16."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        return False
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with torch.inference_mode():
            x = torch.linspace(-1, 1, 8 * 64 * 64).sin().view(8, 64, 64)
            return is_close(x @ x.mT, x.double() @ x.double().mT, torch.float32)
    finally:
        settings.fp32_precision = before


def is_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Sums in float32 differ by their order, those rounded to bfloat16 by a thousand times as much."""
    return bool(((found - expected).abs().max() / expected.abs().max()) < max(1e-5, 4 * torch.finfo(dtype).eps))


def _gain() -> float:
    """The time of PyTorch's own choice over oneDNN's, each the best of six."""
    rows, inputs, outputs = TRIED
    with torch.inference_mode():
        x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
        plain = _best_time(lambda: nn.functional.linear(x, weight))
        return plain / _best_time(lambda: onednn_linear(x, weight))


def _best_time(call: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
