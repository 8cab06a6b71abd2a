"""DETR checkpoints of transformers become ours with the same numbers, whatever their names, and ours become theirs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrModel,
    ResNetConfig,
)

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.interchange import detr_transformers
from hf_attn.interchange.detr_transformers import export_transformers, table
from hf_attn.interchange.exporting import export_model
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.modeling_detr import AttnDetrModel
from tests.foreign_detr import FULL, assert_same_outputs, foreign_detr, pictures, randomised

NAMES = {0: "N/A", 1: "person", 2: "N/A"}
BASIC = ResNetConfig(
    layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], out_features=["stage3", "stage4"]
)
BOTTLENECK = ResNetConfig(
    layer_type="bottleneck", depths=[1, 2, 1, 1], hidden_sizes=[64, 64, 128, 128], out_features=["stage4"]
)
SMALL = {"backbone_config": BASIC, "use_timm_backbone": False}


def rewrite(directory: Path, change) -> Path:
    """With other tensors: those that `change` makes of what is there."""
    weights = change(load_file(directory / "model.safetensors"))
    save_file({name: weight.clone() for name, weight in weights.items()}, directory / "model.safetensors")
    return directory


def renamed(old: str, new: str):
    return lambda weights: {name.replace(old, new): weight for name, weight in weights.items()}


def with_counters(weights):
    counted = [name for name in weights if name.endswith("running_mean")]
    return weights | {name.replace("running_mean", "num_batches_tracked"): torch.tensor(3) for name in counted}


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(detr_transformers.logger, "warning", lines.append)
    return lines


@pytest.fixture(scope="module")
def resnet18():
    """Theirs on timm's resnet18, of three classes."""
    return foreign_detr(id2label=NAMES)


@pytest.fixture(scope="module")
def small():
    """Theirs on a small ResNet of transformers."""
    return foreign_detr(**SMALL, id2label=NAMES)


@pytest.fixture
def saved(small, tmp_path) -> Path:
    small.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        (lambda weights: weights, "sdpa"),
        (with_counters, "eager"),
        (renamed("conv_encoder.model.", "conv_encoder.model._backbone."), "sdpa"),
    ],
    ids=["as written today", "with counters", "in the wrapper of timm"],
)
def test_names_on_disk(resnet18, change, kernel, tmp_path):
    resnet18.save_pretrained(tmp_path)
    assert "model.backbone.conv_encoder.model.layer1.0.conv1.weight" in load_file(tmp_path / "model.safetensors")
    ours, report = AttnDetrForObjectDetection.from_pretrained(
        rewrite(tmp_path, change), attn_implementation=kernel, output_loading_info=True
    )
    assert not any(report.values())
    assert_same_outputs(ours, resnet18)
    assert (ours.config.backbone, ours.config.backbone_feature, ours.config.id2label) == ("resnet18", -1, NAMES)


def test_names_in_memory(resnet18, tmp_path):
    resnet18.config.save_pretrained(tmp_path)
    save_file(resnet18.state_dict(), tmp_path / "model.safetensors")
    assert_same_outputs(AttnDetrForObjectDetection.from_pretrained(tmp_path), resnet18)


def test_dilated_backbone(tmp_path):
    theirs = foreign_detr(dilation=True)
    theirs.save_pretrained(tmp_path)
    ours = AttnDetrForObjectDetection.from_pretrained(tmp_path, attn_implementation="eager")
    assert ours.config.backbone_kwargs == {"output_stride": 16}
    assert ours.model.feature_grid(64, 96) == (4, 6)
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize("body", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_resnet_of_transformers_becomes_timms(body, in_memory, tmp_path):
    theirs = foreign_detr(backbone_config=body, use_timm_backbone=False)
    theirs.save_pretrained(tmp_path)
    if in_memory:
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert_same_outputs(AttnDetrForObjectDetection.from_pretrained(tmp_path), theirs)


def test_of_a_panoptic_checkpoint_the_detector_is_loaded(warnings, tmp_path):
    theirs = foreign_detr(DetrForSegmentation, d_model=64, encoder_attention_heads=8, decoder_attention_heads=8)
    theirs.save_pretrained(tmp_path)
    ours = AttnDetrForObjectDetection.from_pretrained(tmp_path)
    assert len(warnings) == 1
    assert "its mask head (mask_head and bbox_attention, 32 tensors) is left out" in warnings[0]
    assert_same_outputs(ours, theirs.detr)


def test_a_base_model_has_no_heads_and_that_for_boxes_begins_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hf_attn.interchange.loading.logger.propagate", True)
    theirs = foreign_detr(DetrModel, **SMALL)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AttnDetrModel.from_pretrained(tmp_path / "theirs")
    assert "decoder.box_head.layers.0.bias" in caplog.text and "begin anew" in caplog.text
    made = import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert (made.model_class, made.classes) == ("AttnDetrModel", None)
    with torch.no_grad():
        for pixels in pictures():
            expected = theirs(pixels).last_hidden_state
            for model in (ours, AttnDetrModel.from_pretrained(tmp_path / "ours")):
                assert_close(model(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"lacks 8 tensors: class_head\.bias, class_head\.weight, model\.decoder"):
        AttnDetrForObjectDetection.from_pretrained(tmp_path / "theirs")


def test_of_a_head_for_boxes_nothing_may_be_missing(saved):
    rewrite(saved, lambda weights: {n: w for n, w in weights.items() if n != "bbox_predictor.layers.2.bias"})
    with pytest.raises(ValueError, match=r"lacks 1 tensor: decoder\.box_head\.layers\.2\.bias"):
        AttnDetrModel.from_pretrained(saved)


def test_a_detector_without_its_class_head_is_a_base_model(saved, small):
    ours = AttnDetrModel.from_pretrained(saved)
    with torch.no_grad():
        for pixels in pictures():
            found, expected = ours(pixels), small(pixels)
            assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
            assert_close(found.intermediate_boxes[-1], expected.pred_boxes, rtol=0, atol=1e-6)


def test_other_labels_begin_the_class_head_anew_and_nothing_else(saved, small):
    message = r"class_head\.bias \(4,\) instead of \(6,\).* give num_labels=\.\.\. and ignore_mismatched_sizes=True"
    with pytest.raises(ValueError, match=message):
        AttnDetrForObjectDetection.from_pretrained(saved, num_labels=5)
    ours = AttnDetrForObjectDetection.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)
    assert ours.class_head.weight.shape == (6, 32)
    assert ours.config.num_labels == 5
    with torch.no_grad():
        for pixels in pictures():
            assert_close(ours(pixels).pred_boxes, small(pixels).pred_boxes, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {n: w for n, w in weights.items() if n != "model.encoder.layers.1.fc1.bias"},
            r"lacks 1 tensor: model\.encoder\.layers\.1\.feed_forward\.up_proj\.bias",
        ),
        (
            lambda weights: weights | {"model.encoder.layers.0.gate.weight": torch.ones(1)},
            r"1 tensor that no such model has: model\.encoder\.layers\.0\.gate\.weight",
        ),
        (
            lambda weights: {
                n: w for n, w in weights.items() if not n.endswith("0.shortcut.normalization.running_var")
            },
            r"lacks 4 tensors: model\.tokens\.backbone\.body\.layer1\.0\.downsample\.1\.running_var, ",
        ),
        (
            lambda weights: weights | {"model.query_position_embeddings.weight": torch.ones(8, 32)},
            r"model\.query_embedding\.weight \(8, 32\) instead of \(9, 32\)",
        ),
    ],
    ids=["missing", "unexpected", "a buffer missing", "another size"],
)
def test_tensors_that_are_not_those_of_the_model_are_named(saved, change, message):
    with pytest.raises(ValueError, match=rf"small \(a DETR of transformers\): .*{message}"):
        AttnDetrForObjectDetection.from_pretrained(rewrite(saved, change))


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_names_and_shapes_of_full_size(backbone):
    with torch.device("meta"):
        theirs = DetrForObjectDetection(DetrConfig(use_timm_backbone=True, backbone=backbone, dilation=True))
        config = AttnDetrConfig(**detr_transformers.configure(theirs.config.to_dict()))
        ours = AttnDetrForObjectDetection(config)
    stored = theirs.state_dict()
    found = {name: weight.shape for name, weight in table(config, stored).take(stored).items()}
    expected = {name: weight.shape for name, weight in ours.state_dict().items()}
    assert found == {name: shape for name, shape in expected.items() if "num_batches_tracked" not in name}


@pytest.mark.slow
def test_resnet_50_in_full_size_there_and_back(tmp_path):
    theirs = foreign_detr(**FULL, num_labels=91)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AttnDetrForObjectDetection.from_pretrained(tmp_path / "theirs")
    assert_same_outputs(ours, theirs)
    again = DetrForObjectDetection.from_pretrained(export_transformers(ours, tmp_path / "again"))
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in again.state_dict().items())


def test_a_damaged_file_of_an_image_processor_is_not_left_out(saved, tmp_path):
    (saved / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"has a preprocessor_config\.json, but what it belongs to cannot be read"):
        import_checkpoint(saved, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- writing ---------------------------------------------------------------------------------------------------------


def our_detr(**fields) -> AttnDetrForObjectDetection:
    """On timm's resnet18, small but for that, in eval mode."""
    shape = {"backbone": "resnet18", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "num_queries": 7}
    return randomised(AttnDetrForObjectDetection(AttnDetrConfig(**{**shape, **layers, **fields}))).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": NAMES, "box_cost": 4.0, "eos_coefficient": 1, "frozen_batch_norm": True},
        {"backbone_kwargs": {"output_stride": 16}},
        {"backbone_feature": -2},
    ],
    ids=["plain", "DC5", "another feature map"],
)
def test_exported_it_is_the_same_in_transformers(fields, tmp_path):
    ours = our_detr(**fields)
    directory = export_transformers(ours, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    theirs, report = DetrForObjectDetection.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values())
    assert_same_outputs(ours, theirs)
    assert (theirs.config.id2label, theirs.config.activation_dropout) == (ours.config.id2label, 0.1)
    again = AttnDetrForObjectDetection.from_pretrained(directory)
    assert_same_outputs(again, theirs)
    assert again.config.box_cost == ours.config.box_cost


def test_a_directory_is_imported_and_exported_with_what_prepares_its_pictures(saved, tmp_path):
    made = import_checkpoint(saved, tmp_path / "ours")
    assert (made.title, made.classes, made.beside) == ("a DETR of transformers", 3, [])
    with pytest.raises(ValueError, match="backbone_kwargs has channels, layers, for which transformers' DETR has no"):
        export_model(made.output_dir, "transformers", tmp_path / "out")
    ours, processor = our_detr(), AttnDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    ours.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    directory = export_model(tmp_path / "mine", "transformers", tmp_path / "theirs")
    assert_same_outputs(ours, AutoModelForObjectDetection.from_pretrained(directory))
    assert dict(AutoImageProcessor.from_pretrained(directory).size) == processor.size
    assert import_checkpoint(directory, tmp_path / "again").beside == ["AttnDetrImageProcessor"]
    assert AttnDetrImageProcessor.from_pretrained(tmp_path / "again").to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"conditional_attention": True},
            "conditional_attention is True, for which transformers' DETR has no setting",
        ),
        ({"denoising_groups": 2}, "denoising_groups is 2, .* there it is always 0; save it by save_pretrained"),
        ({"class_loss": "focal"}, "class_loss is 'focal', .* always 'cross_entropy'"),
        ({"position_temperature": 20}, "position_temperature is 20, "),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, "),
        ({"backbone_kwargs": {"channels": [8, 8, 8, 8]}}, "backbone_kwargs has channels, for which"),
        ({"backbone": "mobilenetv3_small_050"}, "the backbone mobilenetv3_small_050 has BatchNormAct2d"),
    ],
)
def test_what_transformers_cannot_be_is_named_and_nothing_written(fields, message, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(ValueError, match=message):
        export_transformers(our_detr(**fields), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]
