"""The ViT computes the same under any kernel, alone or in a batch, compiled, checkpointed, in another precision."""

from contextlib import nullcontext

import pytest
import torch
from timm.layers import calculate_drop_path_rates
from torch.testing import assert_close

from hf_attn import AttnViTForImageClassification, AttnViTModel, MultiHeadAttention, record_attention
from hf_attn.inputs_vit import drop_patches
from hf_attn.modeling_vit import DropPath
from tests.tiny import tiny_vit

pytestmark = [
    # transformers' own call; flex without a compiler computes the same scores, and takes no minute to compile
    pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

PICTURES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1])

FAMILIES = {
    "original": {},
    "deit3": {"position_on_class_token": False, "layer_scale_init": 0.5},
    "dinov2": {"num_register_tokens": 4, "layer_scale_init": 0.5},
    "big_vision": {"class_token": False, "pooling": "mean", "position_embedding": "sinusoids"},
    "sbb": {
        "class_token": False,
        "num_register_tokens": 1,
        "pooling": "mean",
        "final_norm": "after_pooling",
        "layer_scale_init": 0.5,
    },
    "siglip": {"class_token": False, "pooling": "attention", "activation_function": "gelu_pytorch_tanh"},
    "normalised": {"query_key_norm": True, "position_embedding": "none"},
}
families = pytest.mark.parametrize("family", FAMILIES)
KERNELS = ("eager", "sdpa", "flex_attention")


def under(kernel: str, model: torch.nn.Module):
    """The model set to a kernel, and the context to call it in."""
    model.set_attn_implementation(kernel)  # where it cannot, transformers only warns
    assert {m.config._attn_implementation for m in model.modules() if isinstance(m, MultiHeadAttention)} == {kernel}
    return torch.compiler.set_stance("force_eager") if kernel == "flex_attention" else nullcontext()


# --- kernels ---------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_kernels_agree(family, kernel):
    expected = tiny_vit(**FAMILIES[family])(PICTURES, output_hidden_states=True, output_attentions=True)
    model = tiny_vit(**FAMILIES[family])
    with under(kernel, model):
        found = model(PICTURES, output_hidden_states=True, output_attentions=True)
    assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert_close(found.hidden_states, expected.hidden_states, rtol=1e-5, atol=1e-5)
    assert_close(found.attentions, expected.attentions, rtol=1e-5, atol=1e-6)


@families
def test_kernels_agree_backward(family):
    gradients = []
    for kernel in ("eager", "sdpa"):  # flex attention has no gradients on the CPU
        model = tiny_vit(**FAMILIES[family]).train()
        with under(kernel, model):
            model(PICTURES, labels=LABELS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_kernels_can_be_switched_and_an_unknown_one_is_refused():
    model = tiny_vit(pooling="attention")
    under("eager", model)
    with pytest.raises(ValueError, match="eagre"):
        model.set_attn_implementation("eagre")


# --- what comes out --------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_a_picture_looks_the_same_alone_and_in_a_batch(family):
    model = tiny_vit(**FAMILIES[family])
    together = model(PICTURES).logits
    alone = torch.cat([model(picture.unsqueeze(0)).logits for picture in PICTURES])
    assert_close(alone, together, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tokens_are_the_class_then_the_registers_then_the_patches():
    model = tiny_vit(num_register_tokens=3).model
    embeddings = model.embeddings
    tokens = model(PICTURES, output_hidden_states=True).hidden_states[0]
    assert tokens.shape == (3, 1 + 3 + 16, 16)
    assert model.config.num_prefix_tokens == 4
    assert_close(tokens[1, 0], embeddings.class_token + embeddings.class_position)
    assert_close(tokens[1, 1:4], embeddings.register_tokens)
    last = PICTURES[1, :, 24:, 24:].flatten() @ embeddings.patch_embedding.weight.flatten(1).T
    assert_close(tokens[1, -1], last + embeddings.patch_embedding.bias + embeddings.positions[3, 3])


@torch.no_grad()
def test_what_the_classifier_reads():
    def pooled(**fields) -> tuple[torch.Tensor, torch.Tensor, AttnViTModel]:
        model = tiny_vit(num_register_tokens=2, **fields).model
        outputs = model(PICTURES, output_hidden_states=True)
        return outputs.pooler_output, outputs.hidden_states[-1], model

    found, states, model = pooled()
    assert_close(found, model.final_norm(states)[:, 0])
    found, states, model = pooled(pooling="mean")
    assert_close(found, model.final_norm(states)[:, 3:].mean(dim=1))
    found, states, model = pooled(pooling="mean", final_norm="after_pooling")
    assert_close(found, model.final_norm(states[:, 3:].mean(dim=1)))
    found, states, model = pooled(final_norm="after_pooling")
    assert_close(found, model.final_norm(states[:, 0]))


@pytest.mark.parametrize("pooling", ["class_token", "mean", "attention"])
@torch.no_grad()
def test_without_positions_the_order_of_the_patches_means_nothing(pooling):
    model = tiny_vit(position_embedding="none", pooling=pooling)
    turned = PICTURES.unflatten(2, (4, 8)).flip(2).flatten(2, 3)  # rows of patches from the last to the first
    assert_close(model(turned).logits, model(PICTURES).logits, rtol=1e-5, atol=1e-5)
    placed = tiny_vit(pooling=pooling)
    assert not torch.allclose(placed(turned).logits, placed(PICTURES).logits, atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@torch.no_grad()
def test_registers_are_not_pooled(pooling):
    model = tiny_vit(num_register_tokens=2, pooling=pooling, num_hidden_layers=1)
    outputs = model.model(PICTURES)
    moved = outputs.last_hidden_state.clone()
    moved[:, :3] += 1.0
    assert_close(model.model._pool(moved), outputs.pooler_output)


@torch.no_grad()
def test_hidden_states_are_the_embedded_picture_and_every_layer_s_output():
    model = tiny_vit(num_hidden_layers=3)
    outputs = model(PICTURES, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3 + 1
    x = model.model.embeddings(PICTURES)
    assert_close(outputs.hidden_states[0], x)
    for layer, state in zip(model.model.layers, outputs.hidden_states[1:], strict=True):
        x = layer(x)
        assert_close(state, x)
    chosen = model(PICTURES, output_hidden_states=[-2]).hidden_states
    assert [state is None for state in chosen] == [True, True, False, True]
    assert torch.equal(chosen[2], outputs.hidden_states[2])


@torch.no_grad()
def test_a_tuple_where_no_dictionary_is_wanted():
    model = tiny_vit()
    logits, states = model(PICTURES, output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, model(PICTURES).logits)
    assert len(states) == 3


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_attention_is_shown_under_every_kernel(kernel):
    model = tiny_vit(num_hidden_layers=3, pooling="attention", num_register_tokens=1)
    with under(kernel, model):
        plain, shown = model(PICTURES), model(PICTURES, output_attentions=True)
    assert len(shown.attentions) == 3  # of the layers, not of the pooling
    assert torch.equal(shown.logits, plain.logits)
    assert plain.attentions is None
    for weights in shown.attentions:
        assert weights.shape == (3, 2, 18, 18)
        assert_close(weights.sum(dim=-1), torch.ones(3, 2, 18))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_one_row_of_it_is_recorded_under_every_kernel(kernel, training):
    model = tiny_vit(num_hidden_layers=3).train(training)
    with under(kernel, model):
        whole = model(PICTURES, output_attentions=True).attentions
        with record_attention(model, layers=[-1], queries=[0]) as record:
            model(PICTURES)
    assert list(record.maps) == ["model.layers.2.attention"]
    (row,) = record.maps["model.layers.2.attention"]
    assert row.shape == (3, 2, 1, 17)
    assert_close(row, whole[2][:, :, :1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_the_pooling_reads_is_recorded():
    model = tiny_vit(pooling="attention", num_register_tokens=2)
    with record_attention(model, kind="attention_pooling") as record:
        model(PICTURES)
    (maps,) = record.maps.values()
    assert maps[0].shape == (3, 2, 1, 16)  # one query, patches only
    assert_close(maps[0].sum(dim=-1), torch.ones(3, 2, 1))


# --- compiled, checkpointed, in another precision --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dinov2", "siglip"])
@torch.no_grad()
def test_compiles_without_a_graph_break(family):
    torch.compiler.reset()
    model = tiny_vit(num_hidden_layers=1, **FAMILIES[family])
    wanted = {"labels": LABELS, "output_hidden_states": True, "output_attentions": True}
    found = torch.compile(model, fullgraph=True, backend="eager")(PICTURES, **wanted)  # its first call ever
    expected = model(PICTURES, **wanted)
    assert found.keys() == expected.keys()
    assert_close(found.to_tuple(), expected.to_tuple())


def test_a_training_step_compiles():
    torch.compiler.reset()
    losses, gradients = [], []
    for compiled in (False, True):
        model = tiny_vit(num_hidden_layers=1).train()
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        losses.append(call(PICTURES, labels=LABELS, num_items_in_batch=torch.tensor(6)).loss)
        losses[-1].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_checkpoints_change_neither_loss_nor_gradients(use_reentrant):
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = tiny_vit(dropout=0.2, drop_path_rate=0.5, attention_dropout=0.1, patch_dropout=0.3).train()
        if checkpointing:
            model.activation_checkpointing_enable(None if use_reentrant is None else {"use_reentrant": use_reentrant})
        torch.manual_seed(0)
        losses.append(model(PICTURES, labels=LABELS).loss)
        losses[-1].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0])


@families
def test_every_parameter_takes_part_in_a_training_step(family):
    model = tiny_vit(**FAMILIES[family]).train()
    model(PICTURES, labels=LABELS).loss.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # softmax does not see what a key's bias adds to all of a query's scores: its gradient is zero up to rounding
    assert [name for name in unused if not name.endswith("k_proj.bias")] == []
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_pixels_are_cast_to_the_model_s_precision(dtype):
    model = tiny_vit()
    expected = model(PICTURES).logits
    assert model(PICTURES.to(dtype)).logits.dtype == torch.float32
    found = model.to(dtype)(PICTURES).logits
    assert found.dtype == dtype
    assert_close(found.float(), expected, rtol=0.1, atol=0.1 if dtype == torch.bfloat16 else 0.02)


@families
def test_bfloat16_autocast_trains_with_a_float32_loss(family):
    model = tiny_vit(**FAMILIES[family]).train()
    expected = model(PICTURES, labels=LABELS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(PICTURES, labels=LABELS)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    assert_close(outputs.loss, expected, rtol=0.1, atol=0.1)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


# --- what only training does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "drop_path_rate", "patch_dropout"])
@torch.no_grad()
def test_what_is_dropped_is_dropped_in_training_only(rate):
    model, plain = tiny_vit(**{rate: 0.5}), tiny_vit()
    assert torch.equal(model(PICTURES).logits, plain(PICTURES).logits)
    model.train()
    assert not torch.allclose(model(PICTURES).logits, model(PICTURES).logits, atol=1e-4)
    plain.train()
    assert torch.equal(plain(PICTURES).logits, plain.eval()(PICTURES).logits)


def test_drop_path_grows_with_depth_as_in_timm():
    for depth in (1, 2, 5):
        layers = tiny_vit(num_hidden_layers=depth, drop_path_rate=0.4).model.layers
        rates = [layer.drop_path.rate for layer in layers]
        assert rates == pytest.approx(calculate_drop_path_rates(0.4, depth))


def test_drop_path_leaves_out_whole_pictures_and_keeps_the_mean():
    x = torch.full((20_000, 2, 3), 2.0)
    dropped = DropPath(0.3).train()(x)
    assert_close(dropped.unique(), torch.tensor([0.0, 2.0 / 0.7]))
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(2.0, abs=0.03)
    assert DropPath(0.3).eval()(x) is x


def test_a_dropped_path_leaves_the_picture_as_it_was():
    layer = tiny_vit(num_hidden_layers=2, drop_path_rate=0.5).model.layers[1].train()
    x = torch.randn(64, 5, 16)
    same = (layer(x) == x).flatten(1).all(dim=1)
    assert 4 <= same.sum() <= 32  # attention and feed-forward are each left out half of the time: 16 expected


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 16), (0.1, 14), (0.5, 8), (0.75, 4), (0.99, 1)])
def test_patch_dropout_keeps_its_share_in_order(rate, kept):
    patches = torch.arange(16.0).reshape(1, 16, 1).expand(200, 16, 2)
    found = drop_patches(patches, rate)
    assert found.shape == (200, kept, 2)
    assert (found[:, 1:] > found[:, :-1]).all()  # others, and in order
    if 0 < kept < 16:
        counts = torch.bincount(found[..., 0].flatten().long(), minlength=16)
        assert counts.min() > 0 and not (found == found[0]).all()


@torch.no_grad()
def test_patch_dropout_spares_class_token_and_registers():
    model = tiny_vit(patch_dropout=0.5, num_register_tokens=2)
    whole = model.model.embeddings(PICTURES)
    kept = model.train().model.embeddings(PICTURES)
    assert kept.shape == (3, 3 + 8, 16)
    assert_close(kept[:, :3], whole[:, :3])
    for found, patches in zip(kept[:, 3:], whole[:, 3:], strict=True):  # each with the position it had
        assert all((patches - patch).abs().amax(dim=-1).min() < 1e-6 for patch in found)
    assert model(PICTURES).logits.shape == (3, 3)


# --- the beginning ---------------------------------------------------------------------------------------------------


def test_it_begins_by_calling_all_classes_equally_likely():
    model = AttnViTForImageClassification(tiny_vit().config)
    assert torch.equal(model(PICTURES).logits, torch.zeros(3, 3))
    assert model(PICTURES, labels=LABELS).loss.item() == pytest.approx(torch.tensor(3.0).log().item())


def test_nothing_is_tied_and_there_is_no_word_to_resize():
    model = tiny_vit()
    assert not model.all_tied_weights_keys
    assert model.get_input_embeddings() is model.model.embeddings.patch_embedding
    assert model.get_output_embeddings() is None
    assert len({id(p) for p in model.parameters()}) == len(list(model.named_parameters()))
