"""A released architecture has as many parameters in our words as in timm's, or its feature that we lack is named."""

import json

import pytest
import torch

from hf_attn import AttnViTConfig, AttnViTForImageClassification, AttnViTModel
from hf_attn.interchange.timm_architectures import fields_of, home_model, settings_of

RELEASED = [
    "vit_tiny_patch16_384",
    "vit_base_patch8_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_wee_patch16_reg1_gap_256",
    "vit_medium_patch16_gap_256",  # without biases, of which ours has three a layer
    "vit_so150m_patch16_reg4_map_256",
    "flexivit_small",
]
REFUSED = {
    "vit_base_patch16_clip_224": "pre_norm",
    "vit_giant_patch14_dinov2": "another feed-forward layer, GluMlp",
    "vit_base_patch16_xp_224": "layers of another kind, ParallelScalingBlock",
    "vit_base_r26_s32_224": "another stem, HybridEmbed",
    "vit_dwee_patch16_reg1_gap_256": "another attention, DiffAttention",
    "eva02_tiny_patch14_224": "a network of its own, Eva",
    "test_vit3": "pool_include_prefix=True",
    "test_vit4": "another norm, RmsNorm",
    "resnet10t": "a network of its own, ResNet",
}


def said_of(name: str, **arguments) -> dict:
    """A config.json of timm that names an architecture and nothing else; one or two layers of it are enough."""
    return {"architecture": name, "pretrained_cfg": {}, "model_args": arguments}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_architecture_has_as_many_parameters(name):
    theirs = home_model(said_of(name, depth=2, num_classes=9))
    with torch.device("meta"):
        ours = AttnViTForImageClassification(AttnViTConfig(**fields_of(said_of(name, depth=2, num_classes=9))))
    expected = sum(parameter.numel() for parameter in theirs.parameters())
    if theirs.blocks[0].attn.qkv.bias is None:
        expected += 2 * 3 * theirs.embed_dim
    if theirs.num_reg_tokens and theirs.pos_embed.shape[1] != theirs.patch_embed.num_patches:
        expected -= theirs.num_reg_tokens * theirs.embed_dim  # positions of registers become part of them
    assert ours.num_parameters() == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_named(name, tmp_path):
    small = {} if name == "resnet10t" else {"depth": 1}
    (tmp_path / "config.json").write_text(json.dumps(said_of(name, **small)))
    with pytest.raises(ValueError, match=f"architecture '{name}' has .*{REFUSED[name]}"):
        AttnViTModel.from_pretrained(tmp_path)


def test_what_timm_does_not_know_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(said_of("vit_2030")))
    with pytest.raises(ValueError, match=r"timm .* cannot build architecture 'vit_2030'"):
        AttnViTModel.from_pretrained(tmp_path)


def test_pictures_are_of_the_size_that_the_arguments_say():
    said = {
        **said_of("vit_base_patch16_224", img_size=64, depth=1),
        "pretrained_cfg": {"fixed_input_size": True, "input_size": [3, 224, 224]},
    }
    assert settings_of(said)["size"] == {"height": 64, "width": 64}
