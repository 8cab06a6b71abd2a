"""A detector prepared for inference against itself: same answers on every backbone, or else the layers answer."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hf_attn.inference
import hf_attn.inference_detr
from hf_attn import AttnViTConfig, record_attention
from hf_attn.inference import OneDnnLinear, ReadyLinear
from hf_attn.inference_detr import (
    Memory,
    OneDnnConvolution,
    ReadyConvolution,
    ReadyResNet,
    ReadyViTFeatures,
    attend_by_onednn,
    convolutions_work,
)
from hf_attn.linear import onednn_works
from tests.test_inputs_detr import VIT
from tests.tiny import DETR_VARIANTS, padded_pictures, tiny_detr

SIZES = [(64, 96), (96, 64), (64, 96), (33, 47)]
NARROW = {"channels": [8, 8, 16, 16]}
RESNETS = {
    "resnet10t": {},
    "resnet18": {"backbone": "resnet18", "backbone_kwargs": NARROW},
    "resnet18d": {"backbone": "resnet18d", "backbone_kwargs": NARROW},
    "resnet26": {"backbone": "resnet26", "backbone_kwargs": NARROW},
    "resnet26d": {"backbone": "resnet26d", "backbone_kwargs": NARROW},
    "resnext": {"backbone": "resnext50_32x4d", "backbone_kwargs": {"layers": (1, 1, 1, 1)}},
    "dilated": {"backbone": "resnet18", "backbone_kwargs": {**NARROW, "output_stride": 8}, "backbone_feature": -1},
    "the stem alone": {"backbone": "resnet18", "backbone_kwargs": {}, "backbone_feature": 0},
    "frozen": {"frozen_batch_norm": True, "frozen_stride": 4},
}
OTHERS = {
    "squeeze and excite": {"backbone": "seresnet18", "backbone_kwargs": {}},
    "blurred": {"backbone": "resnetblur18", "backbone_kwargs": {}},
    "silu": {"backbone": "resnet18", "backbone_kwargs": {**NARROW, "act_layer": "silu"}},
    "group norm": {"backbone": "resnet18", "backbone_kwargs": {"norm_layer": "groupnorm"}},
    "mobilenet": {"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}},
    "convnext": {"backbone": "convnext_atto", "backbone_kwargs": {}},
}


@pytest.fixture(params=["plain", "oneDNN"])
def kind(request, monkeypatch):
    """As on a machine where products and convolutions of this kind are fastest."""
    is_onednn = request.param == "oneDNN"
    if is_onednn and not (onednn_works(torch.float32) and convolutions_work(torch.float32)):
        pytest.skip("this PyTorch has no oneDNN")
    product, convolution = (OneDnnLinear, OneDnnConvolution) if is_onednn else (ReadyLinear, ReadyConvolution)
    monkeypatch.setattr(hf_attn.inference, "kind_of_linear", lambda dtype, device: product)
    monkeypatch.setattr(hf_attn.inference_detr, "kind_of_convolution", lambda dtype, device: convolution)


@torch.no_grad()
def answers(model) -> dict[str, torch.Tensor]:
    """Of pictures of several sizes in one batch."""
    _, pixels, mask = padded_pictures(SIZES)
    outputs = model(pixels, mask)
    return {name: outputs[name] for name in ("logits", "pred_boxes", "intermediate_hidden_states")}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert_near(found[name], value)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= 1e-5


@pytest.mark.parametrize("variant", DETR_VARIANTS)
def test_a_prepared_detector_answers_as_before(kind, variant):
    model = tiny_detr(**DETR_VARIANTS[variant])
    before = answers(model)
    assert model.prepare_for_inference() is model
    assert_same(answers(model), before)
    parts = (model.model.backbone, model.model.encoder, model.model.decoder)
    assert all(part.ready() is None for part in parts)  # gradients are wanted here
    with torch.no_grad():
        assert all(part.ready() is not None for part in parts)


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_resnets_of_every_kind_have_a_twin(kind, name):
    backbone = tiny_detr(**RESNETS[name]).model.backbone
    pictures = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3)) for size in set(SIZES)]
    before = [backbone(pixels) for pixels in pictures]
    assert isinstance(backbone.prepare_for_inference()._twin, ReadyResNet)
    for pixels, expected in zip(pictures, before, strict=True):
        assert_near(backbone(pixels), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_stay_as_they_are(name):
    model = tiny_detr(**OTHERS[name])
    before = answers(model)
    assert model.prepare_for_inference().model.backbone._twin is None
    assert_same(answers(model), before)


@pytest.mark.parametrize("layer", [-1, -2, 0])
@torch.no_grad()
def test_a_vit_for_a_backbone_has_a_twin(kind, layer):
    config = AttnViTConfig(**VIT, apply_layernorm=True).to_dict()
    backbone = tiny_detr(backbone_config=config, backbone_feature=layer).model.backbone
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    before = backbone(pixels)
    assert isinstance(backbone.prepare_for_inference().ready(), ReadyViTFeatures)
    assert_near(backbone(pixels), before)
    with pytest.raises(ValueError, match="63"):
        backbone(pixels[..., :63])


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "resnet26", "the stem alone"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_memory_used_again_holds_nobodys_answer(kind, name, mode, monkeypatch):
    """As if every feature map were large: what a call returned stays as it was when the next one is made."""
    model = tiny_detr(**RESNETS[name])
    first, second = (torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3)) for size in SIZES[:2])
    backbone = model.model.backbone
    with mode():
        expected = [backbone(first), backbone(second), backbone(first)]
        monkeypatch.setattr(hf_attn.inference_detr, "FRESH", 0)
        monkeypatch.setattr(hf_attn.inference_detr, "LARGE", 0)  # one picture after the other
        model.prepare_for_inference()
        found = [backbone(first), backbone(second), backbone(first)]
        assert backbone._twin.memories
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other)
    with torch.no_grad():  # memory first used in inference mode
        assert_near(backbone(first), expected[0].clone())


def test_a_place_is_not_given_to_the_next_in_the_same_use(monkeypatch):
    monkeypatch.setattr(hf_attn.inference_detr, "FRESH", 0)
    memory, shape = Memory(), (1, 4, 3, 5)
    one, inner, other, third = (
        memory.take(use, shape, torch.float32) for use in ("stream", "inside", "stream", "stream")
    )
    assert len({place.data_ptr() for place in (one, inner, other)}) == 3 and third.data_ptr() == one.data_ptr()
    assert one.is_contiguous(memory_format=torch.channels_last) and one.shape == shape
    assert memory.holds(one) and not memory.holds(torch.zeros(shape))


@pytest.mark.skipif(not convolutions_work(torch.bfloat16), reason="no bfloat16 by oneDNN")
@pytest.mark.parametrize("variant", ["plain", "all"])
def test_bfloat16_is_asked_for_and_boxes_stay_within_a_hundredth(variant):
    model = tiny_detr(**DETR_VARIANTS[variant])
    before = answers(model)
    after = answers(model.prepare_for_inference(torch.bfloat16))
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert 0 < (after["logits"] - before["logits"]).abs().max() < 0.05 * before["logits"].abs().max()
    assert (after["pred_boxes"] - before["pred_boxes"]).abs().max() < 0.01


@pytest.mark.skipif(not onednn_works(torch.float32), reason="no oneDNN")
def test_attention_head_by_head_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator) for length in (5, 7, 7))
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 4:] = -torch.inf
    for own in (None, mask):
        expected = nn.functional.scaled_dot_product_attention(q, k, v, own, scale=1.0).transpose(1, 2).flatten(-2)
        assert_close(attend_by_onednn(q, k, v, own), expected)


@pytest.mark.skipif(not onednn_works(torch.float32), reason="no oneDNN")
def test_many_tokens_are_read_head_by_head(kind, monkeypatch):
    model, asked = tiny_detr(), []
    before = answers(model)
    monkeypatch.setattr(hf_attn.inference_detr, "LARGE", 1)
    head_by_head = hf_attn.inference_detr.attend_by_onednn
    monkeypatch.setattr(hf_attn.inference_detr, "attend_by_onednn", lambda *a: asked.append(1) or head_by_head(*a))
    assert_same(answers(model.prepare_for_inference()), before)
    assert bool(asked) == model.model.encoder._twin.layers[0].self_attention.is_onednn


def test_nothing_of_it_is_saved_and_everything_can_be_copied(tmp_path):
    model = tiny_detr()
    state, before = {name: one.clone() for name, one in model.state_dict().items()}, answers(model)
    model.prepare_for_inference()
    answers(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert_same(answers(copy.deepcopy(model)), before)
    model.save_pretrained(tmp_path)
    assert_same(answers(type(model).from_pretrained(tmp_path).eval()), before)


@pytest.mark.parametrize("freeze", [False, True])
def test_training_undoes_it(freeze):
    model = tiny_detr()
    if freeze:
        model.model.backbone.freeze()
    before = answers(model)
    model.prepare_for_inference().train()
    assert all(getattr(module, "_twin", None) is None for module in model.modules())
    after = answers(model.eval())
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("change", ["weights", "statistics"])
def test_weights_and_statistics_that_change_are_noticed(freeze, change):
    model, other = tiny_detr(), tiny_detr()
    for one in (model, other):
        if freeze:
            one.model.backbone.freeze()
    before = answers(model.prepare_for_inference())
    with torch.no_grad():
        for one in (model, other):
            body = one.model.backbone.body
            (body.bn1.running_var if change == "statistics" else body.layer1[0].conv1.weight).mul_(3)
    after = answers(model)
    assert (after["logits"] - before["logits"]).abs().max() > 1e-3
    assert_same(after, answers(other))


@torch.no_grad()
def test_batch_norm_that_learns_is_not_folded():
    backbones = [tiny_detr().model.backbone, tiny_detr().model.backbone.prepare_for_inference()]
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for backbone in backbones:
        backbone.body.layer1[0].bn1.train()
    assert torch.equal(*[backbone(pixels) for backbone in backbones])


def refuse(*args, **kwargs):
    raise AssertionError("the twin answered")


WATCHED = {
    "gradients": lambda model, *inputs: model(*inputs).logits.sum().backward(),
    "attention": lambda model, *inputs: model(*inputs, output_attentions=True).cross_attentions[1],
    "hidden states": lambda model, *inputs: model(*inputs, output_hidden_states=True).encoder_hidden_states[1],
    "the formula": lambda model, *inputs: model.set_attn_implementation("eager") or model(*inputs),
    "autocast": lambda model, *inputs: torch.autocast("cpu", torch.bfloat16)(model)(*inputs),
}


@pytest.mark.parametrize("way", WATCHED)
def test_layers_answer_where_they_are_to_be_seen(way, monkeypatch):
    model = tiny_detr().prepare_for_inference()
    for twin in (hf_attn.inference_detr.ReadyEncoderLayer, hf_attn.inference_detr.ReadyDecoderLayer):
        monkeypatch.setattr(twin, "__call__", refuse)
    _, pixels, mask = padded_pictures(SIZES)
    with torch.set_grad_enabled(way == "gradients"):
        assert WATCHED[way](model, pixels, mask) is not None or model.class_head.weight.grad is not None
    with torch.no_grad(), pytest.raises(AssertionError, match="the twin answered"):
        tiny_detr().prepare_for_inference()(pixels, mask)


def test_hooks_and_records_see_the_layers():
    model, seen = tiny_detr().prepare_for_inference(), []
    handles = [
        module.register_forward_hook(lambda *a: seen.append(1))
        for module in (model.model.backbone.body.layer1[0].conv1, model.model.decoder.layers[1])
    ]
    answers(model)
    assert len(seen) == 4  # the convolution for each of three sizes
    for handle in handles:
        handle.remove()
    with record_attention(model.model.decoder, "cross_attention") as record:
        answers(model)
    assert len(record.maps) == 2


class Convolution(nn.Conv2d):
    """More than its weights."""

    def forward(self, x):
        return super().forward(x) + 1


def test_a_convolution_that_was_exchanged_is_not_passed_over():
    models = [tiny_detr(), tiny_detr().prepare_for_inference()]
    for model in models:
        block = model.model.backbone.body.layer1[0]
        torch.manual_seed(0)
        block.conv1 = Convolution(block.conv1.in_channels, block.conv1.out_channels, 3, padding=1)
    assert_same(*map(answers, models))


def test_eight_bits_are_refused():
    with pytest.raises(ValueError, match=r"torch\.int8; AttnDetrForObjectDetection .*float32, torch\.bfloat16"):
        tiny_detr().prepare_for_inference(torch.int8)
