"""Pictures become batches alike with both backends; the processor is a citizen of the library: saved, found, piped."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from transformers import AutoImageProcessor, pipeline

from hf_attn.image_processing_vit import (
    IMAGE_PROCESSORS,
    AttnViTImageProcessor,
    AttnViTImageProcessorTorch,
)
from tests.tiny import tiny_vit

ROOT = Path(__file__).parents[1]
BACKENDS = [AttnViTImageProcessor, AttnViTImageProcessorTorch]


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed * 10**6 + height * 1000 + width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(processor: AttnViTImageProcessor, images, **kwargs) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs).pixel_values


def exactly(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(found, expected, rtol=0, atol=0)


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_default_a_picture_becomes_224_by_224_values_from_minus_1_to_1(backend):
    found = pixels(backend(), [picture(), Image.new("L", (9, 9), 255), Image.new("1", (9, 9), 0)])
    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 3, 224, 224), torch.float32, True)
    assert found[1].unique().tolist() == [1] and found[2].unique().tolist() == [-1]
    assert -1 <= found[0].min() < -0.9 and 0.9 < found[0].max() <= 1


@pytest.mark.parametrize("resize_mode", ["exact", "shortest_edge", "longest_edge"])
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
@given(*[st.integers(1, 80)] * 4, st.floats(0.3, 1), st.sampled_from([1, 3]))
@settings(max_examples=15)
def test_both_backends_agree_within_one_grey_level(
    resize_mode, resample, height, width, new_height, new_width, crop_pct, num_channels
):
    settings = {
        "size": (new_height, new_width),
        "resize_mode": resize_mode,
        "resample": resample,
        "crop_pct": crop_pct,
        "num_channels": num_channels,
        "do_normalize": False,
    }
    images = [picture(height, width), picture(height, width, seed=1), picture(width, height)]
    by_pil, by_torch = (pixels(backend(**settings), images) for backend in BACKENDS)
    assert by_pil.shape == (3, num_channels, new_height, new_width)
    assert_close(by_torch * 255, by_pil * 255, rtol=0, atol=1.001)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_in_a_batch_is_the_picture_alone_whatever_else_is_in_the_batch(backend):
    processor = backend(size=32, resize_mode="shortest_edge", resample="bicubic", crop_pct=0.9)
    floats = np.asarray(picture(33, 47)).astype(np.float32) / 255
    images = [picture(40, 60), picture(31, 17), picture(40, 60, seed=1), picture().convert("L"), floats]
    for found, image in zip(pixels(processor, images), images, strict=True):
        exactly(found, pixels(processor, image)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_pil_pictures_arrays_tensors_and_files_give_the_same(backend, tmp_path):
    processor = backend(size=(32, 48))
    expected = pixels(processor, picture())
    array = np.asarray(picture())
    picture().save(tmp_path / "picture.png")
    for image in (array, array.transpose(2, 0, 1), torch.tensor(array), str(tmp_path / "picture.png"), array[None]):
        exactly(pixels(processor, image), expected)
    for image in (array / 255, array.astype(np.float32), torch.tensor(array) / 255):
        assert_close(pixels(processor, image), expected, rtol=0, atol=3.01 / 255)  # 1.5 levels: one, and rounding


@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_in_0_to_1_are_not_rescaled_and_the_user_s_own_are_left_alone(backend):
    values = torch.rand(2, 3, 16, 24)
    before = values.clone()
    for do_rescale in (True, False):
        found = pixels(
            backend(do_resize=False, image_mean=[0.1, 0.2, 0.3], image_std=2), values, do_rescale=do_rescale
        )
        exactly(found, (before - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 2)
    exactly(values, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_longest_edge_keeps_the_whole_picture_and_fills_with_the_mean(backend):
    processor = backend(size=32, resize_mode="longest_edge", image_mean=[51 / 255, 102 / 255, 204 / 255])
    found = pixels(processor, Image.new("RGB", (64, 32), "white"))[0]
    assert_close(found[:, :8], torch.zeros(3, 8, 32), rtol=0, atol=1e-6)
    assert_close(found[:, 24:], torch.zeros(3, 8, 32), rtol=0, atol=1e-6)
    assert (found[:, 8:24] > 0.3).all()
    floats = pixels(processor, torch.ones(3, 32, 64))[0]
    assert_close(floats, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel_is_the_luma_of_three(backend):
    processor = backend(size=28, num_channels=1, image_mean=0.2860, image_std=0.3530)
    grey = pixels(processor, picture().convert("L"))
    assert grey.shape == (1, 1, 28, 28)
    exactly(pixels(processor, picture().convert("L").convert("RGB")), grey)
    exactly(pixels(processor, picture()), grey)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_they_are", [{"do_resize": False}, {"size": None}])
def test_pictures_may_keep_their_size(backend, as_they_are):
    processor = backend(do_normalize=False)
    found = pixels(processor, picture(17, 31), **as_they_are)
    exactly(found[0], torch.tensor(np.asarray(picture(17, 31))).permute(2, 0, 1) / 255)
    of_two_sizes = processor([picture(17, 31), picture(18, 31)], **as_they_are).pixel_values
    assert [tuple(one.shape) for one in of_two_sizes] == [(3, 17, 31), (3, 18, 31)]
    with pytest.raises(ValueError, match=r"pictures of 2 sizes \(17x31, 18x31, height x width\) do not fit into one"):
        pixels(processor, [picture(18, 31), picture(17, 31)], **as_they_are)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_setting_of_one_call_is_the_setting_of_that_call_alone(backend):
    processor = backend(size=32)
    changes = {"size": {"height": 16, "width": 24}, "resample": "lanczos", "image_mean": 0.1, "crop_pct": 0.9}
    exactly(pixels(processor, picture(), **changes), pixels(backend(**changes), picture()))
    assert pixels(processor, picture()).shape == (1, 3, 32, 32)


def test_numpy_and_lists_come_out_on_request():
    processor = AttnViTImageProcessor(size=32)
    expected = pixels(processor, [picture()] * 2)
    as_list = processor([picture()] * 2).pixel_values
    assert isinstance(as_list, list)
    exactly(torch.stack(as_list), expected)
    as_array = processor([picture()] * 2, return_tensors="np").pixel_values
    assert isinstance(as_array, np.ndarray)
    exactly(torch.tensor(as_array), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_on_a_gpu_torch_gives_what_pil_gives(resample):
    settings = {"size": (32, 48), "resample": resample, "resize_mode": "shortest_edge", "crop_pct": 0.9}
    images = [picture(40, 60), picture(90, 33), picture(20, 20)]
    expected = pixels(AttnViTImageProcessor(**settings), images)
    processor = AttnViTImageProcessorTorch(**settings)
    on_gpu = [torch.tensor(np.asarray(image)).cuda() for image in images]
    for found in (pixels(processor, on_gpu), pixels(processor, images, device="cuda")):
        assert found.device.type == "cuda"
        assert_close(found.cpu(), expected, rtol=0, atol=1e-6)


def test_a_picture_elsewhere_is_not_fetched_for_pil():
    with pytest.raises(
        ValueError, match="picture on meta: PIL works on the CPU; load the processor with backend='torch'"
    ):
        pixels(AttnViTImageProcessor(), torch.zeros(3, 16, 16, dtype=torch.uint8, device="meta"))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"size": 0}, "size 0 must be a whole number above 0"),
        ({"size": (8, 8, 8)}, r"size \(8, 8, 8\) must be"),
        ({"size": {"shortest_edge": 224}}, "proportions are kept by resize_mode='shortest_edge'"),
        ({"size": "224"}, "size '224' must be"),
        (
            {"resize_mode": "crop"},
            "resize_mode 'crop' is unknown; it must be one of 'exact', 'shortest_edge', 'longest",
        ),
        ({"crop_pct": 0}, "crop_pct 0 must be above 0 and at most 1"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 must be above 0 and at most 1"),
        ({"crop_offset": "up"}, "crop_offset 'up' is unknown"),
        ({"resample": "cubic"}, r"resample 'cubic' is unknown; it must be one of 'nearest' \(0\), 'bilinear' \(2\)"),
        ({"resample": 5}, "resample 5 is unknown"),
        ({"do_resize": None}, "do_resize None is unknown; it must be one of True, False"),
        ({"num_channels": 4}, "num_channels 4 must be 3 for RGB or 1 for grey"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\] must be one number, or 3, one for each of num_channels"),
        ({"image_std": [0.5, 0, 1]}, r"image_std \[0.5, 0.0, 1.0\] must be above 0"),
        ({"background": [256, 0, 0]}, r"background \[256, 0, 0\] must be three grey levels from 0 to 255"),
        (
            {"crop_size": 224},
            "AttnViTImageProcessor has no setting crop_size; it has background, crop_offset, .*from_tr",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_when_made_and_when_called(setting, named):
    with pytest.raises(ValueError, match=named):
        AttnViTImageProcessor(**setting)
    with pytest.raises(ValueError, match=named):
        pixels(AttnViTImageProcessor(), picture(), **setting)


def test_bytes_are_refused_where_floats_were_promised():
    for image in (picture(), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="do_rescale=False takes pictures that are floats"):
            pixels(AttnViTImageProcessor(), image, do_rescale=False)


SETTINGS = {
    "size": (48, 32),
    "do_resize": False,
    "resize_mode": "longest_edge",
    "crop_pct": 0.9,
    "crop_offset": "floor",
    "resample": "lanczos",
    "do_rescale": False,
    "do_normalize": False,
    "image_mean": [0.1],
    "image_std": [0.2],
    "num_channels": 1,
    "background": [1, 2, 3],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", [SETTINGS, {}, {"size": None}])
def test_saved_is_loaded_with_every_setting_and_either_backend(backend, setting, tmp_path):
    processor = backend(**setting)
    settings = dict(vars(processor))
    processor.save_pretrained(tmp_path)  # which notes on it where its code is
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == (
        "AttnViTImageProcessor"
    )
    for other in BACKENDS:
        loaded = other.from_pretrained(tmp_path)
        assert vars(loaded) == settings
    assert vars(pickle.loads(pickle.dumps(processor))) == vars(processor)
    changed, unused = backend.from_pretrained(tmp_path, resample="nearest", colour="blue", return_unused_kwargs=True)
    assert changed.resample == Image.Resampling.NEAREST
    assert unused["colour"] == "blue"


# --- the library -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "kind"),
    [(None, BACKENDS[0]), ("pil", BACKENDS[0]), ("torchvision", BACKENDS[0]), ("torch", BACKENDS[1])],
)
@pytest.mark.parametrize("saved", BACKENDS)
def test_the_automatic_class_finds_the_backend_asked_for(backend, kind, saved, tmp_path):
    saved(size=(48, 32)).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is kind
    assert loaded.backend == ("torch" if backend == "torch" else "pil")
    assert loaded.size == {"height": 48, "width": 32}


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_pipeline_classifies_batches_and_files_as_the_model_does(num_channels, tmp_path):
    model = tiny_vit(num_channels=num_channels)
    processor = AttnViTImageProcessor(size=32, num_channels=num_channels)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = [picture(40, 60), picture(33, 21), picture(32, 32).convert("L")]
    with torch.no_grad():
        expected = model(pixels(processor, images)).logits.softmax(-1)
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    classify = pipeline("image-classification", model=str(tmp_path))
    for found in (
        classify(images, batch_size=2),
        classify([str(tmp_path / f"{index}.png") for index in range(3)], batch_size=3),
    ):
        scores = [{entry["label"]: entry["score"] for entry in one} for one in found]
        named = [[one[model.config.id2label[label]] for label in range(3)] for one in scores]
        assert_close(torch.tensor(named), expected, rtol=0, atol=1e-5)


WITHOUT_TORCHVISION = """
import sys

class Hide:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in ("torchvision", "timm")
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""

USE_IT = """
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.utils import is_torchvision_available
import hf_attn

assert not is_torchvision_available()
for backend in (None, "pil", "torchvision", "torch"):
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], backend=backend)
    print(type(processor).__name__, processor.backend)
found = pipeline("image-classification", model=sys.argv[1])([sys.argv[1] + "/picture.png"] * 3, batch_size=2)
print(*[one[0]["score"] for one in found])
"""


def run(code: str, *arguments: str, path: str = "") -> str:
    """What a fresh interpreter prints; it may say nothing else."""
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    result = subprocess.run(command, env=environment, cwd=arguments[0], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "Loading weights" not in line and line.strip()]
    assert said == []
    return result.stdout


def test_nothing_differs_and_nothing_is_said_where_torchvision_is_missing(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    AttnViTImageProcessor(size=32).save_pretrained(tmp_path)
    picture().save(tmp_path / "picture.png")
    *kinds, scores = run(WITHOUT_TORCHVISION + USE_IT, str(tmp_path), path=str(ROOT)).splitlines()
    assert kinds == ["AttnViTImageProcessor pil"] * 3 + ["AttnViTImageProcessorTorch torch"]
    here = pipeline("image-classification", model=str(tmp_path))(str(tmp_path / "picture.png"))[0]["score"]
    assert_close(torch.tensor([float(score) for score in scores.split()]), torch.full((3,), here), rtol=0, atol=1e-6)


REMOTE = """
import sys
from transformers import AutoImageProcessor
for folder in (sys.argv[1], sys.argv[1] + "/again"):
    for backend in (None, "pil", "torch"):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend=backend)
        print(type(processor).__name__, processor.backend, processor.size)
    processor.save_pretrained(sys.argv[1] + "/again")
assert "hf_attn" not in sys.modules
"""


def test_the_code_travels_with_the_settings_and_both_backends_are_found(tmp_path):
    AttnViTImageProcessor(size=(48, 32)).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.py")) == [
        "image_processing_base.py",
        "image_processing_conversion.py",
        "image_processing_inputs.py",
        "image_processing_resize.py",
        "image_processing_vit.py",
    ]
    size = {"height": 48, "width": 32}
    found = [f"AttnViTImageProcessor pil {size}"] * 2 + [f"AttnViTImageProcessorTorch torch {size}"]
    assert run(REMOTE, str(tmp_path)).splitlines() == found * 2


def test_every_backend_has_its_class():
    assert {name: kind.backend for name, kind in IMAGE_PROCESSORS.items()} == {
        "pil": "pil",
        "torchvision": "pil",
        "torch": "torch",
    }
