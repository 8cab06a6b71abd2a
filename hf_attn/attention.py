"""softmax(QKᵀ/√d)V: a query reads a mixture of values, weighted by how well each key matches it.

The formula stands here once, in `eager_attention`. `MultiHeadAttention` projects queries, keys and values, lets any
kernel registered with transformers (sdpa, flash, flex, one of your own) compute it, and can show its weights under all
of them. `NonLocalBlock` is the same formula on a feature map.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_bidirectional_mask,
    create_causal_mask,
    flash_attention_mask,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .linear import Linear

SHORT = 256  # keys up to which the formula written out is faster than sdpa in bfloat16 on a CPU

# --- the formula ---------------------------------------------------------------------------------------------------


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None = None, scaling: float | None = None
) -> torch.Tensor:
    """softmax(QKᵀ · scaling + mask), computed in float32 (float64 stays float64).

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, heads, keys, head_dim).
        attention_mask: broadcastable to (batch, heads, queries, keys); bool with True for "may read", or a float that
            is added to the scores, its dtype's minimum (or -inf) for "may not read".
        scaling: 1/√head_dim by default.

    Returns:
        (batch, heads, queries, keys), each row summing to one. A query that may read nothing gets a row of zeros: it
        reads nothing, instead of NaN or of the average of everything.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-2, -1)) * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attention_mask is None:
        return scores.softmax(dim=-1)
    visible, bias = visible_keys(attention_mask)
    scores = (scores if bias is None else scores + bias).masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * visible.any(dim=-1, keepdim=True)


def visible_keys(attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split a mask into who may be read (bool) and what is added to the scores (float, or None where nothing is)."""
    if attention_mask.dtype == torch.bool:
        return attention_mask, None
    return attention_mask > torch.finfo(attention_mask.dtype).min, attention_mask


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula as in the paper, to be read, and to be compared with every faster kernel.

    Args:
        query: (batch, heads, queries, head_dim); `key` and `value` likewise with (batch, heads, keys, head_dim).
        attention_mask: as in `attention_weights`; None leaves it to `module.is_causal`, as sdpa does.

    Returns:
        What was read, (batch, queries, heads, head_dim), and the weights, (batch, heads, queries, keys).
    """
    if attention_mask is None and module.is_causal and query.shape[-2] > 1:
        attention_mask = causal_mask(query.shape[-2], key.shape[-2], query.device)
    weights = attention_weights(query, key, attention_mask, scaling).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    attended = weights @ value
    return attended.transpose(1, 2).contiguous(), weights


def short_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The formula in bfloat16 alone, without a mask; softmax still sums in float32. Arguments as in `eager_attention`.

    On a CPU with bfloat16 and up to 256 keys it takes two thirds to four fifths of the time of sdpa's kernel.
    """
    weights = ((query * scaling) @ key.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


def is_short(module: nn.Module, query: torch.Tensor, key: torch.Tensor, attention_mask) -> bool:
    """Whether `short_attention` gives what sdpa gives, and sooner; training has kernels of its own choice."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and attention_mask is None
        and not (module.is_causal or module.training)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and key.shape[-2] <= SHORT  # last: what is exported would be good for lengths like this one only
    )


# --- who may read whom ---------------------------------------------------------------------------------------------


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu", seen: int = 0) -> torch.Tensor:
    """(queries, keys), True where key j is not later than query i; `seen` keys went before the first query's own."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(seen)


def self_attention_mask(
    config: PreTrainedConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_causal: bool = False,
    cache: Cache | None = None,
):
    """The mask, in the form the configured kernel wants, for (batch, length, hidden) states that read each other.

    `attention_mask` is (batch, keys), 1 for a token and 0 for padding, or None where nothing is padded; `cache` holds
    the keys seen before, which count as keys too.
    """
    _give_kernel_a_mask(config)
    if is_causal:
        return create_causal_mask(config, hidden_states, attention_mask, cache=cache)
    return create_bidirectional_mask(config, hidden_states, attention_mask)


def grouped_attention_mask(
    config: PreTrainedConfig, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, group: torch.Tensor
):
    """The mask for (batch, length, hidden) states of which each reads its own group and group 0, and nothing else.

    Args:
        attention_mask: as in `self_attention_mask`.
        group: (length,) whole numbers.

    Raises:
        ValueError: under flash attention, which knows of no groups.
    """
    _give_kernel_a_mask(config)
    make_mask = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    if make_mask is flash_attention_mask:
        raise ValueError(
            f"{config._attn_implementation} has no masks for queries in groups, as denoising has; train with "
            'attn_implementation "sdpa", "flex_attention" or "eager"'
        )

    def reads(batch, head, query, key):
        return (group[key] == 0) | (group[key] == group[query])

    # create_bidirectional_mask would go through vmap, 14 ms instead of 0.4
    batch, length = hidden_states.shape[:2]
    return make_mask(
        batch_size=batch,
        q_length=length,
        kv_length=length,
        mask_function=reads,
        attention_mask=None if attention_mask is None else attention_mask.bool(),
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        dtype=hidden_states.dtype,
        config=config,
        device=hidden_states.device,
    )


def cross_attention_mask(
    config: PreTrainedConfig,
    hidden_states: torch.Tensor,
    memory: torch.Tensor,
    memory_mask: torch.Tensor | None,
):
    """The mask for (batch, queries, hidden) states that read a (batch, keys, hidden) memory; its mask as above."""
    _give_kernel_a_mask(config)
    return create_bidirectional_mask(config, hidden_states, memory_mask, encoder_hidden_states=memory)


def _give_kernel_a_mask(config: PreTrainedConfig) -> None:
    """A kernel registered without a mask function would get no mask at all, in silence: give it a full one."""
    if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:
        ALL_MASK_ATTENTION_FUNCTIONS.register(config._attn_implementation, _full_mask)


def _full_mask(*args, allow_is_causal_skip: bool = True, allow_is_bidirectional_skip: bool = False, **kwargs):
    """(batch, 1, queries, keys) bool, never left out."""
    return sdpa_mask(*args, allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **kwargs)


# --- the module ----------------------------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of queries, keys and values.

    `config` gives `hidden_size`, `num_attention_heads`, `attention_dropout` and the kernel (`attn_implementation`).
    """

    def __init__(self, config: PreTrainedConfig, is_causal: bool = False, layer_idx: int = 0):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads"
            )
        self.config = config
        self.is_causal = is_causal  # always set: where it is missing, sdpa takes it for True
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)
        # for a model that normalises queries and keys: norms over head_dim (Henry et al. 2020, Dehghani et al. 2023)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.recorders: list[AttentionRecorder] = []

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read `value` where `key` matches `query`.

        Args:
            query: (batch, queries, hidden_size).
            key: (batch, keys, hidden_size), or None: the keys and values that `cache` holds already, and no others.
            value: (batch, keys, hidden_size), or None with `key`.
            attention_mask: from `self_attention_mask` or `cross_attention_mask`.
            cache: new keys and values are appended to it, and all that it holds are read.

        Returns:
            (batch, queries, hidden_size), and the weights, (batch, heads, queries, keys), where `output_attentions`
            asks for them: those of the output under eager; any other kernel makes the output all the same, and the
            weights are computed a second time.
        """
        output_attentions = kwargs.pop("output_attentions", None)
        q = self.q_norm(self._split_heads(self.q_proj(query)))
        if key is None or value is None:
            if cache is None:
                raise ValueError("there is nothing to read: give key and value, or a cache that holds them")
            k, v = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            k, v = self.keys_and_values(key, value)
            if cache is not None:
                k, v = cache.update(k, v, self.layer_idx)

        attended, weights = self.read(q, k, v, attention_mask, output_attentions, **kwargs)
        return self.out_proj(attended), weights

    def keys_and_values(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, keys, hidden_size) each → projected, (batch, heads, keys, head_dim) each"""
        return self.k_norm(self._split_heads(self.k_proj(key))), self._split_heads(self.v_proj(value))

    def read(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask, output_attentions=None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The configured kernel on projected queries, keys and values, (batch, heads, length, head_dim) each.

        Returns:
            What was read, (batch, queries, hidden_size), before the output projection; and the weights, as `forward`.
        """
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        if attend is sdpa_attention_forward and is_short(self, q, k, attention_mask):
            attend = short_attention
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)

        for recorder in self.recorders:
            recorder.record(self, q, k, attention_mask)
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if attend is not eager_attention:  # what others return, if anything, need not be weights
            weights = self.weights(q, k, attention_mask) if wants_weights else None
        return attended.flatten(-2), weights if wants_weights else None

    def weights(self, q: torch.Tensor, k: torch.Tensor, attention_mask, queries: list[int] | None = None):
        """(batch, heads, queries, keys) of projected queries and keys, for chosen queries only, under any kernel."""
        mask = dense_mask(attention_mask, q, k, self.is_causal)
        if queries is not None:
            q = q[:, :, queries]
            mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., queries, :]
        return attention_weights(q, k, mask, self.scaling).to(q.dtype)

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size) → (batch, heads, length, head_dim)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


# --- seeing it -----------------------------------------------------------------------------------------------------


def dense_mask(attention_mask, query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> torch.Tensor | None:
    """Any kernel's mask as one that broadcasts to (batch, heads, queries, keys).

    None means "causal" for a causal module (sdpa), a (batch, keys) mask is flash attention's, a BlockMask flex
    attention's; the 4-D masks of eager and sdpa are dense already.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if attention_mask is None:
        return causal_mask(queries, keys, query.device) if is_causal and queries > 1 else None
    if isinstance(attention_mask, BlockMask):
        index = [torch.arange(n, device=query.device) for n in (query.shape[0], query.shape[1], queries, keys)]
        visible = attention_mask.mask_mod
        for dims in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
            visible = torch.vmap(visible, in_dims=dims)
        return visible(*index)
    if attention_mask.ndim == 2:
        visible = attention_mask.bool()[:, None, None, :]
        return visible & causal_mask(queries, keys, query.device, keys - queries) if is_causal else visible
    return attention_mask[..., :keys]


class AttentionRecorder:
    """Keeps the weights of the chosen heads and queries of one module, one tensor a forward."""

    def __init__(self, heads: list[int] | None, queries: list[int] | None):
        self.heads = heads
        self.queries = queries
        self.maps: list[torch.Tensor] = []

    @torch.no_grad()
    def record(self, module: MultiHeadAttention, q: torch.Tensor, k: torch.Tensor, attention_mask) -> None:
        if self.heads is not None:
            _check_chosen("head", self.heads, q.shape[1])
            q, k = q[:, self.heads], k[:, self.heads]
        if self.queries is not None:
            _check_chosen("query", self.queries, q.shape[2])
        self.maps.append(module.weights(q, k, attention_mask, self.queries))


class AttentionRecord:
    """What `record_attention` yields: `maps[module name]` lists (batch, heads, queries, keys), one a forward."""

    def __init__(self, recorders: dict[str, AttentionRecorder]):
        self._recorders = recorders

    @property
    def maps(self) -> dict[str, list[torch.Tensor]]:
        return {name: recorder.maps for name, recorder in self._recorders.items()}


@contextmanager
def record_attention(
    model: nn.Module,
    kind: str = "",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    queries: Iterable[int] | None = None,
) -> Iterator[AttentionRecord]:
    """Record attention weights inside the `with`, under any kernel; the kernel still makes the model's output.

    Only what is chosen is computed: one query of one head of one layer costs O(keys). Works around a forward, and
    around generate(), where every new word adds one map.

    Args:
        kind: part of the module names to record: "encoder", "decoder", "self_attention", "cross_attention", ...
        layers: indices among the layers of each kind, negative ones from the end; all by default.
        heads: indices of heads; all by default.
        queries: indices of queries; all by default.

    Raises:
        ValueError: if no attention of the model is chosen, or an index is out of range.
    """
    chosen = _choose_modules(model, kind, None if layers is None else list(layers))
    wanted_heads = None if heads is None else list(heads)
    wanted_queries = None if queries is None else list(queries)
    recorders = {name: AttentionRecorder(wanted_heads, wanted_queries) for name in chosen}
    for name, module in chosen.items():
        module.recorders.append(recorders[name])
    try:
        yield AttentionRecord(recorders)
    finally:
        for name, module in chosen.items():
            module.recorders.remove(recorders[name])


def _choose_modules(model: nn.Module, kind: str, layers: list[int] | None) -> dict[str, MultiHeadAttention]:
    attentions = {name: m for name, m in model.named_modules() if isinstance(m, MultiHeadAttention)}
    stacks: dict[str, list[str]] = defaultdict(list)  # "decoder.layers.*.cross_attention" → its layers in order
    for name in attentions:
        if kind in name:
            stacks[".".join("*" if part.isdigit() else part for part in name.split("."))].append(name)
    if not stacks:
        raise ValueError(f"no attention module's name contains {kind!r}; there are {sorted(attentions)}")
    chosen = {}
    for names in stacks.values():
        if layers is not None:
            _check_chosen("layer", layers, len(names))
        chosen.update({names[i]: attentions[names[i]] for i in (range(len(names)) if layers is None else layers)})
    return chosen


def _check_chosen(what: str, indices: list[int], count: int) -> None:
    for index in indices:
        if not -count <= index < count:
            raise ValueError(f"{what} {index} is out of range: there are {count}, so {-count} to {count - 1}")


# --- the same formula on a feature map -----------------------------------------------------------------------------


class NonLocalBlock(nn.Module):
    """Non-local block, embedded Gaussian: z = W_z · softmax(θ(x)ᵀφ(x)) g(x) + x (Wang et al. 2018, equation 6).

    Every position of a feature map reads all others. θ, φ and g are 1×1 convolutions to `inner_channels` (half of
    `channels`, as in the paper); W_z starts at zero, so that the block may be put into a trained network unchanged.
    """

    def __init__(self, channels: int, inner_channels: int | None = None):
        super().__init__()
        inner_channels = max(1, channels // 2) if inner_channels is None else inner_channels
        self.theta = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.phi = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.g = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.out = nn.Conv2d(inner_channels, channels, kernel_size=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → the same shape"""
        query, key, value = (self._positions(part(features)) for part in (self.theta, self.phi, self.g))
        # one head, and no 1/√d: the embedded Gaussian is exp(θᵀφ) normalised, which is softmax at scaling 1
        attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended.squeeze(1).transpose(1, 2).unflatten(-1, features.shape[-2:])
        return features + self.out(attended)

    @staticmethod
    def _positions(features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, 1 head, height · width, channels)"""
        return features.flatten(2).transpose(1, 2).unsqueeze(1)
