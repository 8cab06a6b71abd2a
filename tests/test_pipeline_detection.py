"""pipeline("object-detection"): alone as in a batch, whatever the sizes, and without a false alarm in the log."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

from hf_attn import AttnDetrForObjectDetection, AttnDetrImageProcessor
from tests.tiny import tiny_detr

SIZES = ((64, 48), (40, 80), (64, 48), (33, 57), (80, 64), (48, 48), (64, 64), (57, 33))  # width, height


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("detector")
    tiny_detr(id2label={0: "disc", 1: "square", 2: "cross"}).save_pretrained(directory)
    AttnDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def test_automatic_classes_find_model_and_processor(directory):
    assert isinstance(AutoModelForObjectDetection.from_pretrained(directory), AttnDetrForObjectDetection)
    processor = AutoImageProcessor.from_pretrained(directory)
    assert isinstance(processor, AttnDetrImageProcessor) and processor.size["shortest_edge"] == 64


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_a_picture_has_the_same_boxes_alone_and_in_a_batch_of_other_sizes(directory, pictures, batch_size):
    detect = pipeline("object-detection", model=str(directory))
    alone = [detect(picture, threshold=0.3) for picture in pictures]
    together = detect(pictures, threshold=0.3, batch_size=batch_size)
    assert any(alone)
    for one, other in zip(alone, together, strict=True):
        assert [found["label"] for found in one] == [found["label"] for found in other]
        assert [found["box"] for found in one] == [found["box"] for found in other]
        assert np.allclose([found["score"] for found in one], [found["score"] for found in other], atol=1e-5)


def test_boxes_are_in_pixels_of_the_picture_given(directory, pictures):
    model = AttnDetrForObjectDetection.from_pretrained(directory).eval()
    processor = AttnDetrImageProcessor.from_pretrained(directory)
    with torch.no_grad():
        outputs = model(**processor(pictures[1], return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.0, [(80, 40)])[0]
    found = pipeline("object-detection", model=str(directory))(pictures[1], threshold=0.0)
    assert [list(one["box"].values()) for one in found] == expected["boxes"].int().tolist()


def test_the_log_does_not_call_the_model_unsupported(directory, caplog):
    with caplog.at_level(logging.WARNING):
        pipeline("object-detection", model=str(directory))
    assert "not supported" not in caplog.text


def test_other_detectors_are_treated_as_ever(pictures):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64]
    )
    processor = YolosImageProcessorPil(size={"height": 64, "width": 64})
    detect = pipeline("object-detection", model=YolosForObjectDetection(config), image_processor=processor)
    assert len(detect([pictures[0], pictures[1]], threshold=0.0)) == 2
