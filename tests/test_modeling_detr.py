"""DETR's laws: shapes, alone = in a batch, kernels agree, noised queries tell nothing, weights are the right ones."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from hf_attn import (
    AttnDetrConfig,
    AttnDetrForObjectDetection,
    AttnDetrModel,
    AttnViTConfig,
    NonLocalBlock,
    record_attention,
)
from hf_attn.denoising_detr import noised_queries
from tests.tiny import tiny_detr

VARIANTS = {
    "plain": {},
    "conditional": {"conditional_attention": True},
    "denoising": {"denoising_groups": 2},
    "all": {"conditional_attention": True, "denoising_groups": 2, "class_loss": "focal"},
}
LABELS = [
    {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.4]])},
    {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.1]])},
]


def padded(sizes, height: int = 96, width: int = 96, seed: int = 0):
    """Pictures of these sizes, and the same padded to one size with their mask."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(3, *size, generator=generator) for size in sizes]
    pixels, mask = torch.randn(len(sizes), 3, height, width), torch.zeros(len(sizes), height, width, dtype=torch.long)
    for row, (picture, (own_height, own_width)) in enumerate(zip(pictures, sizes, strict=True)):
        pixels[row, :, :own_height, :own_width] = picture  # what is beyond is noise, which nobody may see
        mask[row, :own_height, :own_width] = 1
    return pictures, pixels, mask


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_the_shapes_of_the_paper():
    """(1, 3, 800, 1200) → C5 (1, 2048, 25, 38) → 950 tokens of 256; (6, b, 100, 256) of all decoder layers."""
    model = AttnDetrForObjectDetection(AttnDetrConfig(num_labels=91)).eval()
    pixels = torch.randn(1, 3, 800, 1200)
    with torch.inference_mode():
        features = model.model.backbone(pixels)
        assert features.shape == (1, 2048, 25, 38)
        outputs = model(pixels)
    assert model.model.backbone.channels == 2048
    assert outputs.encoder_last_hidden_state.shape == (1, 950, 256)
    assert outputs.intermediate_hidden_states.shape == (6, 1, 100, 256)
    assert outputs.logits.shape == (1, 100, 92)
    assert outputs.scores.shape == (1, 100, 91)
    assert outputs.pred_boxes.shape == (1, 100, 4)
    assert [one["logits"].shape for one in outputs.auxiliary_outputs] == [(1, 100, 92)] * 5
    assert model.model.query_embedding.weight.shape == (100, 256)


@pytest.mark.parametrize(
    ("backbone", "fields", "channels", "grid"),
    [
        ("resnet18", {}, 512, (2, 3)),
        ("resnet18", {"backbone_kwargs": {"output_stride": 16}}, 512, (4, 6)),  # DC5
        ("resnet18", {"backbone_feature": -2}, 256, (4, 6)),
        ("convnext_atto", {}, 320, (2, 3)),
        ("swin_s3_tiny_224", {"backbone_kwargs": {"img_size": (64, 96)}}, 768, (2, 3)),  # channels last
    ],
)
def test_any_backbone_of_timm_by_name(backbone, fields, channels, grid):
    config = AttnDetrConfig(
        backbone=backbone, hidden_size=32, encoder_layers=1, decoder_layers=1, num_labels=2, **fields
    )
    model = AttnDetrForObjectDetection(config).eval()
    assert model.model.backbone.channels == channels
    assert model.model.feature_grid(64, 96) == grid
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).encoder_last_hidden_state.shape == (1, grid[0] * grid[1], 32)


def test_a_vit_of_this_package_is_a_backbone_too():
    vit = AttnViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    model = tiny_detr(backbone_config=vit.to_dict())
    assert model.model.feature_grid(64, 48) == (8, 6)
    _, pixels, mask = padded([(64, 48), (32, 96)])
    with torch.no_grad():
        alone = model(pixels[1:, :, :32])
        assert_close(model(pixels, mask).logits[1], alone.logits[0], rtol=0, atol=1e-5)


def test_an_unknown_backbone_is_named_with_what_is_like_it():
    with pytest.raises(ValueError, match=r"no network 'resnet51'; it has .*resnet50"):
        tiny_detr(backbone="resnet51", backbone_kwargs={})
    with pytest.raises(ValueError, match=r"no feature map 7"):
        tiny_detr(backbone_feature=7)


# --- alone = in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_alone_is_as_in_a_batch_of_other_sizes(variant):
    model = tiny_detr(**VARIANTS[variant])
    sizes = [(64, 96), (96, 64), (64, 96), (48, 80), (96, 96)]
    pictures, pixels, mask = padded(sizes)
    with torch.no_grad():
        together = model(pixels, mask)
        for row, picture in enumerate(pictures):
            alone = model(picture[None])
            assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-5)
            assert_close(together.pred_boxes[row], alone.pred_boxes[0], rtol=0, atol=1e-5)


def test_a_mask_that_is_no_rectangle_from_the_top_left_is_refused():
    model = tiny_detr()
    pixels, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.long)
    mask[1, :10] = 0
    with pytest.raises(ValueError, match=r"picture 1 is not a rectangle of ones from the top left"):
        model(pixels, mask)
    with pytest.raises(ValueError, match=r"pixel_mask is \(2, 32, 32\)"):
        model(pixels, mask[:, :32, :32])
    with pytest.raises(ValueError, match=r"\(batch, 3 channels, height, width\)"):
        model(pixels[:, :1])
    with pytest.raises(ValueError, match="must be floats"):
        model(pixels.long())


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_agree_forward_and_backward(variant):
    _, pixels, mask = padded([(64, 96), (96, 64), (48, 48)])
    found = {}
    for kernel in ("eager", "sdpa"):
        model = tiny_detr(**VARIANTS[variant], frozen_batch_norm=True).train()
        model.set_attn_implementation(kernel)
        torch.manual_seed(3)  # of the noise on the labels
        outputs = model(pixels, mask, labels=LABELS)
        outputs.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[kernel] = outputs, gradients
    assert_close(found["sdpa"][0].logits, found["eager"][0].logits, rtol=0, atol=1e-5)
    assert_close(found["sdpa"][0].loss, found["eager"][0].loss, rtol=1e-5, atol=0)
    assert found["sdpa"][1].keys() == found["eager"][1].keys()
    for name, gradient in found["eager"][1].items():
        assert_close(found["sdpa"][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_attention_maps_under_sdpa_are_those_of_eager_and_end_at_the_picture():
    _, pixels, mask = padded([(64, 96), (48, 48)])
    found = {}
    for kernel in ("eager", "sdpa"):
        model = tiny_detr()
        model.set_attn_implementation(kernel)
        with torch.no_grad(), record_attention(model, kind="cross_attention", layers=[-1], queries=[1, 4]) as record:
            found[kernel] = model(pixels, mask, output_attentions=True), next(iter(record.maps.values()))[0]
    outputs, maps = found["sdpa"]
    assert maps.shape == (2, 4, 2, 24)
    assert_close(maps.sum(-1), torch.ones(2, 4, 2))
    assert not maps[1, ..., 9:].any()  # 48x48 pixels are 9 tokens
    assert_close(maps, found["eager"][1], rtol=0, atol=1e-6)
    assert len(outputs.encoder_attentions) == len(outputs.cross_attentions) == 2
    assert_close(outputs.cross_attentions[-1][:, :, [1, 4]], maps, rtol=0, atol=1e-6)


# --- initialisation and the backbone's weights -----------------------------------------------------------------------


def test_it_begins_as_the_authors_model():
    model = AttnDetrForObjectDetection(AttnDetrConfig(backbone="resnet18", num_labels=5))
    assert abs(model.model.query_embedding.weight.std() - 1) < 0.02  # N(0, 1); transformers: 0.02
    attention = model.model.encoder.layers[0].self_attention
    reference = nn.MultiheadAttention(256, 8)
    nn.init.xavier_uniform_(reference.in_proj_weight)  # the authors' _reset_parameters
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert_close(projection.weight.std(), reference.in_proj_weight.std(), rtol=0.02, atol=0)
        assert projection.weight.abs().max() <= (6 / (4 * 256)) ** 0.5
        assert not projection.bias.any()
    feed_forward = model.model.decoder.layers[0].feed_forward
    assert_close(feed_forward.up_proj.weight.abs().max(), torch.tensor((6 / (256 + 2048)) ** 0.5), rtol=0.01, atol=0)
    for linear in (model.class_head, model.model.decoder.box_head.layers[0]):  # torch's own: within 1/√256
        assert 0.9 / 16 < linear.weight.abs().max() <= 1 / 16 and linear.bias.abs().max() <= 1 / 16
    spread = model.eval()(torch.randn(1, 3, 64, 64)).pred_boxes.std(dim=1).max()
    assert spread > 1e-5  # transformers': 2.8e-7


def test_pretrained_weights_survive_and_a_checkpoint_needs_no_download(tmp_path, monkeypatch):
    make, asked = timm.create_model, []

    def known_weights(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        body = make(name, pretrained=False, **kwargs)
        if pretrained:
            with torch.no_grad():
                for parameter in body.parameters():
                    parameter.fill_(0.125)
        return body

    monkeypatch.setattr(timm, "create_model", known_weights)
    model = tiny_detr(use_pretrained_backbone=True).train()
    plain = AttnDetrForObjectDetection(model.config)
    assert asked == [True, True]
    assert all((parameter == 0.125).all() for parameter in plain.model.backbone.parameters())
    model.save_pretrained(tmp_path)
    loaded = AttnDetrForObjectDetection.from_pretrained(tmp_path)
    assert asked == [True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not any(p.requires_grad for p in loaded.model.backbone.body.conv1.parameters())


def test_what_is_frozen_where_the_backbone_is_pretrained(monkeypatch):
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kwargs: make(name, **kwargs))
    model = AttnDetrForObjectDetection(AttnDetrConfig(use_pretrained_backbone=True, num_labels=2)).train()
    body = model.model.backbone.body
    frozen = {name for name, parameter in body.named_parameters() if not parameter.requires_grad}
    convolutions = sum(p.numel() for name, p in body.named_parameters() if name in frozen and p.ndim == 4)
    assert convolutions == 222_400  # the authors': stem and first stage
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert all(p.requires_grad for name, p in body.named_parameters() if name.startswith("layer2") and p.ndim == 4)


def test_batch_norm_lives_where_the_backbone_is_not_pretrained():
    model = tiny_detr().train()
    norms = [module for module in model.model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms) and all(p.requires_grad for p in model.parameters())
    before = norms[0].running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert not torch.equal(norms[0].running_mean, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_equals_loaded(variant, tmp_path):
    model = tiny_detr(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, info = AttnDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)
    body = AttnDetrModel.from_pretrained(tmp_path)
    assert torch.equal(body.decoder.final_norm.weight, model.model.decoder.final_norm.weight)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["denoising", "all"])
def test_noised_queries_tell_the_others_nothing(variant):
    model = tiny_detr(**VARIANTS[variant], frozen_batch_norm=True).train()
    _, pixels, mask = padded([(64, 96), (96, 64), (48, 48)])
    with torch.no_grad():
        noised = noised_queries(LABELS, model.config, "cpu")
        without = model.model(pixels, mask)
        with_them = model.model(pixels, mask, noised)
        other = noised._replace(noised_boxes=torch.where((noised.group == 1)[None, :, None], 0.9, noised.noised_boxes))
        changed = model.model(pixels, mask, other)
    own, groups = slice(0, 7), noised.group
    states = [outputs.intermediate_hidden_states for outputs in (without, with_them, changed)]
    assert_close(states[1][:, :, own], states[0], rtol=0, atol=1e-5)
    assert_close(states[2][:, :, own], states[0], rtol=0, atol=1e-5)
    second = 7 + (groups == 2).nonzero().flatten()
    real = (noised.classes >= 0)[:, groups == 2]
    assert_close(states[2][:, :, second][:, real], states[1][:, :, second][:, real], rtol=0, atol=1e-5)
    first = 7 + (groups == 1).nonzero().flatten()
    assert (states[2][:, 0, first] - states[1][:, 0, first]).abs().max() > 1e-3


def test_noise_is_within_its_bounds_and_only_of_training():
    config = AttnDetrConfig(num_labels=9, denoising_groups=200)
    labels = [{"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}, *LABELS[1:2]]
    noised = noised_queries(labels, config, "cpu")
    assert noised.classes[0].eq(4).all() and noised.classes[1].eq(-1).all()
    moved = noised.noised_boxes[0] - labels[0]["boxes"]
    assert (moved[:, :2].abs() <= 0.4 * torch.tensor([0.1, 0.2]) + 1e-6).all() and moved.abs().max() > 0.05
    share = (noised.noised_classes[0] != 4).float().mean()
    assert 0.1 < share < 0.27  # 0.2, of which one in nine is right by chance
    assert noised_queries(LABELS[1:2], config, "cpu") is None
    model = tiny_detr(denoising_groups=2)
    assert not [name for name in model(torch.randn(1, 3, 64, 64), labels=LABELS[:1]).loss_dict if "dn" in name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    model = tiny_detr(**VARIANTS[variant]).train()
    model(torch.randn(3, 3, 64, 64), labels=LABELS).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_detr(frozen_batch_norm=True).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)), labels=LABELS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


def test_bfloat16_model_and_labels_work_and_stay_near():
    model, pixels = tiny_detr(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        exact = model(pixels, labels=LABELS)
        half = model.bfloat16()(pixels.bfloat16(), labels=LABELS)
    assert half.loss.dtype == torch.float32 and half.loss.isfinite()
    assert (half.pred_boxes.float() - exact.pred_boxes).abs().max() < 0.1


def test_focal_and_cross_entropy_scores_are_probabilities_of_the_classes():
    for class_loss in ("cross_entropy", "focal"):
        outputs = tiny_detr(class_loss=class_loss)(torch.randn(1, 3, 64, 64))
        assert outputs.logits.shape[-1] == 3 + (class_loss == "cross_entropy")
        assert outputs.scores.shape == (1, 7, 3) and outputs.scores.min() >= 0 and outputs.scores.max() <= 1


def test_the_same_formula_is_a_block_for_its_feature_map():
    model = tiny_detr()
    features = model.model.backbone(torch.randn(1, 3, 64, 64))
    assert NonLocalBlock(features.shape[1])(features).shape == features.shape
