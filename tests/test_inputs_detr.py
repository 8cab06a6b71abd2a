"""What DETR's encoder reads: tokens of each picture's own, at the authors' positions, from any backbone."""

import builtins
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection, AttnViTBackbone, AttnViTConfig, MultiHeadAttention
from hf_attn.inputs_detr import Backbone, TokensOfPictures, visible_sizes
from tests.tiny import padded_pictures, tiny_detr

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def tokens_of(**fields) -> TokensOfPictures:
    return tiny_detr(encoder_layers=1, decoder_layers=1, **fields).model.tokens


def authors_positions(
    mask: torch.Tensor, width: int, temperature: float = 10000, scale: float = 2 * torch.pi
) -> torch.Tensor:
    """The authors' PositionEmbeddingSine(width / 2, temperature, normalize=True, scale) for a mask (batch, rows,
    columns), 1 = visible."""
    y, x = mask.cumsum(1, dtype=torch.float32), mask.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * scale
    x = x / (x[:, :, -1:] + 1e-6) * scale
    half = torch.arange(width // 2, dtype=torch.float32)
    periods = temperature ** (2 * (half // 2) / (width // 2))
    x, y = x[..., None] / periods, y[..., None] / periods
    x = torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), dim=4).flatten(3)
    y = torch.stack((y[..., 0::2].sin(), y[..., 1::2].cos()), dim=4).flatten(3)
    return torch.cat((y, x), dim=3)


# --- the backbone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "fields", "channels", "grid"),
    [
        ("resnet18", {}, 512, (2, 3)),
        ("resnet18", {"backbone_kwargs": {"output_stride": 16}}, 512, (4, 6)),  # DC5
        ("resnet18", {"backbone_feature": -2}, 256, (4, 6)),
        ("resnet18.a1_in1k", {"backbone_feature": 1}, 64, (16, 24)),
        ("convnext_atto", {}, 320, (2, 3)),
        ("efficientnet_lite0", {"backbone_feature": -2}, 112, (4, 6)),
        ("swin_s3_tiny_224", {"backbone_kwargs": {"img_size": (64, 96)}}, 768, (2, 3)),  # channels last
        ("vit_tiny_patch16_224", {"backbone_kwargs": {"img_size": (64, 96)}}, 192, (4, 6)),
    ],
)
@torch.no_grad()
def test_any_network_of_timm_by_name(backbone, fields, channels, grid):
    shape = {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_labels": 2}
    model = AttnDetrForObjectDetection(AttnDetrConfig(backbone=backbone, **shape, **fields)).eval()
    pixels = torch.randn(1, 3, 64, 96)
    assert model.model.backbone.channels == channels == model.model.tokens.input_projection.in_channels
    assert model.model.backbone(pixels).shape == (1, channels, *grid)
    assert model.model.feature_grid(64, 96) == grid
    assert model(pixels).encoder_last_hidden_state.shape == (1, grid[0] * grid[1], 32)


@torch.no_grad()
def test_channels_that_come_last_are_told_by_the_network_and_not_by_their_number():
    fields = {"backbone": "mambaout_femto", "backbone_kwargs": {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}}
    backbone = Backbone(AttnDetrConfig(**fields)).eval()
    pixels = torch.randn(1, 3, 256, 128)
    found = backbone(pixels)
    assert found.shape == (1, 8, 8, 4)  # as many rows as channels
    assert torch.equal(found, backbone.body(pixels)[-1].permute(0, 3, 1, 2))


@torch.no_grad()
def test_grey_pictures():
    tokens = tokens_of(num_channels=1)
    assert tokens(torch.randn(1, 1, 64, 96)).features.shape == (1, 24, 32)
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\); they must be \(batch, 1 channels, height, width\)"):
        tokens(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet51"}, r"timm has no network 'resnet51'; it has .*resnet50"),
        ({"backbone": "hf-hub:timm/resnet18.a1_in1k"}, r"no network 'hf-hub:timm/resnet18.a1_in1k'; it has .*resnet"),
        ({"backbone": "zzz"}, r"no network 'zzz'; timm.list_models\(\) names those that it has"),
        ({"backbone_feature": 7}, r"timm's resnet10t gives no feature map 7 .*feature_info"),
        ({"backbone_kwargs": {"stem_widht": 3}}, r"with backbone_kwargs \{'stem_widht': 3\} .*stem_widht"),
        ({"backbone": "resnet18.nobodys", "backbone_kwargs": {}}, r"timm's resnet18.nobodys .*Invalid pretrained tag"),
        (
            {"backbone": "resnetblur18", "backbone_kwargs": {}, "use_pretrained_backbone": True},
            r"timm has no pretrained weights of resnetblur18 .* leave use_pretrained_backbone out, or choose one",
        ),
    ],
)
def test_what_timm_cannot_make_is_named_with_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_detr(**fields)


def test_without_timm_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"the backbone resnet10t is of timm, .* install timm"):
        tiny_detr()


def test_without_what_timm_needs_the_message_names_that(monkeypatch):
    load = builtins.__import__

    def without_torchvision(name, *arguments, **more):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_torchvision)
    with pytest.raises(ImportError, match=r"No module named 'torchvision'\): install torchvision of the same release"):
        tiny_detr()


@torch.no_grad()
def test_a_vit_of_this_package_is_a_backbone_too():
    model = tiny_detr(backbone_config=AttnViTConfig(**VIT).to_dict(), backbone_feature=-1)
    assert model.model.backbone.channels == 16
    assert model.model.feature_grid(64, 48) == (8, 6)
    _, pixels, mask = padded_pictures([(64, 48), (32, 96)])
    alone = model(pixels[1:, :, :32])
    assert_close(model(pixels, mask).logits[1], alone.logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_backbone_feature_counts_the_layers_of_a_vit():
    pixels = torch.randn(1, 3, 32, 48)
    every_layer = AttnViTBackbone(AttnViTConfig(**VIT, out_indices=[0, 1, 2, 3])).eval()
    expected, settings = every_layer(pixels).feature_maps, every_layer.config.to_dict()
    for layer in (-1, -2, 0):
        backbone = Backbone(AttnDetrConfig(backbone_config=settings, backbone_feature=layer)).eval()
        backbone.body.load_state_dict(every_layer.state_dict())
        assert_close(backbone(pixels), expected[layer])


def test_a_vit_for_a_backbone_follows_the_kernel_and_begins_by_its_own_rule():
    vit = AttnViTConfig(**{**VIT, "hidden_size": 64, "image_size": 64})
    model = tiny_detr(backbone_config=vit.to_dict())
    fresh = AttnDetrForObjectDetection(model.config).model.backbone.body.embeddings
    assert abs(fresh.positions.std() / 0.02 - 1) < 0.1 and abs(fresh.patch_embedding.weight.std() / 0.02 - 1) < 0.1
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        modules = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
        assert {module.config._attn_implementation for module in modules} == {kernel}


# --- where a token is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (16, 16), (33, 250)], ids=str)
@torch.no_grad()
def test_positions_are_the_authors(size):
    tokens = tokens_of(**({"position_temperature": 20, "position_scale": 25} if size == (16, 16) else {}))
    found = tokens(torch.randn(2, 3, *size))
    rows, columns = tokens.backbone(torch.randn(1, 3, *size)).shape[-2:]
    expected = authors_positions(torch.ones(2, rows, columns), 32, tokens.temperature, tokens.scale)
    assert_close(found.positions, expected.flatten(1, 2), rtol=0, atol=5e-6)


@torch.no_grad()
def test_positions_count_the_picture_s_own_rows_and_columns():
    tokens = tokens_of()
    _, pixels, mask = padded_pictures([(96, 48), (48, 96)])
    found = tokens(pixels, mask)
    of_features = torch.zeros(2, 6, 6)
    of_features[0, :6, :3] = of_features[1, :3, :6] = 1
    authors = authors_positions(of_features, 32)  # which pad the map to 6x6
    for row, (rows, columns) in enumerate([(6, 3), (3, 6)]):
        own = authors[row, :rows, :columns].flatten(0, 1)
        assert_close(found.positions[row], own, rtol=0, atol=2e-6)


@torch.no_grad()
def test_positions_of_half_precision_are_rounded_once():
    exact, half = tokens_of(), tokens_of().bfloat16()
    pixels = torch.randn(1, 3, 160, 208)
    assert torch.equal(half(pixels.bfloat16()).positions, exact(pixels).positions.bfloat16())


# --- pictures of several sizes ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_picture_goes_through_the_backbone_as_if_alone_and_equal_sizes_together():
    tokens = tokens_of()
    sizes = [(64, 96), (96, 64), (64, 96), (48, 80), (96, 96)]
    pictures, pixels, mask = padded_pictures(sizes)
    seen = []
    tokens.backbone.register_forward_hook(lambda module, arguments, output: seen.append(tuple(arguments[0].shape)))
    found = tokens(pixels, mask)
    assert seen == [(2, 3, 64, 96), (1, 3, 96, 64), (1, 3, 48, 80), (1, 3, 96, 96)]
    assert found.features.shape == found.positions.shape == (5, 36, 32)
    assert found.mask.sum(dim=1).tolist() == [24, 24, 24, 15, 36]
    for row, picture in enumerate(pictures):
        alone = tokens(picture[None])
        number = alone.features.shape[1]
        assert alone.mask is None
        assert_close(found.features[row, :number], alone.features[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(found.positions[row, :number], alone.positions[0])
        assert found.mask[row, :number].all() and not found.mask[row, number:].any()
        assert not found.features[row, number:].any() and not found.positions[row, number:].any()


@torch.no_grad()
def test_where_all_pictures_have_one_size_nothing_is_padded():
    tokens = tokens_of()
    _, pixels, mask = padded_pictures([(48, 80), (48, 80)])
    found = tokens(pixels, mask)
    assert found.mask is None
    assert torch.equal(found.features, tokens(pixels[..., :48, :80]).features)
    everything = tokens(pixels, torch.ones_like(mask))
    assert everything.mask is None
    assert torch.equal(everything.features, tokens(pixels).features)


def test_the_gradient_of_a_picture_ends_at_its_edge():
    tokens = tokens_of()
    _, pixels, mask = padded_pictures([(48, 80), (96, 64)])
    pixels.requires_grad_()
    tokens(pixels, mask).features.square().sum().backward()
    assert not pixels.grad[~mask.bool().unsqueeze(1).expand_as(pixels)].any()
    assert all(pixels.grad[row, :, 0, 0].any() for row in range(2))


def test_sizes_are_read_from_the_mask():
    sizes = [(1, 96), (96, 1), (17, 33)]
    _, pixels, mask = padded_pictures(sizes)
    for kind in (torch.long, torch.bool, torch.uint8, torch.float32):
        assert visible_sizes(pixels, mask.to(kind)) == sizes


@pytest.mark.parametrize("hidden", ["above", "left", "hole", "all", "corner"])
def test_a_mask_that_is_no_rectangle_from_the_top_left_is_refused(hidden):
    pixels, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.long)
    rows, columns = {
        "above": (slice(0, 10), slice(None)),
        "left": (slice(None), slice(0, 10)),
        "hole": (slice(20, 30), slice(20, 30)),
        "all": (slice(None), slice(None)),
        "corner": (slice(50, None), slice(50, None)),
    }[hidden]
    mask[1, rows, columns] = 0
    with pytest.raises(ValueError, match=r"picture 1 is not a rectangle of ones from the top left; pad pictures on"):
        visible_sizes(pixels, mask)


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (torch.zeros(2, 1, 64, 64), None, r"\(2, 1, 64, 64\); they must be \(batch, 3 channels, height, width\)"),
        (torch.zeros(3, 64, 64), None, r"\(3, 64, 64\); they must be \(batch, 3 channels"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), None, r"torch.uint8; they must be floats, as the image proc"),
        (torch.zeros(2, 3, 64, 64), torch.ones(2, 32, 32), r"pixel_mask is \(2, 32, 32\) .*must be \(2, 64, 64\)"),
    ],
)
def test_pixels_and_masks_of_another_shape_or_kind_are_refused(pixels, mask, message):
    with pytest.raises(ValueError, match=message):
        tokens_of()(pixels, mask)


def test_pixels_are_taken_in_the_precision_of_the_weights():
    pixels = torch.randn(1, 3, 64, 64)
    for dtype in (torch.bfloat16, torch.float64):
        tokens = tokens_of().to(dtype)
        assert torch.equal(tokens(pixels).features, tokens(pixels.to(dtype)).features)


def test_the_grid_is_told_without_a_trace():
    model = tiny_detr().train().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for height, width in ((64, 96), (65, 97), (16, 250)):
        rows, columns = model.feature_grid(height, width)
        with torch.no_grad():
            assert rows * columns == model.eval().tokens(torch.zeros(1, 3, height, width)).features.shape[1]
        model.train()
    assert all(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
