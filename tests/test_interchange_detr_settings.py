"""What config.json and preprocessor_config.json of transformers say of a DETR is said by ours, and the reverse."""

import json
from pathlib import Path

import matplotlib.cbook
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ObjectDetectionPipeline, pipeline
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.interchange import detr_settings
from hf_attn.interchange.detr_settings import configure, their_config, their_processor
from tests.foreign_detr import assert_same_outputs, foreign_detr
from tests.tiny import tiny_detr

NAMES = {0: "N/A", 1: "person", 2: "N/A"}
OLD_CONFIG = {  # facebook/detr-resnet-50, but for what is small here
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["DetrForObjectDetection"],
    "attention_dropout": 0.0,
    "auxiliary_loss": False,
    "backbone": "resnet18",
    "bbox_cost": 5,
    "bbox_loss_coefficient": 4,
    "class_cost": 1,
    "classifier_dropout": 0.0,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 3,
    "dice_loss_coefficient": 1,
    "dilation": False,
    "dropout": 0.2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 2,
    "eos_coefficient": 0.3,
    "giou_cost": 2,
    "giou_loss_coefficient": 3,
    "id2label": {"0": "N/A", "1": "person", "2": "N/A"},
    "init_std": 0.02,
    "init_xavier_std": 1.0,
    "is_encoder_decoder": True,
    "label2id": {"N/A": 2, "person": 1},
    "mask_loss_coefficient": 1,
    "max_position_embeddings": 1024,
    "model_type": "detr",
    "num_channels": 3,
    "num_hidden_layers": 2,
    "num_queries": 9,
    "position_embedding_type": "sine",
    "scale_embedding": False,
    "torch_dtype": "float32",
    "transformers_version": "4.6.0.dev0",
}


def test_a_config_of_old_is_understood_and_trains_as_the_authors_do(tmp_path):
    theirs = foreign_detr(id2label=NAMES)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
    ours = AttnDetrForObjectDetection.from_pretrained(tmp_path)
    expected = AttnDetrConfig(
        backbone="resnet18",
        backbone_kwargs={},
        frozen_batch_norm=True,
        frozen_stride=4,
        hidden_size=32,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        intermediate_size=48,
        num_queries=9,
        dropout=0.2,
        attention_dropout=0.0,
        eos_coefficient=0.3,
        box_loss_coefficient=4,
        giou_loss_coefficient=3,
        id2label=NAMES,
        label2id={"N/A": 2, "person": 1},
    )
    left_out = ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype")
    found, wanted = (
        {name: value for name, value in config.to_dict().items() if name not in left_out}
        for config in (ours.config, expected)
    )
    assert found == wanted
    assert_same_outputs(ours, theirs)
    frozen = {name.split("body.")[1] for name, weight in ours.train().named_parameters() if not weight.requires_grad}
    assert {"conv1.weight", "layer1.1.conv2.weight", "layer4.1.bn2.weight"} <= frozen
    assert not any(name.startswith("layer2") and "conv" in name for name in frozen)


OLD_FIELDS = {"dilation": False, "use_timm_backbone": True}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"backbone": "resnet101"}, {"backbone": "resnet101", "backbone_kwargs": {}, "num_channels": 3}),
        ({"dilation": True}, {"backbone": "resnet50", "backbone_kwargs": {"output_stride": 16}, "num_channels": 3}),
        (
            {"backbone": "resnet34", "backbone_kwargs": {"in_chans": 1, "output_stride": 8, "out_indices": [2, 3]}},
            {
                "backbone": "resnet34",
                "backbone_kwargs": {"output_stride": 8},
                "num_channels": 1,
                "backbone_feature": 3,
            },
        ),
        (
            {"backbone": "convnext_atto", "backbone_kwargs": {"out_indices": [0, 3]}},
            {"backbone": "convnext_atto", "backbone_kwargs": {}, "num_channels": 3, "backbone_feature": 3},
        ),
        ({"use_timm_backbone": False}, {"backbone": "resnet50", "backbone_kwargs": {}, "num_channels": 3}),
    ],
    ids=["R101", "DC5", "backbone_kwargs", "no ResNet", "no timm"],
)
def test_backbones_of_old_configs(fields, expected):
    configured = configure({**OLD_FIELDS, **fields})
    assert {name: value for name, value in configured.items() if "backbone" in name or name == "num_channels"} == (
        expected
    )
    assert (configured["frozen_batch_norm"], configured["attention_dropout"]) == (True, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_ffn_dim": 1024}, "encoder_ffn_dim is 1024 and decoder_ffn_dim 2048: here they are one number"),
        ({"decoder_attention_heads": 4}, "encoder_attention_heads is 8 and decoder_attention_heads 4"),
        ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned': positions are sines here"),
        ({"auxiliary_loss": True}, "auxiliary_loss is true, .* another network .* set auxiliary_loss to false"),
        ({"activation_dropout": 0.3}, "activation_dropout is 0.3 and dropout 0.1: here they are one"),
        ({"dilation": True, "backbone_config": {"model_type": "resnet"}}, "dilation is true, .* 'resnet' without"),
        ({"backbone_config": {"model_type": "swin"}}, "backbone_config is of type 'swin': the backbones here are"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "names no network of timm, but None"),
        ({"use_timm_backbone": False, "backbone": "microsoft/resnet-50"}, "'microsoft/resnet-50' is a repository"),
        ({"backbone_kwargs": {"drop_rate": 0.1}}, "backbone_kwargs has drop_rate; what is understood here is"),
        ({"backbone": "mobilenetv3_small_050"}, "mobilenetv3_small_050 has BatchNormAct2d with an epsilon of 1e-05"),
    ],
)
def test_what_this_model_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        configure(settings)


# --- pictures --------------------------------------------------------------------------------------------------------

OLD_PROCESSOR = {  # facebook/detr-resnet-50, but for what is small here
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 133,
    "size": 80,
}
PROCESSORS = {
    "old": OLD_PROCESSOR,
    "panoptic": {**OLD_PROCESSOR, "format": "coco_panoptic"},
    "new": DetrImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 133}).to_dict(),
}


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """512 pixels wide and 600 high."""
    return Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")


def write(directory: Path, name: str, settings: dict) -> Path:
    (directory / name).write_text(json.dumps(settings, default=str))
    return directory


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_photograph_is_prepared_as_by_transformers(kind, photograph, tmp_path):
    write(tmp_path, "preprocessor_config.json", PROCESSORS[kind])
    found = AttnDetrImageProcessor.from_pretrained(tmp_path)(photograph, return_tensors="pt")
    expected = DetrImageProcessorPil.from_pretrained(tmp_path)(photograph, return_tensors="pt")
    assert found.pixel_values.shape == (1, 3, 93, 80)
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert torch.equal(found.pixel_mask, expected.pixel_mask)


def test_a_pipeline_finds_the_same_boxes(photograph, tmp_path):
    theirs = foreign_detr(id2label=NAMES)
    theirs.save_pretrained(tmp_path)
    write(tmp_path, "preprocessor_config.json", OLD_PROCESSOR)
    processors = AttnDetrImageProcessor.from_pretrained(tmp_path), DetrImageProcessorPil.from_pretrained(tmp_path)
    ours = AttnDetrForObjectDetection.from_pretrained(tmp_path)
    found = pipeline("object-detection", model=ours, image_processor=processors[0])(photograph, threshold=0.0)
    expected = ObjectDetectionPipeline(model=theirs, image_processor=processors[1])(photograph, threshold=0.0)
    assert len(found) == 9
    for one, other in zip(found, expected, strict=True):
        assert (one["label"], one["box"]) == (other["label"], other["box"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


# --- the other way round ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 80, "longest_edge": 100}, "background": [255, 255, 255]},
        {"size": {"height": 64, "width": 48}, "resample": "bicubic", "image_mean": [0.1, 0.2, 0.3]},
        {"size": {"max_height": 50, "max_width": 70}, "pad_size": {"height": 80, "width": 90}},
        {"size": None, "do_normalize": False, "do_pad": False},
    ],
    ids=str,
)
def test_a_processor_of_ours_in_transformers(settings, photograph, tmp_path):
    ours = AttnDetrImageProcessor(**settings)
    write(tmp_path, "preprocessor_config.json", their_processor(ours))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(theirs) is DetrImageProcessorPil
    found, expected = (processor(photograph, return_tensors="pt") for processor in (theirs, ours))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    again = AttnDetrImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(photograph, return_tensors="pt").pixel_values, expected.pixel_values)


def test_a_processor_of_theirs_stays_what_it_is():
    """It may lie beside a model of ours."""
    size = {"shortest_edge": 80, "longest_edge": 133}
    assert their_processor(DetrImageProcessorPil(size=size)) == their_processor(AttnDetrImageProcessor(size=size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"background": [0, 0, 0]}, r"background is \[0, 0, 0\]: transformers lays white"),
        ({"num_channels": 1}, "num_channels is not 3: transformers' DetrImageProcessor can do nothing else"),
        ({"do_rescale": False}, "do_rescale is not True"),
        ({"size": {"longest_edge": 80}}, r"size is \{'longest_edge': 80\}: .* wants both edges"),
    ],
)
def test_what_their_processor_cannot_do_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        their_processor(AttnDetrImageProcessor(**settings))


def test_costs_that_are_no_whole_numbers_are_left_out_and_said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(detr_settings.logger, "warning", lines.append)
    body = {"backbone": "resnet18", "backbone_kwargs": None, "backbone_feature": -1}
    settings = their_config(tiny_detr(**body, class_cost=1.5, giou_cost=3.0, class_loss_coefficient=2))
    assert (settings["class_cost"], settings["giou_cost"]) == (2, 3)
    assert "transformers' DETR has no class_cost 1.5, class_loss_coefficient 2, but 1 for classes" in lines[0]
