"""Every kernel computes the formula, whoever may read whom, in every precision, forward and backward."""

import copy
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_attn.attention
from hf_attn import AttnTranslatorConfig, MultiHeadAttention, NonLocalBlock, eager_attention
from hf_attn.attention import (
    attention_weights,
    causal_mask,
    cross_attention_mask,
    grouped_attention_mask,
    self_attention_mask,
)
from tests.tiny import randomise, tiny_translator

pytestmark = [
    # transformers' own call; flex without a compiler computes the same scores, and takes no minute to compile
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

KERNELS = ("eager", "sdpa", "flex_attention")
PADDING = {  # (batch, keys)
    "unpadded": None,
    "padded_right": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
    "padded_left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "one_all_padding": [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]],
}
PATTERNS = ("bidirectional", "causal", "cross")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}
BATCH, HEADS, KEYS, WIDTH = 2, 4, 5, 16

patterns = pytest.mark.parametrize("pattern", PATTERNS)
paddings = pytest.mark.parametrize("padding", PADDING)
kernels = pytest.mark.parametrize("kernel", KERNELS)


def attention(kernel: str = "eager", is_causal: bool = False, dtype: torch.dtype = torch.float32, **config):
    config = AttnTranslatorConfig(hidden_size=WIDTH, num_attention_heads=HEADS, attn_implementation=kernel, **config)
    torch.manual_seed(0)
    return randomise(MultiHeadAttention(config, is_causal)).to(dtype).eval()


def inputs(pattern: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, queries, width) and (batch, keys, width): the same but for cross-attention."""
    generator = torch.Generator().manual_seed(1)
    key = torch.randn(BATCH, KEYS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    query = torch.randn(BATCH, 3, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return (query, key) if pattern == "cross" else (key, key)


def mask_for(module: MultiHeadAttention, pattern: str, padding: str, query: torch.Tensor, key: torch.Tensor):
    keep = None if PADDING[padding] is None else torch.tensor(PADDING[padding])
    if pattern == "cross":
        return cross_attention_mask(module.config, query, key, keep)
    return self_attention_mask(module.config, query, keep, is_causal=pattern == "causal")


@contextmanager
def runnable(kernel: str):
    """Flex attention wants a compiler: here it runs without."""
    with torch.compiler.set_stance("force_eager" if kernel == "flex_attention" else "default"):
        yield


def read(kernel: str, pattern: str, padding: str, dtype: torch.dtype = torch.float32) -> tuple:
    module = attention(kernel, pattern == "causal", dtype)
    query, key = inputs(pattern, dtype)
    with runnable(kernel), torch.no_grad():
        mask = mask_for(module, pattern, padding, query, key)
        return module(query, key, key, mask, output_attentions=True)


def visible(pattern: str, padding: str, queries: int) -> np.ndarray:
    """(batch, queries, keys), True where a query may read a key; by the definition, without the library."""
    keep = np.ones((BATCH, KEYS)) if PADDING[padding] is None else np.array(PADDING[padding])
    return np.array(
        [
            [[keep[b, j] == 1 and (pattern != "causal" or j <= i) for j in range(KEYS)] for i in range(queries)]
            for b in range(BATCH)
        ]
    )


def written_out(module: MultiHeadAttention, query, key, may_read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's formula, one query at a time, in float64 numpy. Returns the output and the weights."""

    def project(linear: torch.nn.Linear, x) -> np.ndarray:
        weight, bias = (parameter.detach().double().numpy() for parameter in (linear.weight, linear.bias))
        return np.asarray(x, dtype=np.float64) @ weight.T + bias

    width = WIDTH // HEADS
    x, y = query.double().numpy(), key.double().numpy()
    q, k, v = project(module.q_proj, x), project(module.k_proj, y), project(module.v_proj, y)
    attended = np.zeros_like(q)
    weights = np.zeros((len(q), HEADS, q.shape[1], k.shape[1]))
    for b, h, i in np.ndindex(len(q), HEADS, q.shape[1]):
        part = slice(h * width, (h + 1) * width)
        keys = np.flatnonzero(may_read[b, i])
        if len(keys) == 0:
            continue
        scores = np.array([q[b, i, part] @ k[b, j, part] / math.sqrt(width) for j in keys])
        weights[b, h, i, keys] = np.exp(scores) / np.exp(scores).sum()
        attended[b, i, part] = weights[b, h, i] @ v[b, :, part]
    return project(module.out_proj, attended), weights


# --- the formula, under every kernel ---------------------------------------------------------------------------------


@kernels
@patterns
@paddings
def test_every_kernel_computes_the_formula(kernel, pattern, padding):
    output, weights = read(kernel, pattern, padding)
    query, key = inputs(pattern)
    expected, expected_weights = written_out(attention(), query, key, visible(pattern, padding, query.shape[1]))
    assert_close(output, torch.tensor(expected).float(), rtol=0, atol=2e-6)
    assert_close(weights, torch.tensor(expected_weights).float(), rtol=0, atol=2e-6)


@kernels
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_precision_is_kept(kernel, dtype, pattern):
    output, weights = read(kernel, pattern, "padded_right", dtype)
    module, (query, key) = attention(dtype=dtype), inputs(pattern, dtype)
    expected, _ = written_out(module, query, key, visible(pattern, "padded_right", query.shape[1]))
    assert output.dtype == weights.dtype == dtype
    assert_close(output.double(), torch.tensor(expected), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@patterns
@paddings
def test_rows_sum_to_one_and_hidden_keys_weigh_nothing(pattern, padding):
    _, weights = read("eager", pattern, padding)
    may_read = torch.tensor(visible(pattern, padding, weights.shape[2])).unsqueeze(1)
    assert (weights.masked_select(~may_read) == 0).all()
    assert_close(weights.sum(-1), may_read.any(-1).float().expand(-1, HEADS, -1))  # zero where nothing may be read


@patterns
@paddings
def test_gradients_of_eager_and_sdpa_agree(pattern, padding):
    gradients = []
    for kernel in ("eager", "sdpa"):
        module = attention(kernel, pattern == "causal", torch.float64)
        query, key = (x.clone().requires_grad_() for x in inputs(pattern, torch.float64))
        output, _ = module(query, key, key, mask_for(module, pattern, padding, query, key))
        output.square().sum().backward()
        gradients.append([query.grad, key.grad, *(p.grad for p in module.parameters())])
    for eager, sdpa in zip(*gradients, strict=True):
        assert eager.abs().sum() > 0
        assert_close(sdpa, eager, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_formula_is_its_derivative():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (2, 4, 4)
    )
    mask = torch.tensor([[True, True, False, True], [False, False, False, False]])
    module = SimpleNamespace(training=False, is_causal=False)
    assert torch.autograd.gradcheck(lambda q, k, v: eager_attention(module, q, k, v, mask)[0], (q, k, v))


# --- a query that may read nothing -----------------------------------------------------------------------------------


def mask_of_kind(allowed: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
    if kind == "bool":
        return allowed
    lowest = torch.finfo(dtype).min if kind == "minimum" else -math.inf
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, lowest)


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.float16])
@pytest.mark.parametrize(
    ("kernel", "kind"),
    # sdpa would average everything under a mask of minima; transformers never gives it one, but a bool
    [("eager", "bool"), ("eager", "minimum"), ("eager", "infinity"), ("sdpa", "bool"), ("sdpa", "infinity")],
)
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_a_query_that_may_read_nothing_reads_zeros(kernel, kind, dtype, queries):
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention)
    q, k, v = (torch.randn(2, 2, n, 8).to(dtype).requires_grad_() for n in (queries, 70, 70))
    allowed = torch.ones(2, 1, queries, 70, dtype=torch.bool)
    allowed[0, 0, 0] = False
    allowed[1, :, :, 5:] = False
    module = SimpleNamespace(training=False, is_causal=False)
    attended, _ = attend(module, q, k, v, mask_of_kind(allowed, kind, dtype), scaling=8**-0.5, dropout=0.0)
    attended.float().square().sum().backward()
    assert (attended[0, 0] == 0).all()
    assert (attended[1] != 0).any()
    assert (q.grad[0, :, 0] == 0).all()
    for x in (attended, q.grad, k.grad, v.grad):
        assert x.isfinite().all()


def test_a_mask_that_is_added_moves_the_weights_by_as_much():
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
    bias = torch.randn(1, 1, 2, 3)
    expected = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1)
    assert_close(attention_weights(q, k, bias), expected)


def test_scores_beyond_the_range_of_float16_stay_finite_in_the_softmax():
    q = torch.full((1, 1, 1, 64), 30.0, dtype=torch.float16)
    weights = attention_weights(q, torch.cat([q, -q], dim=2), scaling=1.0 / 64)
    assert_close(weights, torch.tensor([[[[1.0, 0.0]]]]))


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["unpadded", "padded_right", "padded_left"])
@patterns
def test_agrees_with_torch_multihead_attention(pattern, padding):
    module = attention("sdpa", pattern == "causal", torch.float64)
    other = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64).eval()
    projections = (module.q_proj, module.k_proj, module.v_proj)
    other.in_proj_weight.data = torch.cat([p.weight.data for p in projections])
    other.in_proj_bias.data = torch.cat([p.bias.data for p in projections])
    other.out_proj.load_state_dict(module.out_proj.state_dict())
    query, key = inputs(pattern, torch.float64)
    may_read = torch.tensor(visible(pattern, padding, query.shape[1]))
    seeing = may_read.any(-1)  # torch gives NaN to a query that sees nothing
    expected, _ = other(query, key, key, attn_mask=~may_read.repeat_interleave(HEADS, dim=0), need_weights=False)
    output, _ = module(query, key, key, mask_for(module, pattern, padding, query, key))
    assert_close(output[seeing], expected[seeing], rtol=1e-10, atol=1e-12)


def test_query_key_and_value_are_read_apart():
    module = attention(dtype=torch.float64)
    query, key = inputs("cross", torch.float64)
    value = key.flip(-1)
    output, weights = module(query, key, value, output_attentions=True)
    of_key = module(query, key, key, output_attentions=True)
    assert_close(weights, of_key[1])
    read_value = weights @ module.v_proj(value).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    assert_close(output, module.out_proj(read_value.transpose(1, 2).flatten(-2)))


def test_dropout_takes_weights_away_and_scales_the_others():
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    _, weights = eager_attention(SimpleNamespace(training=False, is_causal=False), q, k, v, None, dropout=0.5)
    _, dropped = eager_attention(SimpleNamespace(training=True, is_causal=False), q, k, v, None, dropout=0.5)
    ratios = (dropped / weights).flatten()
    assert_close(ratios, torch.where(ratios > 1, 2.0, 0.0))
    assert 0.4 < (ratios > 1).float().mean() < 0.6


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attention_dropout_is_for_training_alone(kernel):
    module = attention(kernel, attention_dropout=0.5)
    x, _ = inputs("bidirectional")
    assert_close(module(x, x, x)[0], module(x, x, x)[0], rtol=0, atol=0)
    module.train()
    assert not torch.equal(module(x, x, x)[0], module(x, x, x)[0])


def test_heads_that_do_not_divide_the_width_are_refused():
    config = SimpleNamespace(hidden_size=10, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of 4 heads"):
        MultiHeadAttention(config)


def test_every_attention_of_the_model_says_whether_it_is_causal():
    # sdpa takes a missing is_causal for True, and then an unpadded encoder reads only backwards
    model = tiny_translator()
    found = {name: m.is_causal for name, m in model.named_modules() if isinstance(m, MultiHeadAttention)}
    assert len(found) == 2 + 2 * 2
    assert found == {name: "decoder" in name and "self_attention" in name for name in found}


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_compiles_without_a_graph_break(kernel, output_attentions, is_causal):
    torch.compiler.reset()
    module = attention(kernel, is_causal)
    x, _ = inputs("causal")
    mask = mask_for(module, "causal" if is_causal else "bidirectional", "padded_left", x, x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for given in (mask, None):
        expected = module(x, x, x, given, output_attentions=output_attentions)
        found = compiled(x, x, x, given, output_attentions=output_attentions)
        assert_close(found[0], expected[0])
        assert (found[1] is not None) == output_attentions
        if output_attentions:
            assert_close(found[1], expected[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "padding"),
    [("causal", "padded_left"), ("cross", "padded_right"), ("bidirectional", "one_all_padding")],
)
def test_compiled_flex_attention_computes_the_formula(pattern, padding):
    torch.compiler.reset()
    module = attention("flex_attention", pattern == "causal")
    query, key = inputs(pattern)
    with torch.no_grad():
        output, _ = module(query, key, key, mask_for(module, pattern, padding, query, key))
    expected, _ = written_out(module, query, key, visible(pattern, padding, query.shape[1]))
    assert_close(output, torch.tensor(expected).float(), rtol=0, atol=2e-6)


# --- a kernel of the user's own --------------------------------------------------------------------------------------


@pytest.fixture(params=["with_mask_function", "without_mask_function"])
def own_kernel(request):
    """The name of a registered kernel, and the list of the shapes of the masks that it was called with."""
    calls: list[tuple[int, ...]] = []

    def own(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        calls.append(tuple(attention_mask.shape))
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
        return attended.transpose(1, 2).contiguous(), None

    name = f"own_{request.param}"
    AttentionInterface.register(name, own)
    if request.param == "with_mask_function":
        full = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        sdpa_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        AttentionMaskInterface.register(name, lambda *args, **kwargs: sdpa_mask(*args, **{**kwargs, **full}))
    yield name, calls
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name)


@patterns
@paddings
def test_a_kernel_of_the_users_own_gets_a_mask_and_is_called(own_kernel, pattern, padding):
    name, calls = own_kernel
    output, _ = read(name, pattern, padding)
    query, key = inputs(pattern)
    expected, _ = written_out(attention(), query, key, visible(pattern, padding, query.shape[1]))
    assert calls == [(BATCH, 1, query.shape[1], KEYS)]
    assert_close(output, torch.tensor(expected).float(), rtol=0, atol=2e-6)


def test_a_model_can_be_switched_to_a_kernel_of_the_users_own(own_kernel):
    name, calls = own_kernel
    model = tiny_translator()
    source, target = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]]), torch.tensor([[0, 9, 10], [0, 11, 12]])
    expected = model(input_ids=source, decoder_input_ids=target).logits
    model.set_attn_implementation(name)
    assert_close(model(input_ids=source, decoder_input_ids=target).logits, expected, rtol=0, atol=1e-5)
    assert len(calls) == 2 + 2 * 2


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize("steps", [[1, 1, 1, 1, 1], [2, 3], [3, 1, 1]], ids=str)
@pytest.mark.parametrize("padding", ["unpadded", "padded_left"])
def test_step_by_step_with_a_cache_equals_all_at_once(kernel, cache_class, steps, padding):
    expected, _ = read(kernel, "causal", padding)
    module = attention(kernel, is_causal=True)
    room = {"max_cache_len": KEYS + 2} if cache_class is StaticCache else {}
    cache = cache_class(config=module.config, **room)
    x, _ = inputs("causal")
    keep = None if PADDING[padding] is None else torch.tensor(PADDING[padding])
    outputs, seen = [], 0
    for step in steps:
        new = x[:, seen : seen + step]
        seen += step
        mask = self_attention_mask(module.config, new, None if keep is None else keep[:, :seen], True, cache)
        outputs.append(module(new, new, new, mask, cache)[0])
    assert_close(torch.cat(outputs, dim=1), expected, rtol=0, atol=2e-6)


def test_without_key_the_memory_in_the_cache_is_read():
    module = attention()
    query, key = inputs("cross")
    cache = DynamicCache(config=module.config)
    expected, _ = module(query, key, key, cache=cache)
    assert_close(module(query, None, None, cache=cache)[0], expected, rtol=0, atol=0)
    assert cache.get_seq_length() == KEYS


def test_causal_means_not_later():
    assert causal_mask(3, 4).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert causal_mask(2, 4, seen=2).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


# --- the same formula on a feature map -------------------------------------------------------------------------------


def non_local(block: NonLocalBlock, x: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2018: y_i = 1/C(x) Σ_j exp(θ(x_i)ᵀ φ(x_j)) g(x_j), z_i = W_z y_i + x_i (equations 1, 3 and 6)."""

    def at(convolution: torch.nn.Conv2d, vector: torch.Tensor) -> torch.Tensor:
        return convolution.weight[:, :, 0, 0] @ vector + convolution.bias

    z = torch.empty_like(x)
    places = [(row, column) for row in range(x.shape[2]) for column in range(x.shape[3])]
    for picture in range(len(x)):
        x_at = {place: x[picture, :, place[0], place[1]] for place in places}
        for i in places:
            f = {j: torch.exp(at(block.theta, x_at[i]) @ at(block.phi, x_at[j])) for j in places}
            y = sum(f[j] * at(block.g, x_at[j]) for j in places) / sum(f.values())
            z[picture, :, i[0], i[1]] = at(block.out, y) + x_at[i]
    return z


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("inner_channels", [None, 3])
def test_non_local_block_is_the_paper_s_formula(size, inner_channels):
    block = randomise(NonLocalBlock(6, inner_channels), std=0.5).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    found, expected = block(x), non_local(block, x)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wanted = [x, *block.parameters()]
    gradients = [torch.autograd.grad(z.square().sum(), wanted) for z in (found, expected)]
    for name, ours, theirs in zip(["x", *dict(block.named_parameters())], *gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"gradient of {name}: {text}")


def test_a_fresh_non_local_block_changes_nothing_and_can_learn():
    block = NonLocalBlock(8)
    x = torch.randn(2, 8, 3, 5)
    assert block.theta.out_channels == 4
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("keys", [1, 7, 256, 257])
@torch.no_grad()
def test_short_attention_in_bfloat16_is_sdpa_within_its_rounding(keys, monkeypatch):
    """Of 256 keys it is taken in place of sdpa, of more it is not; both are as near to float32 as bfloat16 allows."""
    module = randomise(MultiHeadAttention(tiny_translator().config), std=0.5).eval()
    module.config._attn_implementation = "sdpa"
    query, memory = torch.randn(2, 5, 16), torch.randn(2, keys, 16)
    exact, _ = module(query, memory, memory)
    taken = []
    short = hf_attn.attention.short_attention
    monkeypatch.setattr(hf_attn.attention, "short_attention", lambda *a, **k: taken.append(1) or short(*a, **k))
    half = copy.deepcopy(module).bfloat16()
    read, _ = half(query.bfloat16(), memory.bfloat16(), memory.bfloat16())
    assert bool(taken) == (keys <= 256)
    monkeypatch.setattr(hf_attn.attention, "SHORT", 0)
    fused, _ = half(query.bfloat16(), memory.bfloat16(), memory.bfloat16())
    tolerance = 2 * (fused.float() - exact).abs().max().item()
    assert_close(read.float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("change", ["mask", "causal", "training", "gradients", "float32"])
def test_short_attention_is_left_out_where_it_does_not_apply(change, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("short_attention was taken")

    monkeypatch.setattr(hf_attn.attention, "short_attention", refuse)
    module = MultiHeadAttention(tiny_translator().config, is_causal=change == "causal").eval().bfloat16()
    module.config._attn_implementation = "sdpa"
    module.train(change == "training")
    module = module.float() if change == "float32" else module
    x = torch.randn(2, 5, 16, dtype=module.q_proj.weight.dtype)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool) if change == "mask" else None
    with torch.set_grad_enabled(change == "gradients"):
        assert module(x, x, x, mask)[0].isfinite().all()


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_each_reads_its_own_group_and_group_zero(kernel):
    config = AttnTranslatorConfig()
    config._attn_implementation = kernel
    group, kept = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
    mask = grouped_attention_mask(config, torch.zeros(2, 5, 8), kept, group)
    allowed = mask if mask.dtype == torch.bool else mask == 0
    own = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]])
    assert torch.equal(allowed[:, 0], (own * kept[:, None]).bool())


def test_groups_are_refused_by_flash_attention_which_would_pass_over_them():
    config = AttnTranslatorConfig()
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2 has no masks .*; train with attn_implementation"):
        grouped_attention_mask(config, torch.zeros(1, 3, 8), None, torch.tensor([0, 1, 2]))
