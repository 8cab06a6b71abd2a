"""DETR computes the same alone or in a batch, under any kernel, compiled, checkpointed, in another precision."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from hf_attn import (
    AttnDetrConfig,
    AttnDetrForObjectDetection,
    AttnViTConfig,
    MultiHeadAttention,
    NonLocalBlock,
    record_attention,
)
from hf_attn.denoising_detr import noised_queries
from tests.tiny import DETR_LABELS, DETR_VARIANTS, padded_pictures, tiny_detr

pytestmark = [
    # transformers' own calls; flex without a compiler computes the same scores, and takes no minute to compile
    pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

SIZES = [(64, 96), (96, 64), (64, 96), (48, 80), (96, 96)]
KERNELS = ("eager", "sdpa", "flex_attention")
variants = pytest.mark.parametrize("variant", DETR_VARIANTS)
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def under(kernel: str, model: torch.nn.Module):
    """The model set to a kernel, and the context to call it in."""
    model.set_attn_implementation(kernel)  # where it cannot, transformers only warns
    assert {m.config._attn_implementation for m in model.modules() if isinstance(m, MultiHeadAttention)} == {kernel}
    return torch.compiler.set_stance("force_eager") if kernel == "flex_attention" else nullcontext()


# --- what comes out --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_shapes_of_the_paper():
    """(1, 3, 800, 1200) → C5 (1, 2048, 25, 38) → 950 tokens of 256; (6, b, 100, 256) of all decoder layers."""
    model = AttnDetrForObjectDetection(AttnDetrConfig(num_labels=91)).eval()
    maps = []
    model.model.backbone.register_forward_hook(lambda module, arguments, output: maps.append(output.shape))
    outputs = model(torch.randn(1, 3, 800, 1200))
    assert maps == [(1, 2048, 25, 38)]
    assert model.model.backbone.channels == 2048
    assert outputs.encoder_last_hidden_state.shape == (1, 950, 256)
    assert outputs.intermediate_hidden_states.shape == (6, 1, 100, 256)
    assert outputs.last_hidden_state.shape == (1, 100, 256)
    assert outputs.logits.shape == (1, 100, 92)
    assert outputs.scores.shape == (1, 100, 91)
    assert outputs.pred_boxes.shape == (1, 100, 4)
    assert [one["logits"].shape for one in outputs.auxiliary_outputs] == [(1, 100, 92)] * 5
    assert [one["pred_boxes"].shape for one in outputs.auxiliary_outputs] == [(1, 100, 4)] * 5
    assert model.model.query_embedding.weight.shape == (100, 256)


@variants
@torch.no_grad()
def test_what_is_said_of_the_outputs(variant):
    model = tiny_detr(**DETR_VARIANTS[variant], encoder_layers=1, decoder_layers=3)
    outputs = model(torch.randn(2, 3, 64, 96), output_hidden_states=True, output_attentions=True)
    states = outputs.intermediate_hidden_states
    assert states.shape == (3, 2, 7, 32)
    assert torch.equal(outputs.last_hidden_state, states[-1])
    assert_close(outputs.logits, model.class_head(states[-1]))
    assert_close([one["logits"] for one in outputs.auxiliary_outputs], list(model.class_head(states[:-1])))
    assert outputs.encoder_last_hidden_state.shape == (2, 24, 32)
    assert [len(part) for part in (outputs.encoder_hidden_states, outputs.decoder_hidden_states)] == [2, 4]
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    for layer in (0, 1):  # what the paper's last norm is given
        assert_close(model.model.decoder.final_norm(outputs.decoder_hidden_states[layer + 1]), states[layer])
    assert [weights.shape for weights in outputs.encoder_attentions] == [(2, 4, 24, 24)]
    assert [weights.shape for weights in outputs.decoder_attentions] == [(2, 4, 7, 7)] * 3
    assert [weights.shape for weights in outputs.cross_attentions] == [(2, 4, 7, 24)] * 3


@torch.no_grad()
def test_the_body_says_the_same_and_a_tuple_holds_it():
    model, pixels = tiny_detr(), torch.randn(1, 3, 64, 96)
    outputs, inner = model(pixels), model.model(pixels)
    assert_close(inner.intermediate_boxes[-1], outputs.pred_boxes)
    assert_close(inner.intermediate_hidden_states, outputs.intermediate_hidden_states)
    listed = model(pixels, return_dict=False)
    assert isinstance(listed, tuple)
    assert_close(listed[0], outputs.logits)


def test_without_auxiliary_losses_the_last_layer_alone_learns_and_says_the_same():
    model, alone = tiny_detr(), tiny_detr(auxiliary_loss=False)
    pixels = torch.randn(3, 3, 64, 64)
    outputs, found = model(pixels, labels=DETR_LABELS), alone(pixels, labels=DETR_LABELS)
    assert_close(found.logits, outputs.logits)
    assert found.auxiliary_outputs is None
    terms = {name: value for name, value in outputs.loss_dict.items() if not name.endswith("_0")}
    assert_close(found.loss_dict, terms)
    assert_close(found.loss, terms["loss_ce"] + 5 * terms["loss_bbox"] + 2 * terms["loss_giou"])


@torch.no_grad()
def test_scores_are_the_probabilities_of_the_classes():
    pixels = torch.randn(1, 3, 64, 64)
    outputs = tiny_detr()(pixels)
    assert outputs.logits.shape == (1, 7, 4)
    assert_close(outputs.scores, outputs.logits.softmax(dim=-1)[..., :3])  # the last is "no object"
    outputs = tiny_detr(class_loss="focal")(pixels)
    assert_close(outputs.scores, outputs.logits.sigmoid())
    assert outputs.scores.shape == (1, 7, 3)


@pytest.mark.parametrize("variant", ["plain", "conditional"])
@torch.no_grad()
def test_queries_have_no_order(variant):
    model, pixels = tiny_detr(**DETR_VARIANTS[variant]), torch.randn(1, 3, 64, 96)
    before = model(pixels)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    table = model.model.query_embedding.weight if variant == "plain" else model.model.anchors
    table.copy_(table[order])
    after = model(pixels)
    assert_close(after.logits, before.logits[:, order], rtol=0, atol=1e-5)
    assert_close(after.pred_boxes, before.pred_boxes[:, order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["plain", "conditional"])
def test_dropout_falls_where_the_paper_s_does(variant, monkeypatch):
    """Behind each attention, within the feed-forward layer and behind it: here it leaves nothing."""
    model = tiny_detr(**DETR_VARIANTS[variant], dropout=0.3, frozen_batch_norm=True).train()
    encoder, decoder = model.model.encoder.layers[0], model.model.decoder.layers[0]
    rates = []

    def drop_all(x, p=0.5, training=True, inplace=False):
        rates.append(p)
        return 0 * x

    monkeypatch.setattr(torch.nn.functional, "dropout", drop_all)
    x, positions, memory = torch.randn(3, 2, 7, 32)
    assert_close(encoder(x, positions), encoder.feed_forward_norm(encoder.self_attention_norm(x)))
    assert rates == 3 * [0.3]
    found = decoder(x, positions, positions, memory, positions)
    assert_close(found, decoder.feed_forward_norm(decoder.cross_attention_norm(decoder.self_attention_norm(x))))
    assert rates == 7 * [0.3]
    for layer in (encoder, decoder):
        assert_close(layer.feed_forward(x), layer.feed_forward.down_proj.bias.expand_as(x))


def test_dropout_is_for_training_alone():
    model = tiny_detr(dropout=0.1, attention_dropout=0.1, frozen_batch_norm=True)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels).logits, model(pixels).logits)
    model.train()
    assert not torch.allclose(model(pixels).logits, model(pixels).logits, atol=1e-3)


# --- alone = in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [{}, {"backbone_config": AttnViTConfig(**VIT).to_dict()}], ids=["timm", "vit"])
@variants
@torch.no_grad()
def test_a_picture_alone_is_as_in_a_batch_of_other_sizes(variant, backbone):
    model = tiny_detr(**DETR_VARIANTS[variant], **backbone)
    pictures, pixels, mask = padded_pictures(SIZES)
    together = model(pixels, mask)
    for row, picture in enumerate(pictures):
        alone = model(picture[None])
        assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-5)
        assert_close(together.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=1e-5)
        for found, expected in zip(together.auxiliary_outputs, alone.auxiliary_outputs, strict=True):
            assert_close(found["pred_boxes"][row], expected["pred_boxes"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "conditional"])
@torch.no_grad()
def test_in_half_precision_too_as_far_as_it_reaches(variant):
    model = tiny_detr(**DETR_VARIANTS[variant]).bfloat16()
    pictures, pixels, mask = padded_pictures(SIZES)
    together = model(pixels.bfloat16(), mask)
    for row, picture in enumerate(pictures):
        alone = model(picture[None].bfloat16())
        assert_close(together.logits[row], alone.logits[0], rtol=0, atol=0.15)
        assert_close(together.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=0.02)


@torch.no_grad()
def test_padded_is_as_unpadded():
    model = tiny_detr()
    (picture,), pixels, mask = padded_pictures([(48, 80)])
    assert torch.equal(model(pixels, mask).logits, model(picture[None]).logits)
    everything = torch.ones(1, 48, 80, dtype=torch.long)
    assert torch.equal(model(picture[None], everything).logits, model(picture[None]).logits)
    wider = torch.nn.functional.pad(pixels, (0, 40, 0, 8)), torch.nn.functional.pad(mask, (0, 40, 0, 8))
    assert torch.equal(model(*wider).logits, model(picture[None]).logits)


def test_the_loss_of_a_batch_of_other_sizes_is_that_of_its_pictures():
    model = tiny_detr(frozen_batch_norm=True).train()
    pictures, pixels, mask = padded_pictures(SIZES[:3])
    model(pixels, mask, labels=DETR_LABELS).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    items = torch.tensor([3, 3, 3])
    for picture, label in zip(pictures, DETR_LABELS, strict=True):
        model(picture[None], labels=[label], num_items_in_batch=items).loss.backward()
    for name, gradient in together.items():
        assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


# --- kernels ---------------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_kernels_agree(variant, kernel):
    _, pixels, mask = padded_pictures(SIZES[:3])
    asked = {"output_attentions": True, "output_hidden_states": True}
    reference, model = tiny_detr(**DETR_VARIANTS[variant]), tiny_detr(**DETR_VARIANTS[variant])
    noised = noised_queries(DETR_LABELS, model.config, "cpu") if model.config.denoising_groups else None
    under("eager", reference)
    for arguments in ((pixels, None, noised), (pixels, mask, noised)):
        expected = reference.model(*arguments, **asked)
        with under(kernel, model):
            found = model.model(*arguments, **asked)
        for name in ("intermediate_hidden_states", "encoder_hidden_states", "intermediate_boxes"):
            assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
        for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
            assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


@variants
def test_kernels_agree_backward(variant):
    _, pixels, mask = padded_pictures(SIZES[:3])
    losses, gradients = [], []
    for kernel in ("eager", "sdpa"):  # flex attention has no gradients on the CPU
        # in float32 sums of large gradients that cancel out differ between processors
        model = tiny_detr(**DETR_VARIANTS[variant], frozen_batch_norm=True).double().train()
        torch.manual_seed(3)  # of the noise on the labels
        with under(kernel, model):
            loss = model(pixels.double(), mask, labels=DETR_LABELS).loss
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


# --- attention maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "conditional"])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_maps_of_chosen_queries_sum_to_one_over_the_picture_and_are_zero_beyond(variant, kernel):
    _, pixels, mask = padded_pictures([(64, 96), (48, 48)])
    model = tiny_detr(**DETR_VARIANTS[variant])
    whole = model(pixels, mask, output_attentions=True).cross_attentions[-1]
    with under(kernel, model), record_attention(model, "cross_attention", layers=[-1], queries=[1, 4]) as record:
        model(pixels, mask)
    ((maps,),) = record.maps.values()
    assert maps.shape == (2, 4, 2, 24)
    assert_close(maps.sum(dim=-1), torch.ones(2, 4, 2))
    assert maps[0].gt(0).all() and maps[1, ..., :9].gt(0).all()  # 48x48 pixels are 9 tokens
    assert not maps[1, ..., 9:].any()
    assert_close(maps, whole[:, :, [1, 4]], rtol=0, atol=1e-6)


@torch.no_grad()
def test_maps_of_the_encoder_end_at_the_picture_too():
    _, pixels, mask = padded_pictures([(64, 96), (48, 48)])
    model = tiny_detr()
    with record_attention(model, "encoder", heads=[0]) as record:
        model(pixels, mask)
    assert len(record.maps) == 2
    for ((_, second),) in record.maps.values():
        assert_close(second[:, :9].sum(dim=-1), torch.ones(1, 9))
        assert not second[:, :9, 9:].any()


# --- compiled, exported, checkpointed --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", pytest.param("conditional", marks=pytest.mark.slow)])
@torch.no_grad()
def test_compiles_without_a_graph_break(variant):
    torch.compiler.reset()
    model = tiny_detr(**DETR_VARIANTS[variant], encoder_layers=1, decoder_layers=2)
    compiled, pixels = torch.compile(model, fullgraph=True, backend="eager"), torch.randn(2, 3, 64, 96)
    found, expected = (one(pixels, output_attentions=True) for one in (compiled, model))
    assert_close((found.logits, found.pred_boxes), (expected.logits, expected.pred_boxes))
    assert_close(found.cross_attentions, expected.cross_attentions)


@torch.no_grad()
def test_exported_for_pictures_of_any_size():
    model = tiny_detr(backbone="resnet18", backbone_kwargs={"channels": [8, 8, 16, 16]})
    batch, height, width = (torch.export.Dim(name, min=least) for name, least in (("b", 1), ("h", 17), ("w", 17)))
    sides = {0: batch, 2: height, 3: width}
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sides,)).module()
    for shape in ((2, 3, 64, 96), (3, 3, 80, 50)):
        pixels = torch.randn(shape)
        assert_close(exported(pixels).pred_boxes, model(pixels).pred_boxes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["plain", "all"])
def test_gradient_checkpointing_changes_nothing(variant):
    _, pixels, mask = padded_pictures(SIZES[:3])
    gradients = []
    for checkpointing in (False, True):
        model = tiny_detr(**DETR_VARIANTS[variant], frozen_batch_norm=True, dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(pixels, mask, labels=DETR_LABELS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


# --- precision -------------------------------------------------------------------------------------------------------


@variants
def test_autocast_computes_boxes_and_loss_in_full_and_stays_near(variant):
    model = tiny_detr(**DETR_VARIANTS[variant], frozen_batch_norm=True).train()
    _, pixels, mask = padded_pictures(SIZES[:3])
    torch.manual_seed(3)
    exact = model(pixels, mask, labels=DETR_LABELS)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixels, mask, labels=DETR_LABELS)
    outputs.loss.backward()
    assert outputs.pred_boxes.dtype == outputs.scores.dtype == outputs.loss.dtype == torch.float32
    assert_close(outputs.loss, exact.loss, rtol=0.02, atol=0)
    assert_close(outputs.pred_boxes, exact.pred_boxes, rtol=0, atol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@variants
def test_a_model_of_bfloat16_learns_and_stays_near(variant):
    model = tiny_detr(**DETR_VARIANTS[variant], frozen_batch_norm=True).train()
    _, pixels, mask = padded_pictures(SIZES[:3])
    torch.manual_seed(3)
    exact = model(pixels, mask, labels=DETR_LABELS)
    torch.manual_seed(3)
    outputs = model.bfloat16()(pixels.bfloat16(), mask, labels=DETR_LABELS)
    outputs.loss.backward()
    assert outputs.pred_boxes.dtype == outputs.scores.dtype == outputs.loss.dtype == torch.float32
    assert_close(outputs.loss, exact.loss, rtol=0.03, atol=0)
    assert_close(outputs.pred_boxes, exact.pred_boxes, rtol=0, atol=0.05)


@variants
def test_float64_is_kept_and_differs_by_rounding_alone(variant):
    pixels = torch.randn(2, 3, 64, 96)
    model = tiny_detr(**DETR_VARIANTS[variant])
    outputs = model(pixels, labels=DETR_LABELS[:2])
    precise = model.double()(pixels.double(), labels=DETR_LABELS[:2])
    for name in ("logits", "pred_boxes", "scores", "loss"):
        assert getattr(precise, name).dtype == torch.float64
        assert_close(getattr(outputs, name), getattr(precise, name).float(), rtol=1e-5, atol=1e-5)


# --- the same formula elsewhere --------------------------------------------------------------------------------------


def test_the_same_formula_is_a_block_for_its_feature_map():
    model = tiny_detr()
    features = model.model.backbone(torch.randn(1, 3, 64, 64))
    assert torch.equal(NonLocalBlock(features.shape[1])(features), features)  # a fresh one changes nothing
