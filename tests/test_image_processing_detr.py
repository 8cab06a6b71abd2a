"""Labels are boxes of the picture, however it was resized and padded; pixels are those of transformers."""

import json
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import functional as F
from transformers import AutoImageProcessor, DetrImageProcessor
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from hf_attn import AttnDetrConfig
from hf_attn.image_processing_detr import (
    IMAGE_PROCESSORS,
    AttnDetrImageProcessor,
    AttnDetrImageProcessorTorch,
    xyxy_in_pixels,
)

BACKENDS = [AttnDetrImageProcessor, AttnDetrImageProcessorTorch]
SMALL = {"shortest_edge": 48, "longest_edge": 80}
SIZES = [(40, 60), (90, 50), (33, 33), (30, 140)]  # height, width


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed * 10**6 + height * 1000 + width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def objects(*boxes: list[float], image_id: int = 7) -> dict[str, Any]:
    entries = [
        {"bbox": box, "category_id": number % 3, "area": box[2] * box[3], "iscrowd": 0}
        for number, box in enumerate(boxes)
    ]
    return {"image_id": image_id, "annotations": entries}


def exactly(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(found, expected, rtol=0, atol=0)


# --- labels there and back -------------------------------------------------------------------------------------------


def perfect(labels: list[dict[str, torch.Tensor]], num_labels: int = 3) -> dict[str, torch.Tensor]:
    """What a detector that knows the labels says: one query an object, others see nothing."""
    queries = max(len(label["boxes"]) for label in labels) + 2
    boxes = torch.full((len(labels), queries, 4), 0.5)
    logits = torch.zeros(len(labels), queries, num_labels + 1)
    logits[..., -1] = 10
    for row, label in enumerate(labels):
        for query, (box, number) in enumerate(zip(label["boxes"], label["class_labels"], strict=True)):
            boxes[row, query] = torch.as_tensor(box)
            logits[row, query, number] = 20
    return {"logits": logits, "pred_boxes": boxes}


@st.composite
def annotated_pictures(draw: st.DrawFn) -> list[tuple[tuple[int, int], list[list[float]]]]:
    """For each picture (height, width), and boxes [x, y, width, height] in it."""
    fraction = st.floats(0, 1, width=32)
    pictures = []
    for _ in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
        boxes = []
        for _ in range(draw(st.integers(0, 3))):
            x, y = draw(fraction) * (width - 1), draw(fraction) * (height - 1)
            boxes.append(
                [x, y, 0.01 + draw(fraction) * (width - x - 0.02), 0.01 + draw(fraction) * (height - y - 0.02)]
            )
        pictures.append(((height, width), boxes))
    return pictures


PADDINGS = {
    "none": {"do_pad": False},
    "to the largest": {"return_tensors": "pt"},
    "to a size": {"return_tensors": "pt", "pad_size": {"height": 190, "width": 230}},
    "to a square": {"return_tensors": "np", "pad_size": {"height": 192, "width": 192}},
    "to a size, as a list": {"pad_size": {"height": 200, "width": 190}},
}


@pytest.mark.parametrize("padding", PADDINGS)
@given(
    pictures=annotated_pictures(),
    size=st.sampled_from(
        [
            {"shortest_edge": 32, "longest_edge": 48},
            {"shortest_edge": 25},
            {"longest_edge": 41},
            {"max_height": 40, "max_width": 31},
            {"height": 31, "width": 45},
            None,
        ]
    ),
    backend=st.sampled_from(BACKENDS),
)
@settings(max_examples=40)
def test_a_perfect_prediction_of_the_labels_is_the_annotated_boxes(padding, pictures, size, backend):
    processor = backend(size=size)
    annotations = [objects(*boxes, image_id=number) for number, (_, boxes) in enumerate(pictures)]
    batch = processor([picture(*edges) for edges, _ in pictures], annotations, **PADDINGS[padding])
    originals = [edges for edges, _ in pictures]
    found = processor.post_process_object_detection(perfect(batch["labels"]), 0.5, originals)
    for (_, boxes), one in zip(pictures, found, strict=True):
        expected = torch.tensor([[x, y, x + width, y + height] for x, y, width, height in boxes]).view(-1, 4)
        assert_close(one["boxes"], expected, rtol=0, atol=1e-4)
        assert one["labels"].tolist() == [number % 3 for number in range(len(boxes))]


@pytest.mark.parametrize("theirs", [DetrImageProcessor, DetrImageProcessorPil])
def test_where_transformers_shrinks_boxes_with_the_padding(theirs):
    """The defect: its labels are fractions of the padded picture, what it decodes are fractions of the visible one."""
    size = {"shortest_edge": 400, "longest_edge": 600}
    pictures, box = [picture(400, 600), picture(600, 400)], [100, 100, 200, 200]
    annotations = [objects(box), objects(box)]
    given_boxes = torch.tensor([[[100.0, 100, 300, 300]]] * 2)

    def there_and_back(processor) -> torch.Tensor:
        labels = processor(images=pictures, annotations=annotations, return_tensors="pt").labels
        outputs = DetrObjectDetectionOutput(perfect(labels))
        found = processor.post_process_object_detection(outputs, 0.5, [(400, 600), (600, 400)])
        return torch.stack([one["boxes"] for one in found])

    assert_close(there_and_back(AttnDetrImageProcessor(size=size)), given_boxes, rtol=0, atol=1e-3)
    shrunk = torch.tensor([[[100, 200 / 3, 300, 200]], [[200 / 3, 100, 200, 300]]])
    assert_close(there_and_back(theirs(size=size)), shrunk, rtol=0, atol=1e-3)


@pytest.mark.parametrize("theirs", [DetrImageProcessor, DetrImageProcessorPil])
def test_labels_of_a_picture_without_padding_are_transformers_labels(theirs):
    annotation = objects([-5, 3, 30.5, 20], [10, 10, 5, 0], [50, 2, 1, 30.25], [70, 2, 9, 9])
    annotation["annotations"].append({"bbox": [1, 2, 3, 4], "category_id": 0, "area": 12.0, "iscrowd": 1})
    expected = theirs(size=SMALL)(images=picture(), annotations=annotation, return_tensors="pt").labels[0]
    found = AttnDetrImageProcessor(size=SMALL)(picture(), annotation, return_tensors="pt").labels[0]
    assert set(found) == set(expected)
    assert len(found["boxes"]) == 2
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_labels_as_the_model_reads_them():
    found = AttnDetrImageProcessor(size={"height": 80, "width": 30})(
        [picture(), picture()], [objects([15, 10, 30, 20]), objects(image_id=8)], return_tensors="pt"
    ).labels
    assert {name: (tuple(value.shape), value.dtype) for name, value in found[0].items()} == {
        "image_id": ((1,), torch.int64),
        "class_labels": ((1,), torch.int64),
        "boxes": ((1, 4), torch.float32),
        "area": ((1,), torch.float32),
        "iscrowd": ((1,), torch.int64),
        "orig_size": ((2,), torch.int64),
        "size": ((2,), torch.int64),
    }
    exactly(found[0]["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert (found[0]["orig_size"].tolist(), found[0]["size"].tolist()) == ([40, 60], [80, 30])
    assert found[0]["area"].tolist() == [600]  # twice as high, half as wide
    assert (tuple(found[1]["boxes"].shape), tuple(found[1]["class_labels"].shape)) == ((0, 4), (0,))


def test_arrays_come_out_on_request_and_tensors_otherwise():
    processor = AttnDetrImageProcessor(size=SMALL)
    annotations = [objects([1, 2, 3, 4]), objects()]
    arrays = processor([picture(), picture(90, 50)], annotations, return_tensors="np")
    for value in (arrays["pixel_values"], arrays["pixel_mask"], *arrays["labels"][0].values()):
        assert isinstance(value, np.ndarray)
    lists = processor([picture(), picture(90, 50)], annotations)
    assert set(lists) == {"pixel_values", "labels"}
    assert [tuple(one.shape) for one in lists["pixel_values"]] == [(3, 48, 72), (3, 80, 44)]
    assert all(isinstance(value, torch.Tensor) for value in lists["labels"][0].values())


def test_an_upright_picture_has_upright_boxes():
    """EXIF says that the camera was held sideways: boxes are those of the picture as one sees it."""
    sideways = picture(40, 60)
    sideways.getexif()[0x0112] = 6  # to be turned by 90 degrees
    label = AttnDetrImageProcessor(size=SMALL)(sideways, objects([0, 30, 40, 30]), return_tensors="pt").labels[0]
    assert label["orig_size"].tolist() == [60, 40]
    exactly(label["boxes"], torch.tensor([[0.5, 0.75, 1.0, 0.5]]))


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [None, SMALL, {"height": 64, "width": 48}, {"max_height": 50, "max_width": 70}], ids=str
)
def test_pictures_and_masks_are_transformers_bit_for_bit(size):
    settings = {} if size is None else {"size": size}
    images = [picture(*edges) for edges in (SIZES if size else SIZES[:2])]
    expected = DetrImageProcessorPil(**settings)(images=images, return_tensors="pt")
    found = AttnDetrImageProcessor(**settings)(images=images, return_tensors="pt")
    exactly(found.pixel_values, expected.pixel_values)
    exactly(found.pixel_mask, expected.pixel_mask)
    by_torchvision = DetrImageProcessor(**settings)(images=images, return_tensors="pt")
    by_torch = AttnDetrImageProcessorTorch(**settings)(images=images, return_tensors="pt")
    assert_close(by_torch.pixel_values, by_torchvision.pixel_values, rtol=0, atol=1e-6)
    exactly(by_torch.pixel_mask, by_torchvision.pixel_mask)


def test_pictures_are_those_of_the_authors_transform():
    """datasets/transforms.py: torchvision's functions on a PIL picture."""
    resized = F.resize(picture(300, 200), [1200, 800])
    expected = F.normalize(F.to_tensor(resized), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    exactly(AttnDetrImageProcessor()(picture(300, 200), return_tensors="pt").pixel_values[0], expected)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_both_backends_agree_within_one_grey_level(resample):
    options = {"size": SMALL, "resample": resample, "do_normalize": False}
    images = [picture(*edges) for edges in (*SIZES, SIZES[0])]
    by_pil, by_torch = (backend(**options)(images, return_tensors="pt") for backend in BACKENDS)
    assert_close(by_torch.pixel_values * 255, by_pil.pixel_values * 255, rtol=0, atol=1.001)
    exactly(by_torch.pixel_mask, by_pil.pixel_mask)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_in_a_batch_is_the_picture_alone_at_the_top_left(backend):
    processor = backend(size=SMALL)
    floats = np.asarray(picture(33, 47)).astype(np.float32) / 255
    images = [*(picture(*edges) for edges in SIZES), picture().convert("L"), floats]
    batch = processor(images, return_tensors="pt")
    assert (batch.pixel_values.dtype, batch.pixel_mask.dtype) == (torch.float32, torch.int64)
    assert batch.pixel_values.shape == (6, 3, 80, 80)
    for padded, mask, image in zip(batch.pixel_values, batch.pixel_mask, images, strict=True):
        alone = processor(image, return_tensors="pt").pixel_values[0]
        height, width = alone.shape[1:]
        exactly(padded[:, :height, :width], alone)
        assert mask.sum() == mask[:height, :width].sum() == height * width
        assert padded[:, height:].count_nonzero() == padded[:, :, width:].count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_they_are", [{"do_resize": False}, {"size": None}])
def test_pictures_may_keep_their_size(backend, as_they_are):
    found = backend(do_normalize=False)(picture(17, 31), return_tensors="pt", **as_they_are).pixel_values
    exactly(found[0], torch.tensor(np.asarray(picture(17, 31))).permute(2, 0, 1) / 255)


def test_grey_pictures_have_means_of_their_own():
    grey = AttnDetrImageProcessor(size=SMALL, num_channels=1)
    assert (grey.image_mean, grey.image_std) == ([0.449], [0.226])
    assert grey(picture(), return_tensors="pt").pixel_values.shape == (1, 1, 48, 72)


def test_without_padding_sizes_must_agree():
    processor = AttnDetrImageProcessor(size=SMALL, do_pad=False)
    assert set(processor([picture(), picture()], return_tensors="pt")) == {"pixel_values"}
    with pytest.raises(ValueError, match=r"pictures of 2 sizes \(48x72, 80x44, .* one tensor; leave do_pad on, or"):
        processor([picture(), picture(90, 50)], return_tensors="pt")


def test_a_pad_size_that_is_too_small_is_refused():
    processor = AttnDetrImageProcessor(size=SMALL, pad_size={"height": 64, "width": 64})
    with pytest.raises(ValueError, match=r"up to 48x72 \(height x width\) cannot be padded to 64x64; raise pad_size"):
        processor(picture(), return_tensors="pt")


# --- what a detector found -------------------------------------------------------------------------------------------


def outputs(batch: int = 3, queries: int = 20, num_labels: int = 5) -> DetrObjectDetectionOutput:
    return DetrObjectDetectionOutput(
        logits=3 * torch.randn(batch, queries, num_labels + 1), pred_boxes=torch.rand(batch, queries, 4)
    )


@pytest.mark.parametrize(
    "target_sizes", [None, [(480, 640), (100, 7), (33, 1000)], torch.tensor([[480, 640], [100, 7], [33, 1000]])]
)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_detections_are_those_of_transformers(target_sizes, threshold):
    given_outputs = outputs()
    expected = DetrImageProcessor().post_process_object_detection(given_outputs, threshold, target_sizes)
    for one in (given_outputs, dict(given_outputs)):
        found = AttnDetrImageProcessor().post_process_object_detection(one, threshold, target_sizes)
        for ours, theirs in zip(found, expected, strict=True):
            assert set(ours) == set(theirs)
            for name in ours:
                exactly(ours[name], theirs[name])


def test_scores_are_used_where_the_model_gives_them():
    """With a sigmoid for each class, no class is "no object", and none is dropped."""
    scores = torch.tensor([[[0.1, 0.2, 0.9], [0.6, 0.3, 0.1], [0.2, 0.2, 0.2]]])
    given_outputs = {"scores": scores, "logits": scores.logit(), "pred_boxes": torch.full((1, 3, 4), 0.5)}
    (found,) = AttnDetrImageProcessor().post_process_object_detection(given_outputs)
    assert (found["labels"].tolist(), found["scores"].tolist()) == ([2, 0], pytest.approx([0.9, 0.6]))


@pytest.mark.parametrize(
    "target_sizes",
    [[(1, 2)], [(1, 2)] * 4, [(1, 2, 3)] * 3, [1, 2, 3], torch.ones(3), torch.ones(2, 3), [(1, 2), (1,), ()]],
)
def test_sizes_that_are_not_those_of_the_pictures_are_refused(target_sizes):
    with pytest.raises(ValueError, match="must be a height and a width for each of 3 pictures"):
        AttnDetrImageProcessor().post_process_object_detection(outputs(), 0.5, target_sizes)


def test_boxes_of_half_precision_are_scaled_in_full():
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5]]], dtype=torch.bfloat16)
    exactly(xyxy_in_pixels(boxes, [(801, 1333)]), torch.tensor([[[333.25, 200.25, 999.75, 600.75]]]))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"size": 800}, "size 800 must be {'shortest_edge': ..., 'longest_edge': ...} or {'shortest_edge': ...} or"),
        ({"size": {"height": 8}}, "size {'height': 8} must be"),
        ({"size": {"shortest_edge": 8, "height": 8}}, "must be"),
        ({"size": {"longest_edge": 0}}, "in whole pixels above 0"),
        ({"size": {"height": 8, "width": 8.5}}, "in whole pixels above 0"),
        ({"pad_size": 8}, "pad_size 8 must be {'height': ..., 'width': ...}, in whole pixels above 0"),
        ({"pad_size": {"shortest_edge": 8}}, "pad_size {'shortest_edge': 8} must be {'height'"),
        ({"do_pad": None}, "do_pad None is unknown; it must be one of True, False"),
        ({"resample": 5}, "resample 5 is unknown"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\] must be one number, or 3"),
        ({"max_size": 8}, "AttnDetrImageProcessor has no setting max_size; it has background, .*from_transformers"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_made_and_when_called(setting, named):
    with pytest.raises(ValueError, match=named):
        AttnDetrImageProcessor(**setting)
    with pytest.raises(ValueError, match=named):
        AttnDetrImageProcessor()(picture(), **setting)


def test_a_picture_elsewhere_is_not_fetched_for_pil():
    with pytest.raises(ValueError, match="picture on meta: PIL works on the CPU; load the processor with backend='t"):
        AttnDetrImageProcessor()(torch.zeros(3, 16, 16, dtype=torch.uint8, device="meta"), return_tensors="pt")


SETTINGS = {
    "size": {"longest_edge": 100},
    "do_resize": False,
    "resample": "lanczos",
    "do_rescale": False,
    "do_normalize": False,
    "image_mean": [0.1],
    "image_std": [0.2],
    "do_pad": False,
    "pad_size": {"height": 120, "width": 130},
    "num_channels": 1,
    "background": [1, 2, 3],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", [SETTINGS, {}, {"size": None}])
def test_saved_is_loaded_with_every_setting_and_either_backend(backend, setting, tmp_path):
    processor = backend(**setting)
    settings = dict(vars(processor))
    processor.save_pretrained(tmp_path)  # which notes on it where its code is
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "AttnDetrImageProcessor"
    for other in BACKENDS:
        assert vars(other.from_pretrained(tmp_path)) == settings
    assert vars(pickle.loads(pickle.dumps(processor))) == vars(processor)
    changed, unused = backend.from_pretrained(tmp_path, resample="nearest", colour="blue", return_unused_kwargs=True)
    assert changed.resample == Image.Resampling.NEAREST
    assert unused["colour"] == "blue"


@pytest.mark.parametrize(
    ("backend", "kind"),
    [(None, BACKENDS[0]), ("pil", BACKENDS[0]), ("torchvision", BACKENDS[0]), ("torch", BACKENDS[1])],
)
def test_the_automatic_class_finds_the_backend_asked_for(backend, kind, tmp_path):
    AttnDetrConfig().save_pretrained(tmp_path)
    AttnDetrImageProcessor(size=SMALL).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is kind
    assert loaded.size == SMALL
    assert {name: kind.backend for name, kind in IMAGE_PROCESSORS.items()}[backend or "pil"] == loaded.backend


REMOTE = """
import sys
from PIL import Image
from transformers import AutoImageProcessor
for backend in (None, "torch"):
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True, backend=backend)
    annotation = {"image_id": 1, "annotations": [{"bbox": [0, 0, 10, 10], "category_id": 0}]}
    batch = processor(Image.new("RGB", (20, 10)), annotation, return_tensors="pt")
    print(type(processor).__name__, tuple(batch.pixel_mask.shape), batch.labels[0]["boxes"].tolist())
assert "hf_attn" not in sys.modules
"""


def test_the_code_travels_with_the_settings(tmp_path):
    AttnDetrImageProcessor(size=SMALL).save_pretrained(tmp_path)
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-W", "ignore", "-c", REMOTE, str(tmp_path)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = "(1, 40, 80) [[0.25, 0.5, 0.5, 1.0]]"
    assert result.stdout.splitlines() == [f"{backend.__name__} {expected}" for backend in BACKENDS]
