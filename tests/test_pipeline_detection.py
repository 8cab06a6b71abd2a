"""pipeline("object-detection"): alone as in a batch, whatever the sizes, and without a false alarm in the log."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ObjectDetectionPipeline,
    YolosConfig,
    YolosForObjectDetection,
    pipeline,
    pipelines,
)
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from hf_attn import AttnDetrForObjectDetection, AttnDetrImageProcessor
from hf_attn.pipeline_detection import DetectionPipeline, register_detection_pipeline
from tests.tiny import tiny_detr

SIZES = ((64, 48), (40, 80), (64, 48), (33, 57), (80, 64), (48, 48), (64, 64), (57, 33))  # width, height
NAMES = {0: "disc", 1: "square", 2: "cross"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("detector")
    tiny_detr(id2label=NAMES).save_pretrained(directory)
    AttnDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pipelines write into the log as warnings and errors."""
    lines: list[str] = []
    for level in ("warning", "error"):
        monkeypatch.setattr(pipelines.base.logger, level, lines.append)
    return lines


def assert_alike(found: list[dict], expected: list[dict]) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["box"] for one in found] == [one["box"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 3}, {"batch_size": 8}, {"num_workers": 1}], ids=str
)
def test_a_picture_has_the_same_boxes_alone_and_in_a_batch_of_other_sizes(directory, pictures, options):
    detect = pipeline("object-detection", model=str(directory))
    alone = [detect(picture, threshold=0.3) for picture in pictures]
    assert any(alone)
    for found, expected in zip(detect(pictures, threshold=0.3, **options), alone, strict=True):
        assert_alike(found, expected)
    streamed = detect((picture for picture in pictures), threshold=0.3, **options)
    for found, expected in zip(streamed, alone, strict=True):
        assert_alike(found, expected)


def test_boxes_are_in_pixels_of_the_picture_given(directory, pictures):
    model = AttnDetrForObjectDetection.from_pretrained(directory).eval()
    processor = AttnDetrImageProcessor.from_pretrained(directory)
    with torch.no_grad():
        outputs = model(**processor(pictures[1], return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.0, [(80, 40)])[0]
    found = pipeline("object-detection", model=str(directory))(pictures[1], threshold=0.0)
    assert [list(one["box"].values()) for one in found] == expected["boxes"].int().tolist()
    assert [one["label"] for one in found] == [NAMES[label] for label in expected["labels"].tolist()]


def test_files_are_read_as_the_processor_reads_them(directory, pictures, tmp_path):
    """16 bits are not cut off at 255, nor transparent pictures robbed of their background."""
    levels = np.asarray(pictures[0].convert("L")).astype(np.uint16) * 257
    fine, glass = tmp_path / "fine.png", tmp_path / "glass.png"
    Image.fromarray(levels).save(fine)
    Image.fromarray(np.zeros((48, 64, 4), dtype=np.uint8)).save(glass)
    processor = AttnDetrImageProcessor(size=None, background=[255, 255, 255])
    detect = pipeline("object-detection", model=str(directory), image_processor=processor)
    for file, expected in ((fine, pictures[0].convert("L")), (glass, Image.new("RGB", (64, 48), "white"))):
        found = detect([str(file), expected], threshold=0.0, batch_size=2)
        assert_alike(*found)


def test_a_model_of_half_precision_and_a_processor_that_pads(directory, pictures):
    """Padding would only cost memory; boxes are those without it."""
    padding = AttnDetrImageProcessor.from_pretrained(directory, pad_size={"height": 96, "width": 96})
    expected = pipeline("object-detection", model=str(directory))(pictures, threshold=0.0)
    found = pipeline("object-detection", model=str(directory), image_processor=padding)(pictures, threshold=0.0)
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
    half = pipeline("object-detection", model=str(directory), dtype=torch.bfloat16)(
        pictures, threshold=0.0, batch_size=3
    )
    for one, other in zip(half, expected, strict=True):
        assert [box["score"] for box in one] == pytest.approx([box["score"] for box in other], abs=0.1)


def test_a_processor_of_transformers_does_as_well(directory, pictures):
    """Its files may come with weights that were brought over."""
    theirs = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    ours = AttnDetrImageProcessor.from_pretrained(directory)
    found, expected = (
        pipeline("object-detection", model=str(directory), image_processor=processor)(pictures, 0.0, batch_size=4)
        for processor in (theirs, ours)
    )
    assert [len(one) for one in found] == [len(one) for one in expected]


def test_the_log_does_not_call_the_model_unsupported(directory, said):
    assert type(pipeline("object-detection", model=str(directory))) is DetectionPipeline
    assert said == []
    ObjectDetectionPipeline(
        model=tiny_detr(), image_processor=AttnDetrImageProcessor(), task="object-detection"
    )  # the alarm of transformers' own
    assert "The model 'AttnDetrForObjectDetection' is not supported for object-detection" in said[0]


def test_saved_it_needs_no_trust_in_remote_code(directory, pictures, tmp_path):
    detect = pipeline("object-detection", model=str(directory))
    detect.save_pretrained(tmp_path)
    again = pipeline("object-detection", model=str(tmp_path))
    assert_alike(again(pictures[0], threshold=0.0), detect(pictures[0], threshold=0.0))


def test_other_detectors_are_treated_as_ever(pictures, said):
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64]
    )
    model, processor = YolosForObjectDetection(config).eval(), YolosImageProcessorPil(size={"height": 64, "width": 64})
    classes = (None, ObjectDetectionPipeline)
    found, expected = (
        pipeline("object-detection", model=model, image_processor=processor, pipeline_class=kind)(
            pictures[:3], threshold=0.0, batch_size=2
        )
        for kind in classes
    )
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
    assert said == []


def test_where_transformers_cannot_put_pictures_together(pictures):
    """The defect, in its own pipeline: no batch of different sizes."""
    config = DetrConfig(
        use_timm_backbone=True,
        backbone="resnet10t",
        use_pretrained_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=3,
    )
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})
    detect = pipeline("object-detection", model=DetrForObjectDetection(config).eval(), image_processor=processor)
    with pytest.raises(RuntimeError, match="must match"):
        detect(pictures[:2], batch_size=2)


def test_registering_changes_nothing_else_and_says_nothing(said):
    task = pipelines.PIPELINE_REGISTRY.supported_tasks["object-detection"]
    before = dict(task)
    register_detection_pipeline()
    assert task == before
    assert task["impl"] is DetectionPipeline
    assert task["default"]["model"][0] == "facebook/detr-resnet-50"
    assert said == []
