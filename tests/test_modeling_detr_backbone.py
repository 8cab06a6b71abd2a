"""DETR's backbone: timm's weights come on request and survive, never for a checkpoint; what is frozen stays so."""

import json

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModel, AutoModelForObjectDetection

from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection, AttnDetrModel
from tests.tiny import DETR_LABELS, randomise, tiny_detr

PICTURES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SHAPE = {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 50, "num_labels": 3}


# --- timm's weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[bool]:
    """timm gives known weights where pretrained ones are asked for; the list says of each whether they were."""
    make, asked = timm.create_model, []

    def known_weights(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        body = make(name, pretrained=False, **kwargs)
        if pretrained:
            with torch.no_grad():
                for tensor in body.state_dict().values():
                    tensor.fill_(1 if tensor.dtype == torch.long else 0.125)
        return body

    monkeypatch.setattr(timm, "create_model", known_weights)
    return asked


def new_detr(**fields) -> AttnDetrForObjectDetection:
    return AttnDetrForObjectDetection(AttnDetrConfig(backbone="resnet10t", **SHAPE, **fields))


def test_pretrained_weights_come_on_request_and_survive_post_init(asked):
    new_detr()
    assert asked == [False]
    model = new_detr(use_pretrained_backbone=True)
    assert asked == [False, True]
    for name, tensor in model.model.backbone.body.state_dict().items():
        assert (tensor == (1 if tensor.dtype == torch.long else 0.125)).all(), name
    assert abs(model.model.query_embedding.weight.std() - 1) < 0.1  # the others begin as ever


@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_a_checkpoint_needs_no_download(asked, tmp_path, device_map):
    model = randomise(new_detr(use_pretrained_backbone=True)).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_pretrained_backbone"]
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path, device_map=device_map)
    body = AutoModel.from_pretrained(tmp_path)
    assert asked == [True, False, False]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(body.backbone.body.conv1[0].weight, model.model.backbone.body.conv1[0].weight)


# --- what is frozen --------------------------------------------------------------------------------------------------


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_the_stem_the_first_stage_and_batch_norm_of_a_pretrained_resnet_50_are_frozen(asked):
    model = AttnDetrForObjectDetection(AttnDetrConfig(use_pretrained_backbone=True, num_labels=2)).train()
    body = model.model.backbone.body
    names = frozen(body)
    convolutions = {name for name in names if body.get_parameter(name).ndim == 4}
    assert sum(body.get_parameter(name).numel() for name in convolutions) == 222_400  # the authors'
    assert {name.split(".")[0] for name in convolutions} == {"conv1", "layer1"}
    norms = {name for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert names == convolutions | {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    assert not any(body.get_submodule(name).training for name in norms)
    assert not frozen(model) - {f"model.tokens.backbone.body.{name}" for name in names}


@pytest.mark.parametrize("again", ["train", "load", "eval and train"])
def test_frozen_it_stays_as_it_was(asked, again, tmp_path):
    model = tiny_detr(use_pretrained_backbone=True)
    if again == "load":
        model.save_pretrained(tmp_path)
        model = AttnDetrForObjectDetection.from_pretrained(tmp_path)
    elif again == "eval and train":
        model.train().eval()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(PICTURES, labels=DETR_LABELS[:2]).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    body = "model.tokens.backbone.body"
    buffers = {name for name, _ in model.named_buffers()}
    begins = "model.decoder.layers.0.self_attention.v_proj.weight"  # its values are targets of zero
    assert changed == before.keys() - frozen(model) - buffers - {begins}
    assert f"{body}.layer2.0.conv1.weight" in changed and f"{body}.layer1.0.conv1.weight" not in changed
    assert not any("bn" in name for name in changed)


def test_it_can_be_thawed(asked):
    model = tiny_detr(use_pretrained_backbone=True, frozen_stride=0, frozen_batch_norm=False).train()
    assert not frozen(model)
    backbone = tiny_detr(use_pretrained_backbone=True).model.backbone
    backbone.frozen_stride, backbone.frozen_batch_norm = 0, False
    backbone.requires_grad_(True).train()
    assert not frozen(backbone)
    assert all(module.training for module in backbone.modules())


def test_batch_norm_lives_where_the_backbone_is_not_pretrained():
    model = tiny_detr().train()
    norms = [module for module in model.model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.training for norm in norms) and not frozen(model)
    before = norms[0].running_mean.clone()
    model(PICTURES)
    assert not torch.equal(norms[0].running_mean, before)


@pytest.mark.parametrize(
    ("backbone", "stride", "last", "next_one"),
    [
        ("resnet18", 2, "bn1.bias", "layer1.0.conv1.weight"),
        ("resnet18", 4, "layer1.1.bn2.bias", "layer2.0.conv1.weight"),
        ("resnet18", 32, "layer4.1.bn2.bias", None),
        ("convnext_atto", 4, "stages_0.blocks.1.mlp.fc2.bias", "stages_1.downsample.0.weight"),
        ("efficientnet_lite0", 4, "blocks.1.1.bn3.bias", "blocks.2.0.conv_pw.weight"),
        ("swin_s3_tiny_224", 4, "layers_0.blocks.1.mlp.fc2.bias", "layers_1.downsample.norm.weight"),
        ("hiera_tiny_224", 4, "model.blocks.0.mlp.fc2.bias", "model.blocks.1.norm1.weight"),
        ("vit_tiny_patch16_224", 8, None, "model.cls_token"),  # of stride 16 from the first
    ],
)
def test_frozen_is_what_comes_before_the_stride_is_passed(backbone, stride, last, next_one):
    with torch.device("meta"):
        body = AttnDetrModel(AttnDetrConfig(backbone=backbone, frozen_stride=stride, encoder_layers=1)).backbone.body
    names = [name for name, _ in body.named_parameters()]
    learning = [name for name, parameter in body.named_parameters() if parameter.requires_grad]
    number = len(names) - len(learning)
    assert learning == names[number:]
    assert (names[number - 1] if number else None) == last
    assert (learning[0] if learning else None) == next_one


def test_a_stride_that_no_part_of_the_network_ends_at_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"frozen_stride 4 is no place in .*; set it to 0 and"):
        AttnDetrModel(AttnDetrConfig(backbone="hrnet_w18_small", frozen_stride=4))
