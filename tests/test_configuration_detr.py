"""The default is DETR-R50 of the paper; a configuration survives saving; what cannot be built is refused."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from timm import create_model
from transformers import AutoConfig, DetrConfig, DetrForObjectDetection

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection, AttnViTConfig

VIT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}


def parameters_by_formula(config: AttnDetrConfig, channels: int) -> int:
    """Of all but the backbone, whose last map has so many channels: counted from section A.4 and figure 10."""
    d, inner = config.hidden_size, config.intermediate_size
    attention = 4 * (d * d + d)
    feed_forward = (d * inner + inner) + (inner * d + d)
    norm = 2 * d
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    projection = channels * d + d
    classes = d * config.num_class_logits + config.num_class_logits
    boxes = 2 * (d * d + d) + (d * 4 + 4)
    return (
        projection
        + config.encoder_layers * encoder_layer
        + config.decoder_layers * decoder_layer
        + norm
        + config.num_queries * d
        + classes
        + boxes
    )


def test_the_default_is_detr_r50_of_the_paper():
    config = AttnDetrConfig(num_labels=91)
    assert (config.backbone, config.hidden_size, config.num_attention_heads) == ("resnet50", 256, 8)
    assert (config.encoder_layers, config.decoder_layers, config.intermediate_size) == (6, 6, 2048)
    assert (config.num_queries, config.activation_function, config.dropout) == (100, "relu", 0.1)
    assert config.attention_dropout == 0.1  # the authors' nn.MultiheadAttention(d, heads, dropout=dropout)
    assert (config.class_cost, config.box_cost, config.giou_cost, config.eos_coefficient) == (1, 5, 2, 0.1)
    assert (config.box_loss_coefficient, config.giou_loss_coefficient, config.auxiliary_loss) == (5, 2, True)


def test_nothing_that_the_paper_has_not_is_on_by_default():
    config = AttnDetrConfig()
    assert (config.conditional_attention, config.denoising_groups, config.class_loss) == (False, 0, "cross_entropy")
    assert (config.position_temperature, config.backbone_feature, config.backbone_kwargs) == (10000, -1, None)


def test_it_has_as_many_parameters_as_the_paper_says_and_transformers_model_has():
    config = AttnDetrConfig(num_labels=91)
    with torch.device("meta"):
        ours = AttnDetrForObjectDetection(config)
        theirs = DetrForObjectDetection(DetrConfig(num_labels=91))
        body = create_model("resnet50", features_only=True)
    of_body = sum(parameter.numel() for parameter in body.parameters())
    assert ours.num_parameters() - of_body == parameters_by_formula(config, channels=2048)
    norms = sum(p.numel() for name, p in ours.model.backbone.named_parameters() if p.ndim == 1)
    assert ours.num_parameters() - norms == theirs.num_parameters()  # which has those of batch norm as buffers
    assert ours.num_parameters() // 10**6 == 41  # table 1


def test_the_backbone_is_frozen_as_the_authors_do_where_it_is_pretrained_unless_said_otherwise():
    pretrained, plain = AttnDetrConfig(use_pretrained_backbone=True), AttnDetrConfig()
    assert (pretrained.frozen_batch_norm, pretrained.frozen_stride) == (True, 4)
    assert (plain.frozen_batch_norm, plain.frozen_stride) == (False, 0)
    thawed = AttnDetrConfig(use_pretrained_backbone=True, frozen_batch_norm=False, frozen_stride=0)
    assert (thawed.frozen_batch_norm, thawed.frozen_stride) == (False, 0)


def test_cross_entropy_has_one_logit_more_than_there_are_classes():
    assert AttnDetrConfig(num_labels=91).num_class_logits == 92
    assert AttnDetrConfig(num_labels=91, class_loss="focal").num_class_logits == 91


def test_transformers_names_work_too():
    config = AttnDetrConfig(d_model=128, num_hidden_layers=3)
    assert (config.hidden_size, config.encoder_layers, config.d_model) == (128, 3, 128)
    assert config.decoder_layers == 6


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"backbone": "resnet18", "backbone_kwargs": {"output_stride": 16}, "backbone_feature": -2},
        {"use_pretrained_backbone": True},
        {"use_pretrained_backbone": True, "frozen_batch_norm": False, "frozen_stride": 8},
        {"conditional_attention": True, "denoising_groups": 5, "class_loss": "focal", "focal_alpha": 0.5},
        {"class_cost": 2.5, "box_cost": 4, "eos_coefficient": 1, "dropout": 0, "position_scale": 20},
        {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}},
    ],
)
def test_saved_and_loaded_it_is_the_same(tmp_path, overrides):
    config = AttnDetrConfig(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AttnDetrConfig
    assert loaded.to_json_string() == config.to_json_string()
    assert (loaded.frozen_batch_norm, loaded.frozen_stride) == (config.frozen_batch_norm, config.frozen_stride)
    for name, value in overrides.items():
        assert getattr(loaded, name) == value
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "attn_detr"


def test_a_vit_for_a_backbone_survives_saving(tmp_path):
    config = AttnDetrConfig(backbone_config=AttnViTConfig(**VIT).to_dict())
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert AttnViTConfig(**loaded.backbone_config).to_dict() == AttnViTConfig(**VIT).to_dict()
    assert loaded.to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 250}, "hidden_size 250 is not a multiple of num_attention_heads 8"),
        ({"hidden_size": 18, "num_attention_heads": 2}, "hidden_size 18 is not a multiple of 4: a quarter each"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not at least 1"),
        ({"encoder_layers": 0}, "encoder_layers 0 is not at least 1"),
        ({"decoder_layers": -1}, "decoder_layers -1 is not at least 1"),
        ({"num_queries": 0}, "num_queries 0 is not at least 1"),
        ({"num_channels": 0}, "num_channels 0 is not at least 1"),
        ({"dropout": 1}, r"dropout 1 is not in \[0, 1\)"),
        ({"attention_dropout": math.nan}, r"attention_dropout nan is not in \[0, 1\)"),
        ({"class_cost": -1}, "class_cost -1 is not a number from 0"),
        ({"eos_coefficient": math.nan}, "eos_coefficient nan is not a number from 0"),
        ({"box_loss_coefficient": math.inf}, "box_loss_coefficient inf is not a number from 0"),
        ({"class_cost": 0, "box_cost": 0, "giou_cost": 0}, "class_cost, box_cost and giou_cost are all 0"),
        ({"denoising_groups": -1}, "denoising_groups -1 is not a number from 0"),
        ({"denoising_label_noise": 1.5}, "denoising_label_noise 1.5 is not a share, from 0 to 1"),
        ({"denoising_box_noise": 1.01}, "denoising_box_noise 1.01 is not a share, from 0 to 1"),
        ({"focal_alpha": -0.1}, "focal_alpha -0.1 is not a share, from 0 to 1"),
        ({"frozen_stride": -4}, "frozen_stride -4 is not a number from 0"),
        ({"position_temperature": 1}, "position_temperature 1 is not above 1; the paper's is 10000"),
        ({"position_scale": 0}, "position_scale 0 is not above 0; the authors' is 6.283, a wave over the picture"),
        ({"position_scale": math.inf}, "position_scale inf is not above 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps 0.0 is not above 0"),
        ({"class_loss": "ce"}, "class_loss 'ce' is unknown; use one of cross_entropy, focal"),
        ({"activation_function": "rely"}, "activation_function 'rely' is unknown; use one of .*'relu'"),
        (
            {"backbone_config": {"model_type": "resnet"}},
            "backbone_config is of model_type 'resnet'.*name in `backbone`",
        ),
        ({"backbone_config": {"hidden_size": 16}}, "backbone_config is of model_type None"),
        (
            {"backbone_config": {"model_type": "attn_vit"}, "use_pretrained_backbone": True},
            "use_pretrained_backbone fetches weights of timm; for a ViT",
        ),
        (
            {"backbone_config": {"model_type": "attn_vit"}, "frozen_stride": 4},
            r"frozen_stride 4 is for networks of timm; .* requires_grad_\(False\)",
        ),
        (
            {"backbone_config": {"model_type": "attn_vit", "num_channels": 1}},
            "num_channels is 3, and that of backbone_config 1",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        AttnDetrConfig(**overrides)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "256"),
        ("num_queries", 100.0),
        ("box_cost", "5"),
        ("backbone", None),
        ("backbone_kwargs", "output_stride=16"),
        ("conditional_attention", "yes"),
        ("frozen_stride", "layer1"),
        ("class_loss", None),
    ],
)
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        AttnDetrConfig(**{field: value})
    config = AttnDetrConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        setattr(config, field, value)
