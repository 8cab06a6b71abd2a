"""The authors' .pth files: their names, written down here once more from transformers' model, give its numbers."""

import pickle
import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.interchange import detr_original, detr_transformers
from hf_attn.interchange.detr_original import COCO, DETR_DC5_ORIGINAL, DETR_ORIGINAL
from hf_attn.interchange.files import open_file, read_file
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.interchange.loading import as_model
from tests.foreign_detr import assert_same_outputs, foreign_detr

HEADS = {"num_attention_heads": 4}  # which no tensor tells; the authors have 8
NAMES = (  # transformers', the authors'; models/detr.py, transformer.py and backbone.py
    (r"^(detr\.)?model\.backbone\.model\.", r"\1backbone.0.body."),
    (r"^(detr\.)?model\.input_projection", r"\1input_proj"),
    (r"^(detr\.)?model\.query_position_embeddings", r"\1query_embed"),
    (r"^(detr\.)?class_labels_classifier", r"\1class_embed"),
    (r"^(detr\.)?bbox_predictor", r"\1bbox_embed"),
    (r"^(detr\.)?model\.decoder\.layernorm", r"\1transformer.decoder.norm"),
    (r"^(detr\.)?model\.(encoder|decoder)\.", r"\1transformer.\2."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.mlp\.fc", ".linear"),
)


def official(theirs: nn.Module) -> dict[str, torch.Tensor]:
    """A model of transformers under the authors' names."""
    found = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.clone()
    for query in [name for name in found if "transformer." in name and ".q_proj." in name]:
        start, part = query.split(".q_proj.")
        three = [found.pop(f"{start}.{one}_proj.{part}") for one in "qkv"]
        found[f"{start}.in_proj_{part}"] = torch.cat(three)
    return found


def load(path: Path, model_class=AttnDetrForObjectDetection, format=DETR_ORIGINAL, **kwargs):
    return as_model(open_file(path, format), model_class, **kwargs)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (detr_original, detr_transformers):
        monkeypatch.setattr(module.logger, "warning", lines.append)
    return lines


@pytest.fixture(scope="module")
def theirs() -> DetrForObjectDetection:
    return foreign_detr(num_labels=91)


@pytest.mark.parametrize("wrapped", [False, True])
def test_numbers_are_those_of_transformers(theirs, wrapped, warnings, tmp_path):
    tensors = official(theirs)
    torch.save({"model": tensors} if wrapped else tensors, tmp_path / "detr-r18.pth")
    ours = load(tmp_path / "detr-r18.pth", **HEADS)
    assert_same_outputs(ours, theirs)
    assert ours.config.id2label == dict(enumerate(COCO))
    assert (ours.config.backbone, ours.config.frozen_batch_norm, ours.config.frozen_stride) == ("resnet18", True, 4)
    assert "if it is DC5, give --format detr-dc5-original, or backbone_kwargs={'output_stride': 16}" in warnings[0]


def test_attention_is_that_of_torch_with_the_same_tensors(theirs, tmp_path):
    """The authors' layers are torch.nn.MultiheadAttention."""
    tensors = official(theirs)
    torch.save(tensors, tmp_path / "detr.pth")
    ours = load(tmp_path / "detr.pth", **HEADS)
    query, key = torch.randn(1, 9, 32), torch.randn(1, 12, 32)
    start = "transformer.decoder.layers.1.multihead_attn."
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    attention.load_state_dict({name.removeprefix(start): w for name, w in tensors.items() if name.startswith(start)})
    with torch.no_grad():
        found, _ = ours.model.decoder.layers[1].cross_attention(query, key, key)
        assert_close(found, attention(query, key, key, need_weights=False)[0], rtol=0, atol=1e-6)


def test_a_dilated_backbone_is_asked_for(warnings, tmp_path):
    theirs = foreign_detr(dilation=True)
    torch.save(official(theirs), tmp_path / "detr-dc5.pth")
    ours = load(tmp_path / "detr-dc5.pth", format=DETR_DC5_ORIGINAL, **HEADS)
    assert warnings == []
    assert_same_outputs(ours, theirs)
    again = load(tmp_path / "detr-dc5.pth", backbone_kwargs={"output_stride": 16}, **HEADS)
    assert again.config.to_dict() == ours.config.to_dict()


def test_a_file_is_imported_with_what_prepares_its_pictures(theirs, tmp_path):
    torch.save({"model": official(theirs)}, tmp_path / "detr.pth")
    made = import_checkpoint(tmp_path / "detr.pth", tmp_path / "ours", **HEADS)
    assert (made.title, made.classes, made.beside) == ("a DETR of its authors", 91, ["AttnDetrImageProcessor"])
    assert_same_outputs(AttnDetrForObjectDetection.from_pretrained(tmp_path / "ours"), theirs)
    assert AttnDetrImageProcessor.from_pretrained(tmp_path / "ours").size["shortest_edge"] == 800


@pytest.mark.parametrize("dilation", [False, True])
def test_a_checkpoint_of_the_training_script(dilation, warnings, tmp_path):
    """main.py writes the optimizer and its own arguments, too, which tell what the tensors do not."""
    theirs = foreign_detr(dilation=dilation)
    args = {"nheads": 4, "dilation": dilation, "dropout": 0.2, "aux_loss": False, "set_cost_bbox": 3.0, "lr": 1e-4}
    rest = {"optimizer": {"state": {0: {"step": 1}}}, "lr_scheduler": {"last_epoch": 3}, "epoch": 3}
    torch.save({"model": official(theirs), **rest, "args": Namespace(**args)}, tmp_path / "c.pth")
    ours = load(tmp_path / "c.pth")
    assert_same_outputs(ours, theirs)
    config = ours.config
    assert (config.dropout, config.attention_dropout, config.auxiliary_loss, config.box_cost) == (0.2, 0.2, False, 3)
    assert warnings == []


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": print}, 2))
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_file(tmp_path / "code.pth")


def test_of_a_panoptic_model_the_detector_is_loaded(warnings, tmp_path):
    theirs = foreign_detr(
        DetrForSegmentation, d_model=64, encoder_attention_heads=8, decoder_attention_heads=8, num_labels=250
    )
    torch.save({"model": official(theirs)}, tmp_path / "detr-r18-panoptic.pth")
    ours = load(tmp_path / "detr-r18-panoptic.pth")
    assert "its mask head (mask_head and bbox_attention, 32 tensors) is left out" in warnings[1]
    assert [ours.config.id2label[number] for number in (1, 90, 91, 249)] == [
        "person",
        "toothbrush",
        "LABEL_91",
        "LABEL_249",
    ]
    assert_same_outputs(ours, theirs.detr)


def test_other_labels_begin_the_class_head_anew(theirs, tmp_path):
    torch.save(official(theirs), tmp_path / "detr.pth")
    ours = load(tmp_path / "detr.pth", num_labels=3, ignore_mismatched_sizes=True, **HEADS)
    assert ours.class_head.weight.shape == (4, 32)
    assert_close(ours.model.decoder.box_head.layers[2].bias, theirs.bbox_predictor.layers[2].bias)


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("resnet34", DetrForObjectDetection), ("resnet50", DetrForSegmentation), ("resnet101", DetrForObjectDetection)],
)
def test_names_and_shapes_of_full_size(backbone, kind, warnings):
    with torch.device("meta"):
        tensors = official(kind(DetrConfig(use_timm_backbone=True, backbone=backbone, num_labels=20)))
        fields = DETR_ORIGINAL.configure(tensors)
        ours = AttnDetrForObjectDetection(AttnDetrConfig(**fields))
    assert (fields["backbone"], fields["backbone_kwargs"], fields["num_labels"]) == (backbone, {}, 20)
    found = {name: w.shape for name, w in DETR_ORIGINAL.table(ours.config, tensors).take(tensors).items()}
    expected = {name: weight.shape for name, weight in ours.state_dict().items()}
    assert found == {name: shape for name, shape in expected.items() if "num_batches_tracked" not in name}


def test_names_of_classes_are_cocos():
    """torchvision has them, too, with a name for what is in the background."""
    _, *theirs = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert (COCO[0], COCO[1:]) == ("N/A", theirs)


def test_other_files_are_none():
    tensors = {
        "transformer.decoder.layers.0.sa_qcontent_proj.weight": torch.ones(1),
        "query_embed.weight": torch.ones(1),
    }
    assert not DETR_ORIGINAL.recognise(tensors)
    assert not DETR_ORIGINAL.recognise(timm.create_model("resnet18").state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer.encoder.norm.weight", r"it has norms before attention \(--pre_norm\)"),
        ("backbone.1.row_embed.weight", r"it has learned positions \(--position_embedding learned\)"),
    ],
)
def test_other_networks_are_refused(theirs, name, message):
    with pytest.raises(ValueError, match=message):
        DETR_ORIGINAL.configure(official(theirs) | {name: torch.ones(1)})


def test_tensors_that_are_not_those_of_the_model_are_named(theirs, tmp_path):
    tensors = official(theirs)
    del tensors["transformer.decoder.layers.2.self_attn.in_proj_bias"]
    torch.save(tensors, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match=r"lacks 3 tensors: model\.decoder\.layers\.2\.self_attention\.k_proj\.bias"):
        load(tmp_path / "detr.pth", **HEADS)
    torch.save(tensors | {"transformer.gate": torch.ones(1)}, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match=r"1 tensor that no such model has: transformer\.gate"):
        load(tmp_path / "detr.pth", **HEADS)
