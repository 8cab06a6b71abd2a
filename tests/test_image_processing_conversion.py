"""timm's evaluation transforms and transformers' processors for ViT and DETR are reproduced bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.testing import assert_close
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import ConditionalDetrImageProcessorPil
from transformers.models.deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.detr.image_processing_detr import DetrImageProcessor
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.image_processing_vit import AttnViTImageProcessor

SIZES = [(300, 200), (199, 301), (97, 98), (224, 224), (31, 255), (248, 248), (500, 333)]


def picture(height: int, width: int) -> Image.Image:
    generator = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def exactly(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("input_size", "crop_pct", "interpolation"),
    [
        ((3, 224, 224), 0.9, "bicubic"),  # AugReg
        ((3, 224, 224), 0.875, "bilinear"),  # timm's default
        ((3, 96, 96), 0.95, "bicubic"),  # an odd number of pixels to crop
        ((3, 64, 64), 1.0, "nearest"),
        ((3, 48, 96), 0.9, "bicubic"),  # not square
        ((3, 97, 65), 0.87, "bilinear"),
    ],
)
def test_timm_s_evaluation_transform(crop_mode, input_size, crop_pct, interpolation):
    config = resolve_data_config(
        {"input_size": input_size, "crop_pct": crop_pct, "interpolation": interpolation, "crop_mode": crop_mode}
    )
    transform = create_transform(**config)
    processor = AttnViTImageProcessor.from_timm(config)
    for size in SIZES:
        exactly(processor(picture(*size), return_tensors="pt").pixel_values[0], transform(picture(*size)))


def test_lanczos_is_that_of_timm_too():
    config = resolve_data_config({"input_size": (3, 64, 64), "interpolation": "lanczos"})
    found = AttnViTImageProcessor.from_timm(config)(picture(97, 130), return_tensors="pt").pixel_values[0]
    exactly(found, create_transform(**config)(picture(97, 130)))


def test_timm_s_defaults_are_taken_where_a_configuration_is_silent():
    config = resolve_data_config({}, pretrained_cfg={"architecture": "vit_tiny_patch16_224"})
    found = AttnViTImageProcessor.from_timm({"architecture": "vit_tiny_patch16_224", "crop_pct": None})
    assert found.to_dict() == AttnViTImageProcessor.from_timm(config).to_dict()


def test_grey_models_of_timm():
    config = resolve_data_config({"input_size": (1, 28, 28), "mean": (0.2,), "std": (0.3,), "crop_pct": 1.0})
    grey = picture(33, 40).convert("L")
    found = AttnViTImageProcessor.from_timm(config)(grey, return_tensors="pt").pixel_values[0]
    exactly(found, create_transform(**config)(grey))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"crop_mode": "corner"}, "crop_mode 'corner' is unknown; timm has center, squash, border"),
        ({"crop_border_pixels": 4}, "crop_border_pixels 4"),
        ({"interpolation": "random"}, "resample 'random' is unknown"),
    ],
)
def test_what_cannot_be_reproduced_of_timm_is_refused(config, named):
    with pytest.raises(ValueError, match=named):
        AttnViTImageProcessor.from_timm(config)


@pytest.mark.parametrize(
    "theirs",
    [
        ViTImageProcessorPil(),
        ViTImageProcessorPil(size={"height": 48, "width": 97}, resample=3, image_mean=[0.1, 0.2, 0.3]),
        ViTImageProcessorPil(do_normalize=False, do_convert_rgb=True),
        DeiTImageProcessorPil(),
        DeiTImageProcessorPil(size={"height": 235, "width": 235}),  # an odd number of pixels to crop
        DeiTImageProcessorPil(size={"height": 231, "width": 253}, crop_size={"height": 210, "width": 230}),
        BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),  # DINOv2
        BitImageProcessorPil(size={"shortest_edge": 63}, crop_size={"height": 62, "width": 62}),
    ],
)
def test_transformers_processors(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    for ours in (
        AttnViTImageProcessor.from_transformers(theirs.to_dict()),
        AttnViTImageProcessor.from_pretrained(tmp_path),
    ):
        for size in SIZES:
            expected = theirs(picture(*size), return_tensors="pt").pixel_values
            exactly(ours(picture(*size), return_tensors="pt").pixel_values, expected)


def test_transparency_as_their_do_convert_rgb_treats_it():
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    theirs = ViTImageProcessorPil(do_convert_rgb=True)
    ours = AttnViTImageProcessor.from_transformers(theirs.to_dict())
    transparent = Image.fromarray(array, "RGBA")
    exactly(ours(transparent, return_tensors="pt").pixel_values, theirs(transparent, return_tensors="pt").pixel_values)


def test_files_of_version_4_with_one_number_for_a_square():
    settings = {"feature_extractor_type": "ViTFeatureExtractor", "size": 192}
    for ours in (AttnViTImageProcessor.from_transformers(settings), AttnViTImageProcessor.from_dict(settings)):
        assert (ours.size, ours.resize_mode) == ({"height": 192, "width": 192}, "exact")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_rescale": False}, "values must be rescaled by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "values must be rescaled by 1/255"),
        ({"size": {"shortest_edge": 224}}, "without a centre crop gives pictures that differ in size"),
        ({"size": {"longest_edge": 224}}, "cannot be expressed here; it must have height and width, or shortest_edge"),
        ({"size": 224, "image_processor_type": "CLIPImageProcessor"}, "may be a square or a shortest edge"),
        ({"do_center_crop": True, "crop_size": 8, "do_resize": False}, "do_center_crop without do_resize"),
        (
            {"size": {"height": 8, "width": 8}, "do_center_crop": True, "crop_size": {"height": 9, "width": 9}},
            r"no crop_pct makes \(9, 9\) out of \(8, 8\)",
        ),
        (
            {"do_reduce_labels": True, "image_processor_type": "BeitImageProcessor"},
            "BeitImageProcessor's do_reduce_la",
        ),
    ],
)
def test_what_cannot_be_reproduced_of_transformers_is_refused(settings, named):
    settings = {"size": {"height": 224, "width": 224}, **settings}
    with pytest.raises(ValueError, match=named):
        AttnViTImageProcessor.from_transformers(settings)


DETR_SMALL = {"shortest_edge": 48, "longest_edge": 80}


@pytest.mark.parametrize(
    "theirs",
    [
        DetrImageProcessorPil(size=DETR_SMALL),
        DetrImageProcessorPil(size=DETR_SMALL, resample=3, image_mean=[0.1, 0.2, 0.3], do_convert_rgb=True),
        DetrImageProcessorPil(size=DETR_SMALL, pad_size={"height": 90, "width": 100}, do_normalize=False),
        DetrImageProcessorPil(size={"height": 40, "width": 50}, do_pad=False),
        DetrImageProcessorPil(size={"max_height": 64, "max_width": 64}, pad_size={"height": 64, "width": 64}),
        ConditionalDetrImageProcessorPil(size=DETR_SMALL),
    ],
)
def test_transformers_processors_for_detr(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    pictures = [picture(*size) for size in SIZES]
    expected = theirs(pictures, return_tensors="pt")
    for ours in (
        AttnDetrImageProcessor.from_transformers(theirs.to_dict()),
        AttnDetrImageProcessor.from_pretrained(tmp_path),
    ):
        found = ours(pictures, return_tensors="pt")
        assert set(found) == set(expected)
        for name, value in expected.items():
            exactly(found[name], value)


@pytest.mark.parametrize(
    "settings",
    [
        DetrImageProcessor().to_dict(),
        DeformableDetrImageProcessor().to_dict(),
        {"image_processor_type": "DetrImageProcessorFast", "size": {"shortest_edge": 800, "longest_edge": 1333}},
        {"image_processor_type": "DetrImageProcessor", "pad_and_return_pixel_mask": True, "crop_size": None},
        {"image_processor_type": "DetrImageProcessor", "format": "coco_panoptic"},  # pictures are prepared as ever
        # facebook/detr-resnet-50 as it was first, and later
        {"feature_extractor_type": "DetrFeatureExtractor", "format": "coco_detection", "max_size": 1333, "size": 800},
        {
            "feature_extractor_type": "DetrFeatureExtractor",
            "image_processor_type": "DetrImageProcessor",
            "size": {"shortest_edge": 800},
            "max_size": 1333,
        },
    ],
)
def test_files_of_every_version_of_detr_mean_the_authors_settings(settings):
    assert AttnDetrImageProcessor.from_dict(settings).to_dict() == AttnDetrImageProcessor().to_dict()


def test_the_longest_edge_of_files_of_version_4():
    settings = {"feature_extractor_type": "DetrFeatureExtractor", "size": 512, "max_size": 600}
    assert AttnDetrImageProcessor.from_dict(settings).size == {"shortest_edge": 512, "longest_edge": 600}
    del settings["max_size"]
    assert AttnDetrImageProcessor.from_dict(settings).size == {"shortest_edge": 512, "longest_edge": 1333}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_rescale": False}, "values must be rescaled by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "values must be rescaled by 1/255"),
        (
            {"image_processor_type": "YolosImageProcessor"},
            "YolosImageProcessor may resize by another rule than DETR's",
        ),
        ({"size": {"shortest_edge": 8, "height": 8}}, "must be"),
        ({"do_reduce_labels": True}, "DetrImageProcessor's do_reduce_labels cannot be expressed here"),
    ],
)
def test_what_cannot_be_reproduced_of_detr_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        AttnDetrImageProcessor.from_transformers({"image_processor_type": "DetrImageProcessor", **settings})
