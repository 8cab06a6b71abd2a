"""The default is ViT-B/16 of the paper; a configuration survives saving; what cannot be built is refused."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoConfig

from hf_attn import AttnViTBackbone, AttnViTConfig, AttnViTForImageClassification, AttnViTForMaskedImageModeling

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def parameters_by_formula(config: AttnViTConfig) -> int:
    """Counted from sections 3.1 and 4.1 of the paper, not from any module; for models with learned positions."""
    d, inner = config.hidden_size, config.intermediate_size
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    patches = (height // patch_height) * (width // patch_width)
    embedding = config.num_channels * patch_height * patch_width * d + d
    positions = (patches + int(config.position_on_class_token and config.class_token)) * d
    tokens = (int(config.class_token) + config.num_register_tokens) * d
    attention = 4 * (d * d + d)
    feed_forward = (d * inner + inner) + (inner * d + d)
    norm = 2 * d
    layer = attention + feed_forward + 2 * norm
    layer += 2 * d * (config.layer_scale_init is not None)
    layer += 2 * 2 * d // config.num_attention_heads * config.query_key_norm
    pooling = (d + attention + norm + feed_forward) * (config.pooling == "attention")
    read = {"class_token_and_mean": 2, "prefix_tokens": 1 + config.num_register_tokens}.get(config.pooling, 1)
    classifier = read * d * config.num_labels + config.num_labels
    return embedding + positions + tokens + config.num_hidden_layers * layer + norm + pooling + classifier


def count(config: AttnViTConfig) -> int:
    with torch.device("meta"):
        return AttnViTForImageClassification(config).num_parameters()


def test_the_default_is_vit_base_of_the_paper():
    config = AttnViTConfig(num_labels=1000)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (12, 768, 3072)
    assert (config.num_attention_heads, config.image_shape, config.patch_shape) == (12, (224, 224), (16, 16))
    assert (config.activation_function, config.layer_norm_eps) == ("gelu", 1e-6)
    assert (config.pooling, config.class_token, config.position_embedding) == ("class_token", True, "learned")
    assert count(config) == parameters_by_formula(config) == 86_567_656


def test_nothing_that_the_paper_has_not_is_on_by_default():
    config = AttnViTConfig()
    off = ("num_register_tokens", "drop_path_rate", "patch_dropout", "dropout", "attention_dropout", "label_smoothing")
    assert [getattr(config, name) for name in off] == [0] * len(off)
    assert (config.layer_scale_init, config.query_key_norm, config.pad_to_patch) == (None, False, False)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_base_patch16_224", {}),
        ("vit_small_patch16_224", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}),
        ("vit_base_patch32_384", {"image_size": 384, "patch_size": 32}),
        ("deit3_base_patch16_224", {"layer_scale_init": 1e-6, "position_on_class_token": False}),
        (
            "vit_base_patch14_reg4_dinov2",
            {
                "layer_scale_init": 1e-5,
                "num_register_tokens": 4,
                "position_on_class_token": False,
                "image_size": 518,
                "patch_size": 14,
            },
        ),
        ("vit_base_patch16_siglip_256", {"image_size": 256, "class_token": False, "pooling": "attention"}),
        (
            "vit_little_patch16_reg1_gap_256",
            {
                "hidden_size": 320,
                "num_hidden_layers": 14,
                "num_attention_heads": 5,
                "intermediate_size": 1792,
                "image_size": 256,
                "class_token": False,
                "num_register_tokens": 1,
                "layer_scale_init": 1e-5,
                "pooling": "mean",
                "final_norm": "after_pooling",
            },
        ),
    ],
)
def test_a_released_shape_has_as_many_parameters_as_in_timm(name, fields):
    config = AttnViTConfig(num_labels=1000, **fields)
    with torch.device("meta"):
        theirs: VisionTransformer = create_model(name, num_classes=1000)
    assert count(config) == parameters_by_formula(config) == sum(p.numel() for p in theirs.parameters())


def test_transformers_name_for_the_activation_works_too():
    config = AttnViTConfig(hidden_act="gelu_pytorch_tanh")
    assert (config.activation_function, config.hidden_act) == ("gelu_pytorch_tanh", "gelu_pytorch_tanh")


def test_256_by_256_pixels_are_64_patches_of_32_by_32():
    config = AttnViTConfig(**{**TINY, "image_size": 256, "patch_size": 32})
    model = AttnViTForImageClassification(config)
    outputs = model(torch.zeros(1, 3, 256, 256), output_hidden_states=True)
    assert config.grid_shape == (8, 8)
    assert model.model.embeddings.patch_embedding.weight[0].numel() == 3 * 32 * 32
    assert model.model.embeddings.positions.shape == (8, 8, 16)
    assert outputs.hidden_states[-1].shape == (1, 1 + 64, 16)


@pytest.mark.parametrize(
    "fields",
    [
        {"query_key_norm": True},
        {"pooling": "attention", "num_register_tokens": 3, "class_token": False},
        {"pooling": "class_token_and_mean", "num_register_tokens": 3},
        {"pooling": "prefix_tokens", "num_register_tokens": 3},
        {"position_on_class_token": False, "layer_scale_init": 0.1, "image_size": (16, 40), "patch_size": [8, 4]},
    ],
)
def test_the_formula_counts_small_models_too(fields):
    config = AttnViTConfig(**{**TINY, **fields})
    assert AttnViTForImageClassification(config).num_parameters() == parameters_by_formula(config)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"image_size": 384, "patch_size": 32, "num_labels": 7},
        {"image_size": [32, 64], "patch_size": [16, 8]},
        {"pooling": "mean", "class_token": False, "position_embedding": "sinusoids", "drop_path_rate": 0},
        {"pooling": "attention", "num_register_tokens": 4, "layer_scale_init": 1e-5, "final_norm": "after_pooling"},
        {"out_indices": [2, 11], "problem_type": "multi_label_classification", "label_smoothing": 0.1},
        {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}},
    ],
)
def test_saved_and_loaded_it_is_the_same(tmp_path, overrides):
    config = AttnViTConfig(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AttnViTConfig
    assert loaded.to_json_string() == config.to_json_string()
    for name, value in overrides.items():
        assert getattr(loaded, name) == value
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "attn_vit"


def test_a_pair_of_sizes_survives_saving(tmp_path):
    AttnViTConfig(image_size=(32, 64), patch_size=(16, 8)).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.image_shape, loaded.patch_shape, loaded.grid_shape) == ((32, 64), (16, 8), (2, 8))


def test_tokens_before_the_patches_are_counted():
    assert AttnViTConfig().num_prefix_tokens == 1
    assert AttnViTConfig(num_register_tokens=4).num_prefix_tokens == 5
    assert AttnViTConfig(num_register_tokens=4, class_token=False, pooling="mean").num_prefix_tokens == 4


def test_every_layer_is_a_stage_of_the_backbone():
    config = AttnViTConfig(num_hidden_layers=3)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert (config.out_features, config.out_indices) == (["stage3"], [3])
    config = AttnViTConfig(num_hidden_layers=3, out_features=["stem", "stage2"])
    assert config.out_indices == [0, 2]
    assert AttnViTConfig(num_hidden_layers=3, out_indices=(1, -1)).out_features == ["stage1", "stage3"]
    with pytest.raises(ValueError, match="stage4"):
        AttnViTConfig(num_hidden_layers=3, out_features=["stage4"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 770}, "hidden_size 770 is not a multiple of num_attention_heads 12"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not at least 1"),
        ({"hidden_size": -768}, "hidden_size -768 is not at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 is not at least 1"),
        ({"intermediate_size": 0}, "intermediate_size 0 is not at least 1"),
        ({"num_channels": 0}, "num_channels 0 is not at least 1"),
        ({"num_register_tokens": -1}, "num_register_tokens -1 is below 0"),
        ({"image_size": 0}, "image_size 0 is not at least 1"),
        ({"patch_size": [16, 0]}, r"patch_size \[16, 0\] is not at least 1"),
        ({"image_size": 30, "patch_size": 8}, "image_size 30x30 .*is not a multiple of patch_size 8x8"),
        ({"image_size": (32, 44), "patch_size": (16, 8)}, "image_size 32x44 .*is not a multiple of patch_size 16x8"),
        ({"image_size": [32, 32, 32]}, r"image_size \[32, 32, 32\] is neither a side nor \(height, width\)"),
        ({"activation_function": "glue"}, "activation_function 'glue' is unknown; use one of .*'gelu'"),
        ({"pooling": "cls"}, "pooling 'cls' is unknown; use one of class_token, mean, attention"),
        ({"position_embedding": "rope"}, "position_embedding 'rope' is unknown; use one of learned, sinusoids, none"),
        ({"final_norm": "none"}, "final_norm 'none' is unknown; use one of before_pooling, after_pooling"),
        ({"class_token": False}, "pooling 'class_token' needs class_token=True; pool by 'mean' or 'attention'"),
        ({"class_token": False, "pooling": "prefix_tokens"}, "pooling 'prefix_tokens' needs class_token=True"),
        (
            {"pooling": "class_token_and_mean", "final_norm": "after_pooling"},
            "final_norm 'after_pooling' does not fit pooling 'class_token_and_mean'; use 'before_pooling'",
        ),
        ({"position_embedding": "sinusoids", "hidden_size": 18, "num_attention_heads": 2}, "hidden_size 18 .*of 4"),
        ({"dropout": 1}, r"dropout 1 is not in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout -0.1 is not in \[0, 1\)"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate 1.5 is not in \[0, 1\)"),
        ({"patch_dropout": 1.0}, r"patch_dropout 1.0 is not in \[0, 1\)"),
        ({"label_smoothing": math.nan}, r"label_smoothing nan is not in \[0, 1\)"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps 0.0 is not above 0"),
        ({"problem_type": "multilabel"}, "multilabel"),
    ],
)
def test_what_cannot_be_built_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        AttnViTConfig(**overrides)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "768"),
        ("hidden_size", 768.0),
        ("dropout", "0.1"),
        ("pooling", None),
        ("image_size", 224.0),
        ("patch_size", "16"),
        ("class_token", "no"),
        ("layer_scale_init", "1e-5"),
    ],
)
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        AttnViTConfig(**{field: value})
    config = AttnViTConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        setattr(config, field, value)


def test_a_padded_size_counts_the_last_patch():
    config = AttnViTConfig(**{**TINY, "image_size": (30, 41), "pad_to_patch": True})
    assert config.grid_shape == (4, 6)
    assert AttnViTForImageClassification(config).model.embeddings.positions.shape[:2] == (4, 6)


@pytest.mark.parametrize(
    "model_class", [AttnViTForImageClassification, AttnViTForMaskedImageModeling, AttnViTBackbone]
)
def test_sizes_of_either_kind_build_every_model(model_class):
    for size in (8, [8, 8], (8, 8)):
        config = AttnViTConfig(**{**TINY, "patch_size": size, "image_size": (32, 16)})
        assert model_class(config)(torch.zeros(1, 3, 32, 16)) is not None
