"""A ResNet of transformers and the one of timm that takes its place make the same feature map."""

import pytest
import timm
import torch
from torch.testing import assert_close
from transformers import ResNetBackbone, ResNetConfig

from hf_attn.interchange.names import Names
from hf_attn.interchange.resnets import (
    resnet_of_config,
    resnet_of_tensors,
    same_names,
    timm_resnet,
    transformers_names,
)
from tests.foreign_detr import randomised


def timm_body(backbone: str, backbone_kwargs: dict, num_channels: int = 3) -> torch.nn.Module:
    return timm.create_model(
        backbone, features_only=True, out_indices=(-1,), in_chans=num_channels, **backbone_kwargs
    ).eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"layer_type": "bottleneck", "depths": [1, 2, 1, 1], "hidden_sizes": [64, 128, 128, 256]},
            {"backbone": "resnet50", "backbone_kwargs": {"layers": [1, 2, 1, 1], "channels": [16, 32, 32, 64]}},
        ),
        (
            {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
            {"backbone": "resnet18", "backbone_kwargs": {}},
        ),
        (
            {"layer_type": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 24, 32], "num_channels": 1},
            {"backbone": "resnet18", "backbone_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 16, 24, 32]}},
        ),
    ],
    ids=["bottleneck", "resnet18", "basic"],
)
@torch.no_grad()
def test_features_are_those_of_transformers(config, expected):
    theirs = randomised(ResNetBackbone(ResNetConfig(out_features=["stage4"], **config))).eval()
    fields = resnet_of_config(theirs.config.to_dict())
    channels = config.get("num_channels", 3)
    assert fields == {**expected, "num_channels": channels}
    ours = timm_body(**fields)
    ours.load_state_dict(Names(transformers_names("", "")).take(theirs.state_dict()))
    pixels = torch.randn(2, channels, 64, 96)
    expected_map = theirs(pixels).feature_maps[-1]
    assert_close(ours(pixels)[-1], expected_map, rtol=0, atol=1e-5 * expected_map.abs().max().item())
    assert resnet_of_tensors(ours.state_dict()) == fields


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_tensors_tell_which_resnet_they_are(name):
    with torch.device("meta"):
        tensors = timm_body(name, {}).state_dict()
    assert resnet_of_tensors(tensors) == {"backbone": name, "backbone_kwargs": {}, "num_channels": 3}


def test_without_settings_it_is_resnet_50():
    assert resnet_of_config({}) == {"backbone": "resnet50", "backbone_kwargs": {}, "num_channels": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck of backbone_config is True: .* have False"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage of backbone_config is True"),
        ({"hidden_act": "gelu"}, "hidden_act of backbone_config is 'gelu': timm's ResNets have 'relu'"),
        ({"embedding_size": 32}, "embedding_size of backbone_config is 32: timm's ResNets have 64"),
        ({"layer_type": "wide"}, "layer_type of backbone_config is 'wide': timm's ResNets have basic, bottleneck"),
        ({"out_features": ["stage3"]}, "out_features of backbone_config is 'stage3': timm's ResNets have 'stage4'"),
        ({"depths": [3, 4]}, r"a ResNet of 2 stages of \[3, 4\] blocks: those of timm have 4"),
    ],
)
def test_what_timm_does_not_have_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        resnet_of_config(settings)


def test_what_is_no_resnet_is_refused():
    with pytest.raises(ValueError, match=r"the backbone is no ResNet: it lacks conv1\.weight or layer1"):
        resnet_of_tensors({"stem.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="of 3 stages"):
        timm_resnet("basic", [1, 1, 1])


def test_the_rest_of_a_name_stays():
    names = Names(same_names("theirs.", "ours.", ["theirs.layer1.0.bn1.weight", "theirs.x", "other"]))
    assert set(names.take({"theirs.x": torch.ones(1)})) == {"ours.x"}
    assert names.theirs("ours.layer1.0.bn1.weight") == "theirs.layer1.0.bn1.weight"
