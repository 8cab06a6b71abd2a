"""Masked image modelling hides patches at any size; the backbone gives feature maps, to other models too."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitMatteConfig,
    VitMatteForImageMatting,
)

from hf_attn import AttnViTBackbone, AttnViTConfig, AttnViTForMaskedImageModeling, AttnViTModel
from tests.tiny import randomise, tiny_vit

SIZES = [(32, 32), (48, 48), (16, 40)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)

FAMILIES = {
    "original": {},
    "dinov2": {"num_register_tokens": 4, "layer_scale_init": 0.5},
    "rectangular": {"image_size": (32, 16), "patch_size": (8, 4)},
    "big_vision": {"class_token": False, "pooling": "mean", "position_embedding": "sinusoids"},
}
families = pytest.mark.parametrize("family", FAMILIES)


def pictures(height: int = 32, width: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def tiny_mim(**fields) -> AttnViTForMaskedImageModeling:
    return randomise(AttnViTForMaskedImageModeling(tiny_vit(**fields).config)).eval()


def tiny_backbone(**fields) -> AttnViTBackbone:
    return randomise(AttnViTBackbone(tiny_vit(**{"num_hidden_layers": 4, **fields}).config)).eval()


# --- masked image modelling ------------------------------------------------------------------------------------------


@families
@sizes
def test_the_loss_counts_hidden_pixels_only(family, size):
    model = tiny_mim(**FAMILIES[family])
    rows, columns = model.model.patch_grid(*size)
    patch_height, patch_width = model.config.patch_shape
    masked = torch.rand(2, rows, columns) < 0.5
    masked[:, -1, 0] = True
    outputs = model(pictures(*size), bool_masked_pos=masked.flatten(1))
    assert outputs.reconstruction.shape == (2, 3, *size)
    errors = (outputs.reconstruction - pictures(*size)).abs()
    hidden = [
        errors[b, :, r * patch_height : (r + 1) * patch_height, c * patch_width : (c + 1) * patch_width]
        for b, r, c in masked.nonzero().tolist()
    ]
    assert_close(outputs.loss, torch.stack(hidden).mean())


@sizes
def test_what_lies_under_the_mask_is_not_seen(size):
    model = tiny_mim()
    rows, columns = model.model.patch_grid(*size)
    masked = torch.zeros(2, rows, columns, dtype=torch.bool)
    masked[:, 1, 2] = True
    other = pictures(*size)
    other[:, :, 8:16, 16:24] += 1.0
    expected = model(pictures(*size), bool_masked_pos=masked.flatten(1)).reconstruction
    assert torch.equal(model(other, bool_masked_pos=masked.flatten(1)).reconstruction, expected)
    seen = model(other, bool_masked_pos=torch.zeros_like(masked).flatten(1)).reconstruction
    assert not torch.allclose(seen, expected, atol=1e-3)


def test_a_reconstructed_patch_lies_where_it_was():
    model = tiny_mim(position_embedding="none", num_hidden_layers=1)
    picture = pictures(24, 40, batch=1)
    turned = picture.unflatten(2, (3, 8)).flip(2).flatten(2, 3)
    expected = model(picture).reconstruction.unflatten(2, (3, 8)).flip(2).flatten(2, 3)
    assert_close(model(turned).reconstruction, expected, rtol=1e-5, atol=1e-5)


def test_without_a_mask_there_is_no_loss_and_with_an_empty_one_it_is_zero():
    model = tiny_mim()
    assert model(pictures()).loss is None
    loss = model(pictures(), bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masks_of_zeros_and_ones_mean_the_same(dtype):
    masked = torch.tensor([[1, 0, 0, 1] * 4] * 2)
    expected = tiny_mim()(pictures(), bool_masked_pos=masked.bool())
    found = tiny_mim()(pictures(), bool_masked_pos=masked.to(dtype))
    assert_close(found.loss, expected.loss)
    assert_close(found.reconstruction, expected.reconstruction)


def test_a_mask_of_another_size_is_named():
    with pytest.raises(
        ValueError, match=r"bool_masked_pos is \(2, 16\), but must be .*\(2, 24\).* 4 rows and 6 columns"
    ):
        tiny_mim()(pictures(32, 48), bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool))


def test_a_model_without_mask_token_says_so():
    with pytest.raises(ValueError, match="mask_token=True"):
        tiny_vit().model(pictures(), bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool))


def test_masked_image_modelling_trains():
    model = tiny_mim().train()
    masked = torch.rand(2, 16) < 0.6
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        losses.append(model(pictures(), bool_masked_pos=masked).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_masked_image_modelling_in_another_precision(dtype):
    masked = torch.tensor([[True, False] * 8] * 2)
    expected = tiny_mim()(pictures(), bool_masked_pos=masked).loss
    outputs = tiny_mim().to(dtype)(pictures().to(dtype), bool_masked_pos=masked)
    assert outputs.reconstruction.dtype == dtype
    assert outputs.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert_close(outputs.loss.float(), expected, rtol=0.02, atol=0.01)


def test_patches_that_are_left_out_cannot_be_reconstructed():
    model = tiny_mim(patch_dropout=0.5).train()
    masked = torch.tensor([[True, False] * 8] * 2)
    with pytest.raises(ValueError, match=r"patch_dropout 0\.5"):
        model(pictures(), bool_masked_pos=masked)


# --- the backbone ----------------------------------------------------------------------------------------------------


@families
@sizes
@torch.no_grad()
def test_feature_maps_are_hidden_states_as_pictures(family, size):
    backbone = tiny_backbone(**FAMILIES[family], out_indices=[0, 2, 4])
    outputs = backbone(pictures(*size), output_hidden_states=True)
    rows, columns = size[0] // backbone.config.patch_shape[0], size[1] // backbone.config.patch_shape[1]
    assert len(outputs.feature_maps) == 3
    for index, found in zip((0, 2, 4), outputs.feature_maps, strict=True):
        assert found.shape == (2, 16, rows, columns)
        tokens = backbone.final_norm(outputs.hidden_states[index])[:, backbone.config.num_prefix_tokens :]
        assert_close(found[:, :, 1, 2], tokens[:, 1 * columns + 2])
        assert_close(found.flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_feature_maps_without_the_norm_are_the_hidden_states_themselves():
    backbone = tiny_backbone(apply_layernorm=False, out_indices=[1, 4])
    outputs = backbone(pictures(), output_hidden_states=True)
    for index, found in zip((1, 4), outputs.feature_maps, strict=True):
        assert torch.equal(found.flatten(2).transpose(1, 2), outputs.hidden_states[index][:, 1:])


@pytest.mark.parametrize(("out_indices", "calls"), [([0], 0), ([1], 1), ([0, 2], 2), ([1, 4], 4), ([-1], 4)], ids=str)
@torch.no_grad()
def test_layers_after_the_last_one_chosen_do_not_run(out_indices, calls):
    backbone = tiny_backbone(out_indices=out_indices)
    ran = []
    for number, layer in enumerate(backbone.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    maps = backbone(pictures()).feature_maps
    assert ran == list(range(calls))
    assert len(maps) == len(out_indices)


@torch.no_grad()
def test_the_features_are_the_classifier_s_own():
    model = tiny_vit(num_hidden_layers=4)
    backbone = AttnViTBackbone(model.config).eval()
    backbone.load_state_dict(model.model.state_dict())
    expected = model.model(pictures(16, 40)).last_hidden_state[:, 1:]
    assert_close(backbone(pictures(16, 40)).feature_maps[-1].flatten(2).transpose(1, 2), expected)


def test_a_backbone_tells_its_channels_and_stages():
    backbone = tiny_backbone(out_features=["stage2", "stage4"])
    assert backbone.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert backbone.channels == [16, 16]
    backbone.out_features = ["stem", "stage1"]
    assert backbone.out_indices == [0, 1]
    assert len(backbone(pictures()).feature_maps) == 2


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_a_backbone_shows_attention_and_hidden_states_where_asked(kernel):
    backbone = tiny_backbone(out_indices=[1, 3])
    backbone.set_attn_implementation(kernel)
    plain, shown = backbone(pictures()), backbone(pictures(), output_attentions=True, output_hidden_states=True)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    assert (len(shown.hidden_states), len(shown.attentions)) == (4, 3)
    maps, states = backbone(pictures(), output_hidden_states=True, return_dict=False)
    assert torch.equal(maps[1], plain.feature_maps[1])
    assert len(states) == 4


def test_a_backbone_compiles_for_any_size_and_trains():
    torch.compiler.reset()
    backbone = tiny_backbone(num_hidden_layers=1)
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True, backend="eager")
    for size in ((32, 48), (48, 40)):
        assert_close(compiled(pictures(*size)).feature_maps, backbone(pictures(*size)).feature_maps)
    backbone.train()(pictures()).feature_maps[0].square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_patches_that_are_left_out_have_no_place_in_a_feature_map():
    with pytest.raises(ValueError, match=r"patch_dropout 0\.5"):
        tiny_backbone(patch_dropout=0.5).train()(pictures())


@torch.no_grad()
def test_a_saved_backbone_loads_from_its_directory(tmp_path):
    backbone = tiny_backbone(out_indices=[1, 3])
    backbone.save_pretrained(tmp_path)
    loaded = AttnViTBackbone.from_pretrained(tmp_path)
    assert loaded.out_features == ["stage1", "stage3"]
    assert_close(loaded(pictures()).feature_maps, backbone(pictures()).feature_maps, rtol=0, atol=0)
    chosen = AttnViTBackbone.from_pretrained(tmp_path, out_indices=[2])
    assert chosen.out_features == ["stage2"]


# --- inside another model --------------------------------------------------------------------------------------------


def backbone_config() -> AttnViTConfig:
    return tiny_vit(num_hidden_layers=4, out_features=["stage1", "stage2", "stage3", "stage4"]).config


@sizes
def test_a_segmentation_model_stands_on_it(tmp_path, size):
    config = UperNetConfig(
        backbone_config=backbone_config(), hidden_size=8, auxiliary_channels=8, pool_scales=[1, 2], num_labels=4
    )
    model = UperNetForSemanticSegmentation(config).eval()
    assert type(model.backbone) is AttnViTBackbone
    labels = torch.randint(4, (2, *size))
    outputs = model(pictures(*size), labels=labels)
    assert outputs.logits.shape == (2, 4, *size)
    outputs.loss.backward()
    assert all(p.grad is not None for name, p in model.backbone.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded.backbone.config) is AttnViTConfig
    with torch.no_grad():
        assert_close(loaded(pictures(*size)).logits, model(pictures(*size)).logits)


@torch.no_grad()
def test_a_matting_model_stands_on_it():
    backbone = tiny_vit(num_channels=4, patch_size=16, image_size=64, out_features=["stage2"]).config
    config = VitMatteConfig(backbone_config=backbone, hidden_size=16, fusion_hidden_sizes=[8, 8, 8, 8])
    model = VitMatteForImageMatting(config).eval()
    picture = torch.randn(1, 4, 64, 96)
    assert model(picture).alphas.shape == (1, 1, 64, 96)


@torch.no_grad()
def test_a_language_model_looks_through_it():
    words = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    config = LlavaConfig(vision_config=tiny_vit().config, text_config=words, image_token_index=59, image_seq_length=16)
    model = LlavaForConditionalGeneration(config).eval()
    assert type(model.model.vision_tower) is AttnViTModel
    sentence = torch.tensor([[1, *[59] * 16, 5, 6]])
    first = model(input_ids=sentence, pixel_values=pictures(batch=1)).logits
    other = model(input_ids=sentence, pixel_values=-pictures(batch=1)).logits
    assert first.shape == (1, 19, 60)
    assert not torch.allclose(other[:, -1], first[:, -1], atol=1e-5)


def test_the_automatic_class_builds_it():
    assert type(AutoBackbone.from_config(backbone_config())) is AttnViTBackbone
