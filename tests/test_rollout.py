"""Attention followed back to the patches: the definition, the same however it is computed, under every kernel."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from hf_attn import AttnViTBackbone, record_attention
from hf_attn.rollout import attention_rollout, class_attention, head_attention, rollout_map
from tests.tiny import tiny_vit

pytestmark = [
    # flex without a compiler computes the same scores, and takes no minute to compile
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

READERS = {
    "class token": {},
    "class token before registers": {"num_register_tokens": 2},
    "mean": {"pooling": "mean", "class_token": False},
    "mean beside a class token": {"pooling": "mean", "num_register_tokens": 1},
    "attention pooling": {"pooling": "attention", "class_token": False, "num_register_tokens": 1},
    "class token and mean": {"pooling": "class_token_and_mean", "num_register_tokens": 1},
    "prefix": {"pooling": "prefix_tokens", "num_register_tokens": 1},
}


def random_maps(layers: int = 3, batch: int = 2, heads: int = 4, tokens: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, tokens, tokens)
    return [(3 * torch.randn(shape, generator=generator).double()).softmax(-1) for _ in range(layers)]


def pictures(height: int = 32, width: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def seen_by(model, pixel_values) -> list[torch.Tensor]:
    """The (batch, heads, tokens, tokens) maps of all layers, as transformers' own hooks collect them."""
    return list(model(pixel_values, output_attentions=True).attentions)


def shares_of_tokens(model, pixel_values) -> torch.Tensor:
    """(batch, tokens), what the classifier reads: its class token, its patches alike, or what its pooling reads."""
    prefix = model.config.num_prefix_tokens
    tokens = seen_by(model, pixel_values)[0].shape[-1]
    if model.config.pooling == "attention":
        with record_attention(model, "attention_pooling") as record:
            model(pixel_values)
        of_patches = record.maps["model.attention_pooling.attention"][0].mean(dim=1).squeeze(1)
        return torch.cat([torch.zeros(2, prefix), of_patches], dim=1)
    class_token = torch.eye(tokens)[:1].expand(2, -1)
    mean = torch.cat([torch.zeros(prefix), torch.ones(tokens - prefix) / (tokens - prefix)]).expand(2, -1)
    of_pooling = {"mean": mean, "class_token": class_token, "class_token_and_mean": (class_token + mean) / 2}
    return of_pooling.get(model.config.pooling, torch.eye(tokens)[:prefix].mean(0).expand(2, -1))


# --- on maps ---------------------------------------------------------------------------------------------------------


def test_rollout_is_the_product_of_half_attention_and_half_identity():
    maps = random_maps()
    expected = torch.eye(7, dtype=torch.float64)
    for weights in maps:  # upwards, as the paper has it
        expected = (weights.mean(1) + torch.eye(7, dtype=torch.float64)) / 2 @ expected
    rollout = attention_rollout(maps)
    assert_close(rollout, expected, rtol=1e-12, atol=0)
    assert_close(rollout.sum(-1), torch.ones(2, 7, dtype=torch.float64), rtol=1e-12, atol=0)


def test_rows_alone_are_rows_of_the_whole():
    maps = random_maps()
    start = torch.rand(2, 3, 7, dtype=torch.float64)
    whole = attention_rollout(maps)
    assert_close(attention_rollout(maps, start), start @ whole, rtol=1e-12, atol=0)
    class_token = torch.eye(7, dtype=torch.float64)[:1].expand(2, 1, 7)
    assert_close(attention_rollout(maps, class_token), whole[:, :1], rtol=1e-12, atol=0)


def test_tokens_that_read_only_themselves_stay_where_they_are():
    identity = torch.eye(5).expand(2, 3, 5, 5)
    assert_close(attention_rollout([identity] * 4), torch.eye(5).expand(2, 5, 5))


def test_a_token_that_reads_nothing_keeps_itself():
    maps = random_maps()
    for weights in maps:
        weights[0, :, 2] = 0.0  # the weights of a padded query
    assert_close(attention_rollout(maps)[0, 2], torch.eye(7, dtype=torch.float64)[2])


def test_fused_heads_that_sum_to_more_than_one_are_shared_out():
    largest = [weights.amax(dim=1, keepdim=True) for weights in random_maps()]
    assert (largest[0].sum(-1) > 1.1).all()
    assert_close(attention_rollout(largest).sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_sixteen_bits_are_summed_in_thirty_two():
    maps = [weights.bfloat16() for weights in random_maps(layers=12)]
    rollout = attention_rollout(maps)
    assert rollout.dtype == torch.float32
    assert_close(rollout, attention_rollout([weights.float() for weights in maps]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], r"maps are \[\]"),
        ([torch.rand(2, 7, 7)], r"\(2, 7, 7\).*there must be \(batch, heads, tokens, tokens\) for each layer"),
        ([torch.rand(1, 2, 4, 4), torch.rand(1, 2, 5, 5)], r"all alike"),
        ([torch.rand(1, 2, 1, 4)], r"maps of 1 queries and 4 keys; rollout needs self-attention of all queries"),
    ],
)
def test_maps_of_other_shapes_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        attention_rollout(maps)


# --- on models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@torch.no_grad()
def test_heat_maps_are_what_the_reader_takes_in(reader, size):
    model = tiny_vit(num_hidden_layers=3, **READERS[reader])
    pixel_values = pictures(*size)
    grid = (size[0] // 8, size[1] // 8)
    maps = seen_by(model, pixel_values)
    shares = shares_of_tokens(model, pixel_values)
    prefix = model.config.num_prefix_tokens

    def on_the_grid(row: torch.Tensor) -> torch.Tensor:
        return row[:, prefix:].unflatten(1, grid)

    last = torch.einsum("bq,bhqk->bhk", shares, maps[-1])
    assert_close(class_attention(model, pixel_values), on_the_grid(last.mean(1)))
    second = torch.einsum("bq,bhqk->bhk", shares, maps[1])
    assert_close(class_attention(model, pixel_values, layer=1, head=1), on_the_grid(second[:, 1]))
    rollout = torch.einsum("bq,bqk->bk", shares, attention_rollout(maps))
    assert_close(rollout_map(model, pixel_values), on_the_grid(rollout))

    every = head_attention(model, pixel_values)
    assert every.shape == (2, 3, 2, *grid)
    assert_close(every[:, 1, 1], on_the_grid(second[:, 1]))
    assert_close(head_attention(model, pixel_values, layers=[-1, 0], heads=[1]), every[:, [2, 0]][:, :, [1]])


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_every_kernel_shows_the_same(kernel):
    expected = tiny_vit()
    expected.set_attn_implementation("eager")
    model = tiny_vit()
    model.set_attn_implementation(kernel)
    with torch.compiler.set_stance("force_eager") if kernel == "flex_attention" else nullcontext():
        for look in (class_attention, rollout_map, head_attention):
            assert_close(look(model, pictures()), look(expected, pictures()))


def test_looking_changes_nothing():
    model = tiny_vit()
    before = model(pictures()).logits
    found = [look(model, pictures()) for look in (class_attention, head_attention, rollout_map)]
    assert not any(heat.requires_grad for heat in found)
    assert all(not module.recorders for module in model.modules() if hasattr(module, "recorders"))
    assert_close(model(pictures()).logits, before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="pixel_values"):
        rollout_map(model, pictures()[0])
    assert all(not module.recorders for module in model.modules() if hasattr(module, "recorders"))


def test_the_class_token_s_row_costs_no_square(monkeypatch):
    """Of 17 tokens one asks: no map of 17 x 17 is made."""
    model = tiny_vit()
    made = []
    weights = type(model.model.layers[0].attention).weights

    def counting(self, *args, **kwargs):
        made.append(weights(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(type(model.model.layers[0].attention), "weights", counting)
    class_attention(model, pictures(), head=0)
    assert [tuple(found.shape) for found in made] == [(2, 1, 1, 17)]
    made.clear()
    rollout_map(model, pictures())
    assert [tuple(found.shape) for found in made] == [(2, 1, 17, 17)] * 4  # a head at a time


def test_models_without_a_head_and_in_other_precisions_show_as_well():
    model = tiny_vit()
    expected = rollout_map(model, pictures())
    assert_close(rollout_map(model.model, pictures()), expected)
    assert_close(rollout_map(model.double(), pictures().double()).float(), expected)
    half = rollout_map(model.bfloat16(), pictures().bfloat16())
    assert half.dtype == torch.float32
    assert_close(half, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"layer": 2}, "layer 2 is out of range"), ({"head": -3}, "head -3 is out of range")]
)
def test_layers_and_heads_that_are_not_there_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        class_attention(tiny_vit(), pictures(), **arguments)


def test_patches_left_out_in_training_leave_no_map():
    model = tiny_vit(patch_dropout=0.5).train()
    for look in (class_attention, rollout_map):
        with pytest.raises(ValueError, match=r"8 patches were read of 4 x 4: .* call model\.eval\(\) first"):
            look(model, pictures())


def test_a_backbone_is_no_reader():
    model = AttnViTBackbone(tiny_vit().config)
    for look in (class_attention, rollout_map):
        with pytest.raises(ValueError, match="AttnViTBackbone reads no picture as a whole"):
            look(model, pictures())


# --- what it is for --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_patch_that_the_class_token_must_read_lights_up():
    """Keys of one bright patch match the class token's query; the map shows that patch, wherever it is."""
    model = tiny_vit(num_hidden_layers=1, position_embedding="none", position_on_class_token=False)
    layer = model.model.layers[0].attention
    embedding = model.model.embeddings.patch_embedding
    for parameter in (embedding.weight, embedding.bias, layer.q_proj.weight, layer.k_proj.bias):
        parameter.zero_()
    embedding.weight[0] = 1.0  # brightness
    layer.q_proj.bias.fill_(0.0)
    layer.q_proj.bias[0] = layer.q_proj.bias[8] = 4.0
    layer.k_proj.weight.zero_()
    layer.k_proj.weight[0, 0] = layer.k_proj.weight[8, 0] = 4.0
    model.model.layers[0].attention_norm.weight.fill_(1.0)
    model.model.layers[0].attention_norm.bias.fill_(0.0)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        pixel_values = torch.full((1, 3, 32, 32), -0.1)
        pixel_values[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
        for heat in (class_attention(model, pixel_values), rollout_map(model, pixel_values)):
            assert heat[0].argmax().item() == 4 * row + column
            assert heat[0, row, column] > 3 * heat[0].median()
