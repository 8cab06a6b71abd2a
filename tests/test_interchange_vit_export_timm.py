"""What timm makes of a model exported for it is what ours is."""

import json

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

from hf_attn import (
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTImageProcessor,
)
from hf_attn.interchange.vit_export_timm import export_timm
from tests.tiny import randomise, tiny_vit
from tests.twins_vit import difference, picture

MODELS = {
    "original": {"id2label": {0: "a", 1: "b", 2: "c"}},
    "a rectangle, grey": {"image_size": [16, 24], "patch_size": [4, 8], "num_channels": 1, "intermediate_size": 37},
    "deit": {"num_register_tokens": 1, "pooling": "prefix_tokens"},
    "deit3": {"layer_scale_init": 0.1, "position_on_class_token": False, "activation_function": "gelu_pytorch_tanh"},
    "dinov2": {"layer_scale_init": 0.1, "num_register_tokens": 2, "query_key_norm": True},
    "big_vision": {"class_token": False, "position_embedding": "sinusoids", "pooling": "mean"},
    "sbb": {"class_token": False, "num_register_tokens": 2, "pooling": "mean", "final_norm": "after_pooling"},
    "map": {"class_token": False, "pooling": "attention", "layer_norm_eps": 1e-5, "activation_function": "quick_gelu"},
    "no positions": {"position_embedding": "none", "activation_function": "silu", "pad_to_patch": True},
}


def read_back(directory) -> torch.nn.Module:
    """Read by timm, which refuses tensors that are missing or too many."""
    return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_same_logits_there_and_back(name, tmp_path):
    ours = tiny_vit(**MODELS[name])
    export_timm(ours, tmp_path / "out")
    x = torch.randn(2, ours.config.num_channels, *ours.config.image_shape, generator=torch.Generator().manual_seed(1))
    assert difference(read_back(tmp_path / "out")(x), ours(x).logits) < 1e-5
    again = AttnViTForImageClassification.from_pretrained(tmp_path / "out")
    assert difference(again(x).logits, ours(x).logits) < 1e-5
    assert again.config.id2label == ours.config.id2label
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["num_classes"] == 3 and "license" not in said["pretrained_cfg"] and "tag" not in said["pretrained_cfg"]


def test_an_encoder_gives_the_same_features(tmp_path):
    ours = tiny_vit().model
    export_timm(ours, tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert difference(read_back(tmp_path)(x), ours(x).pooler_output) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resize_mode": "shortest_edge", "crop_pct": 0.9, "resample": "bicubic", "image_mean": [0.1, 0.2, 0.3]},
        {"resize_mode": "longest_edge", "image_mean": 0.4, "crop_pct": 0.9},
        {"do_normalize": False},
    ],
)
def test_pictures_are_prepared_alike(settings, tmp_path):
    ours = AttnViTImageProcessor(size=32, **settings)
    export_timm(tiny_vit(), tmp_path, ours)
    transform = create_transform(**resolve_model_data_config(read_back(tmp_path)))
    with picture() as flower:
        assert difference(ours(flower, return_tensors="pt").pixel_values[0], transform(flower)) < 1e-5
    again = AttnViTImageProcessor.from_pretrained(tmp_path)
    with picture() as flower:
        assert difference(*(each(flower, return_tensors="pt").pixel_values for each in (ours, again))) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "class_token_and_mean"}, "timm lacks pooling 'class_token_and_mean'"),
        ({"num_register_tokens": 3, "pooling": "prefix_tokens"}, "pooling 'prefix_tokens' but for DeiT's"),
        ({"activation_function": "mish"}, "activation_function 'mish'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12: set 1e-06 or 1e-05 in config.json"),
        ({"image_size": 30, "pad_to_patch": True}, r"an image_size \(30\) that is padded"),
    ],
)
def test_what_timm_lacks_is_named_and_nothing_written(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_timm(tiny_vit(**fields), tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@torch.no_grad()
def test_another_epsilon_would_change_answers_as_the_message_says():
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for std in (0.02, 0.05, 0.1):
        ours = randomise(AttnViTForImageClassification(AttnViTConfig(num_labels=1000)), std=std).eval()
        answers = []
        for epsilon in (1e-12, 1e-6):
            for norm in ours.modules():
                if isinstance(norm, torch.nn.LayerNorm):
                    norm.eps = epsilon
            answers.append(ours(x).logits)
        assert 2e-4 < difference(*answers) < 2e-3


def test_masked_models_and_settings_that_timm_lacks_are_refused(tmp_path, caplog):
    with pytest.raises(ValueError, match="masked image modelling: export the encoder, an AttnViTModel"):
        export_timm(AttnViTForMaskedImageModeling(tiny_vit().config), tmp_path / "out")
    with pytest.raises(ValueError, match="do_resize False"):
        export_timm(tiny_vit(), tmp_path / "out", AttnViTImageProcessor(do_resize=False))
    with pytest.raises(ValueError, match="do_normalize False with resize_mode 'longest_edge'"):
        processor = AttnViTImageProcessor(resize_mode="longest_edge", do_normalize=False)
        export_timm(tiny_vit(), tmp_path / "out", processor)
    with pytest.raises(ValueError, match="do_rescale False"):
        export_timm(tiny_vit(), tmp_path / "out", AttnViTImageProcessor(do_rescale=False))
    assert not any(tmp_path.iterdir())
    processor = AttnViTImageProcessor(size=32, crop_pct=0.5, crop_offset="floor", background=[0, 0, 0])
    export_timm(tiny_vit(antialias_positions=False), tmp_path / "out", processor)
    for said in ("resamples positions in another way", "drops the transparency", "timm crops at the even neighbour"):
        assert said in caplog.text
