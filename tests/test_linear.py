"""The linear layer by oneDNN against torch's own: values, gradients, and when it keeps out of the way."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import hf_attn.linear
from hf_attn.linear import (
    Linear,
    linear,
    onednn_is_faster,
    onednn_layout,
    onednn_linear,
    onednn_works,
    products_by_onednn,
)

needs_onednn = pytest.mark.skipif(not onednn_works(torch.float32), reason="this PyTorch has no oneDNN")
SHAPES = [(300, 64, 96), (2, 150, 64, 96), (7, 1, 320, 512)]  # (..., inputs, outputs), above WORTH


@pytest.fixture
def onednn(monkeypatch):
    """As on a machine where oneDNN is faster."""
    monkeypatch.setattr(hf_attn.linear, "onednn_is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """One entry for each product by oneDNN."""
    taken: list[int] = []
    own = hf_attn.linear.onednn_linear
    monkeypatch.setattr(hf_attn.linear, "onednn_linear", lambda *a, **k: taken.append(1) or own(*a, **k))
    return taken


def inputs(*shape: int, has_bias: bool = True) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    *rows, width, outputs = shape
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((*rows, width), (outputs, width), outputs))
    return [x, weight / width**0.5, bias if has_bias else None]


@needs_onednn
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(onednn, calls, shape, has_bias):
    given = inputs(*shape, has_bias=has_bias)
    with torch.no_grad():
        assert_close(linear(*given), functional.linear(*given), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    gradients = []
    for product in (linear, functional.linear):
        leaves = [one.clone().requires_grad_() for one in given if one is not None]
        out = product(*leaves)
        gradients.append(torch.autograd.grad((out.sin() * torch.arange(out.shape[-1])).sum(), leaves))
    assert len(calls) == 4
    for ours, theirs in zip(*gradients, strict=True):
        assert ((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


@needs_onednn
def test_gradients_have_gradients(onednn):
    seconds = []
    for product in (linear, functional.linear):
        x, weight, bias = (one.requires_grad_() for one in inputs(300, 64, 96))
        [first] = torch.autograd.grad(product(x, weight, bias).sin().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for ours, theirs in zip(*seconds, strict=True):
        assert ((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


@needs_onednn
def test_only_what_is_asked_for_gets_a_gradient(onednn):
    layer = Linear(64, 96)
    layer.weight.requires_grad_(False)
    x = torch.randn(300, 64)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and x.grad is None


@needs_onednn
@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_activations_inside_a_product_are_those_outside_of_it(activation):
    x, weight, bias = inputs(300, 64, 96)
    outside = {"relu": functional.relu, "gelu": functional.gelu, "swish": functional.silu}[activation]
    found = onednn_linear(x, onednn_layout(weight, 300), bias, activation, "none" if activation == "gelu" else "")
    assert_close(found, outside(functional.linear(x, weight, bias)), rtol=1e-5, atol=1e-5)
    added = onednn_linear(x, weight, bias, add=torch.ones(300, 96))
    assert_close(added, functional.linear(x, weight, bias) + 1, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_strides_do_not_matter(onednn):
    x, weight, _ = inputs(300, 64, 96)
    with torch.no_grad():
        expected = functional.linear(x, weight)
        assert_close(linear(x.t().contiguous().t(), weight), expected, rtol=1e-5, atol=1e-5)
        assert_close(linear(x, weight.t().contiguous().t()), expected, rtol=1e-5, atol=1e-5)
        assert_close(linear(torch.stack([x, -x], 1)[:, 0], weight), expected, rtol=1e-5, atol=1e-5)


def in_autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def under_a_counter(layer, x):
    with FlopCounterMode(display=False) as counter:
        out = layer(x)
    assert counter.get_total_flops() == 2 * x.numel() * layer.out_features
    return out


AWAY = {
    "autocast": in_autocast,
    "a counter of operations": under_a_counter,
    "vmap": lambda layer, x: torch.vmap(layer)(x),
    "a trace": lambda layer, x: torch.jit.trace(layer, x, check_trace=False)(x),
    "another number format": lambda layer, x: layer.double()(x.double()),
    "a single row of few": lambda layer, x: layer(x[0]),
    "no rows": lambda layer, x: layer(x[:0]),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", AWAY)
def test_it_keeps_away_where_others_look_or_it_does_not_pay(onednn, calls, way):
    layer, x = Linear(64, 96), torch.randn(300, 64)
    with torch.no_grad():
        out = AWAY[way](layer, x)
    assert not calls
    assert out.shape[-1] == 96


def test_a_model_that_is_exported_has_torch_operators_only(onednn):
    program = torch.export.export(Linear(64, 96), (torch.randn(300, 64),))
    assert {node.target.namespace for node in program.graph.nodes if node.op == "call_function"} == {"aten"}


def test_numbers_of_its_own_that_are_wrong_turn_it_off(monkeypatch):
    monkeypatch.setattr(hf_attn.linear, "onednn_linear", lambda x, weight, *a, **k: torch.zeros(8, 16))
    onednn_works.cache_clear()
    try:
        assert not onednn_works(torch.float32)
    finally:
        onednn_works.cache_clear()


def test_it_is_used_where_it_is_faster(monkeypatch):
    for gain, expected in ((2.0, onednn_works(torch.float32)), (1.0, False)):
        onednn_is_faster.cache_clear()
        monkeypatch.setattr(hf_attn.linear, "_gain", lambda gain=gain: gain)
        monkeypatch.delenv(hf_attn.linear.SWITCH, raising=False)
        assert onednn_is_faster() is expected
    onednn_is_faster.cache_clear()


@pytest.mark.parametrize(("value", "said"), [("0", "False"), ("off", "HF_ATTN_ONEDNN is 'off'")])
def test_the_switch_in_the_environment(value, said):
    code = "from hf_attn.linear import onednn_is_faster\nprint(onednn_is_faster())"
    environment = {**os.environ, "HF_ATTN_ONEDNN": value}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said in ran.stdout + ran.stderr


@needs_onednn
@pytest.mark.skipif(not hf_attn.linear._stays_float32(), reason="oneDNN would round to bfloat16")
def test_other_products_by_onednn_are_the_same_and_the_setting_is_put_back(onednn):
    x = torch.randn(4, 65, 64, generator=torch.Generator().manual_seed(0))
    before, expected = torch.backends.mkldnn.matmul.fp32_precision, x.double() @ x.double().mT
    with pytest.raises(KeyError), products_by_onednn():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        found = x @ x.mT
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_where_onednn_would_round_nothing_is_changed(onednn, monkeypatch):
    monkeypatch.setattr(hf_attn.linear, "_stays_float32", lambda: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products_by_onednn():
        assert torch.backends.mkldnn.matmul.fp32_precision == before
