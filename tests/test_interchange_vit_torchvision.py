"""What torchvision's VisionTransformer computes, ours computes of the same weights."""

import pytest
import torch
from torchvision.models import VisionTransformer, ViT_B_16_Weights, ViT_H_14_Weights
from torchvision.models.vision_transformer import ConvStemConfig

from hf_attn import AttnViTConfig, AttnViTForImageClassification, AttnViTImageProcessor
from hf_attn.interchange.vit_torchvision import TORCHVISION_FILE, processor_settings
from tests.tiny import randomise
from tests.twins_vit import difference, picture, pictures

SHAPE = {"image_size": 32, "patch_size": 8, "num_layers": 11, "num_heads": 2, "hidden_dim": 128, "mlp_dim": 72}


def of_torchvision(tensors) -> AttnViTForImageClassification:
    assert TORCHVISION_FILE.recognise(tensors)
    ours = AttnViTForImageClassification(AttnViTConfig(**TORCHVISION_FILE.configure(tensors))).eval()
    ours.load_state_dict(TORCHVISION_FILE.table(ours.config, tensors).take(tensors))
    return ours


def test_weights_give_the_same_logits():
    theirs = randomise(VisionTransformer(**SHAPE, num_classes=5)).eval()
    assert difference(of_torchvision(theirs.state_dict())(pictures()).logits, theirs(pictures())) < 1e-5


def test_names_of_old_are_read():
    theirs = randomise(VisionTransformer(**SHAPE)).eval()
    old = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    ours = of_torchvision(old)
    assert difference(ours(pictures()).logits, theirs(pictures())) < 1e-5
    assert list(ours.config.id2label.values()) == ViT_B_16_Weights.DEFAULT.meta["categories"]


def test_there_and_back_nothing_changes():
    tensors = randomise(VisionTransformer(**SHAPE)).state_dict()
    ours = of_torchvision(tensors)
    given = TORCHVISION_FILE.table(ours.config, tensors).give(ours.state_dict())
    assert given.keys() == tensors.keys() and all(torch.equal(given[name], tensors[name]) for name in tensors)


def test_what_cannot_be_expressed_is_named():
    with pytest.raises(ValueError, match=r"heads\.pre_logits is a layer under the head \(representation_size\)"):
        TORCHVISION_FILE.configure(VisionTransformer(**SHAPE, representation_size=16).state_dict())
    stem = [ConvStemConfig(8, 3, 8)]
    with pytest.raises(ValueError, match="conv_proj is a stem of several convolutions"):
        of_torchvision(VisionTransformer(**SHAPE, conv_stem_configs=stem).state_dict())
    said = TORCHVISION_FILE.configure(VisionTransformer(**{**SHAPE, "hidden_dim": 100}).state_dict())
    assert said["num_attention_heads"] is None
    assert not TORCHVISION_FILE.recognise({"conv_proj.weight": torch.zeros(1)})


@pytest.mark.parametrize("weights", [ViT_B_16_Weights.IMAGENET1K_V1, ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1])
def test_pictures_are_prepared_as_by_torchvision(weights):
    prepare = weights.transforms()
    processor = AttnViTImageProcessor(
        **processor_settings(AttnViTConfig(image_size=prepare.crop_size[0], patch_size=14))
    )
    with picture() as flower:
        assert difference(processor(flower, return_tensors="pt").pixel_values[0], prepare(flower)) < 1e-5
