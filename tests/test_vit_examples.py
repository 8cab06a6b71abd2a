"""The examples with pictures, on a machine made up here: its packages hold pictures drawn for this test."""

import gzip
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from transformers import Dinov2Config, Dinov2Model

from hf_attn.training.picture_data import load_pictures
from tests.mirror import Mirror, downloads, png
from tests.tiny import randomise

digits = importlib.import_module("digits")
dinov2 = importlib.import_module("dinov2")
fashion_mnist = importlib.import_module("fashion_mnist")
stamps = importlib.import_module("stamps")


# Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def small_fashion(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The package with 40 + 20 pictures instead of 60,000 + 10,000."""
    shapes = {name: (40 if "train" in name else 20, *shape[1:]) for name, shape in fashion_mnist.SHAPES.items()}
    monkeypatch.setattr(fashion_mnist, "SHAPES", shapes)
    generator = np.random.default_rng(0)
    files = {}
    for name, shape in shapes.items():
        values = generator.integers(0, 256, shape) if len(shape) == 3 else np.arange(shape[0]) % 10
        files[f"datasets/fashion-mnist/{name}"] = idx(values)
    mirror = Mirror({"dataset-fashion-mnist": files})
    mirror.answer(monkeypatch)
    return mirror


def prepare(tmp_path: Path) -> list[str]:
    said: list[str] = []
    fashion_mnist.prepare_fashion_mnist(tmp_path / "fashion", tmp_path / "cache", said.append)
    return said


def test_fashion_mnist_is_written_as_load_pictures_reads_it(small_fashion: Mirror, tmp_path: Path) -> None:
    prepare(tmp_path)
    splits, report = load_pictures(tmp_path / "fashion", class_names=fashion_mnist.CLASS_NAMES, validation_share=0.25)
    assert report.class_names == fashion_mnist.CLASS_NAMES and not report.dropped
    assert report.pictures == {"train": 30, "validation": 10, "test": 20}
    labels = splits["test"].features["label"].int2str(splits["test"]["label"][:10])
    assert labels == fashion_mnist.CLASS_NAMES
    assert splits["test"][0]["image"].size == (28, 28)


def test_fashion_mnist_is_fetched_once(small_fashion: Mirror, tmp_path: Path) -> None:
    prepare(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "fashion").iterdir()}
    assert prepare(tmp_path) == [f"{tmp_path / 'fashion'}: Fashion-MNIST is there"]
    (tmp_path / "fashion" / "t10k-labels-idx1-ubyte.gz").unlink()
    prepare(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "fashion").iterdir()} == first
    assert small_fashion.downloads == ["dataset-fashion-mnist"]


def test_a_file_of_another_size_is_named(small_fashion: Mirror, tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "fashion" / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(19)))
    with pytest.raises(ValueError, match=r"t10k-labels\S+ has the shape \(19,\) instead of \(20,\); delete it"):
        prepare(tmp_path)


def test_a_package_without_a_file_is_an_error_that_leaves_nothing_half_written(
    small_fashion: Mirror, tmp_path: Path
) -> None:
    del small_fashion.packages["dataset-fashion-mnist"]["datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"]
    with pytest.raises(RuntimeError, match=r"has no t10k-images-idx3-ubyte\.gz; it has t10k-labels"):
        prepare(tmp_path)
    names = {path.name for path in (tmp_path / "fashion").iterdir()}
    assert names == {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}


@pytest.mark.parametrize("fetch", [prepare, lambda path: stamps.prepare_stamps(path / "stamps", path / "cache")])
def test_without_apt_the_message_says_where_the_pictures_come_from(
    fetch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads.shutil, "which", lambda command: None)
    with pytest.raises(RuntimeError, match=r"apt-get and dpkg-deb are not here, and .* Debian's package"):
        fetch(tmp_path)
    assert not list(tmp_path.iterdir())


# Stamps


def test_photos_lie_in_folders_by_class_without_drawings_and_mirrored_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    red = png("RGBA", (30, 20), (200, 0, 0, 255))
    animals = "tuxpaint/stamps/animals"
    names = ["birds/owl.png", "birds/cartoon/tux.png", "mammals/cats/lion.png", "mammals/cats/lion_mirror.png"]
    files = {f"{animals}/{name}": red for name in [*names, "mammals/cats/lion.txt", "dinosaur/rex.png"]}
    mirror = Mirror({"tuxpaint-stamps-default": {**files, "tuxpaint/stamps/vehicles/auto/sedan.png": red}})
    mirror.answer(monkeypatch)
    directory = stamps.prepare_stamps(tmp_path / "stamps", tmp_path / "cache")
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.png"))
    assert found == ["bird/owl.png", "mammal/lion.png", "vehicle/sedan.png"]
    stamps.prepare_stamps(tmp_path / "stamps", tmp_path / "cache")
    assert mirror.downloads == ["tuxpaint-stamps-default"]


@pytest.mark.parametrize("mode, colour", [("RGBA", (0, 0, 200, 255)), ("LA", (90, 255)), ("L", 90), ("P", 3)])
def test_a_photo_stands_in_the_middle_of_a_white_square(mode: str, colour: Any) -> None:
    picture = Image.open(io.BytesIO(png(mode, (40, 20), colour)))
    square = np.asarray(stamps.on_white_square(picture))
    assert square.shape == (40, 40, 3)
    assert (square[:10] == 255).all() and (square[30:] == 255).all()
    assert (square[10:30] == np.asarray(picture.convert("RGB"))).all()


def test_transparent_parts_become_white_and_large_photos_smaller() -> None:
    transparent = Image.new("RGBA", (1000, 500), (0, 200, 0, 0))
    square = np.asarray(stamps.on_white_square(transparent))
    assert square.shape == (224, 224, 3) and (square == 255).all()


# DINOv2


@pytest.fixture(scope="module")
def reference() -> Dinov2Model:
    """transformers' model, small and randomised."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    torch.manual_seed(0)
    return randomise(Dinov2Model(config)).eval()


@pytest.fixture(scope="module")
def stored(reference: Dinov2Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Its weights, named as they are on disk."""
    directory = tmp_path_factory.mktemp("dinov2")
    reference.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


@torch.no_grad()
def test_dinov2_becomes_the_same_network(reference: Dinov2Model, stored: dict[str, torch.Tensor]) -> None:
    model = dinov2.from_dinov2(stored, num_attention_heads=2)
    pictures = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ours, theirs = model(pictures, output_hidden_states=True), reference(pictures, output_hidden_states=True)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=1e-5, rtol=1e-5)
    for our_layer, their_layer in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(our_layer, their_layer, atol=1e-5, rtol=1e-5)
    assert dinov2.difference_to_transformers(model, stored) < 1e-5
    assert dinov2.difference_when_read(stored, model.config, 35) < 1e-5


@torch.no_grad()
def test_fewer_layers_are_the_first_ones(reference: Dinov2Model, stored: dict[str, torch.Tensor]) -> None:
    model = dinov2.from_dinov2(stored, num_attention_heads=2, num_hidden_layers=2)
    pictures = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    second = reference(pictures, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(model(pictures).last_hidden_state, reference.layernorm(second), atol=1e-5, rtol=1e-5)
    for layers in (0, 4):
        with pytest.raises(ValueError, match=f"{layers} layers of a DINOv2 that has 3; keep 1 to 3"):
            dinov2.from_dinov2(stored, num_attention_heads=2, num_hidden_layers=layers)


def exported(stored: dict[str, torch.Tensor]) -> onnx.GraphProto:
    """A graph with the weights as torch's exporter leaves them: matrices transposed and numbered, positions cut."""
    tensors: dict[str, torch.Tensor] = {"decoder.conv.weight": torch.zeros(16, 16), "onnx::Slice_3": torch.zeros(1)}
    nodes = [helper.make_node("MatMul", ["scores", "values"], ["read"], "/backbone/encoder/layer.0/attention/MatMul")]
    for number, (name, value) in enumerate(stored.items()):
        if name.startswith("encoder.") and value.ndim == 2:
            tensors[f"onnx::MatMul_{number}"] = value.T
            node = (
                "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            )
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"y{number}"], node))
        elif name == "embeddings.position_embeddings":
            tensors["onnx::Reshape_1"], tensors["onnx::Concat_2"] = value[:, 1:], value[:, :1]
        elif name != "embeddings.mask_token":
            tensors[f"backbone.{name}"] = value
    initializers = [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in tensors.items()]
    return helper.make_graph(nodes, "exported", [], [], initializers)


def test_an_exported_graph_gives_back_every_weight(stored: dict[str, torch.Tensor]) -> None:
    found = dinov2.encoder_weights(exported(stored))
    assert set(found) == set(stored) - {"embeddings.mask_token"}
    for name, value in found.items():
        torch.testing.assert_close(value, stored[name], atol=0, rtol=0)


# Digits


def test_the_pictures_are_those_of_scikit_learn() -> None:
    pictures, original = digits.digit_pictures(), load_digits()
    levels = np.stack([np.asarray(picture) for picture in pictures["image"][:]])
    np.testing.assert_array_equal((levels / 255 * 16).round(), original.images)
    assert levels.max() == 255 and levels.dtype == np.uint8
    assert pictures["label"][:] == original.target.tolist()


def test_a_few_steps_on_digits_make_a_model(tmp_path: Path) -> None:
    result = digits.train_on_digits(tmp_path / "run", max_steps=2, warmup_steps=1, num_train_epochs=None)
    assert result.metrics["training"]["steps"] == 2
    assert result.metrics["test"]["pictures"] == 359
    assert (tmp_path / "run" / "learning_curve.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_digits_are_learned(seed: int, tmp_path: Path) -> None:
    result = digits.train_on_digits(tmp_path / "run", seed)
    assert result.metrics["test"]["accuracy"] >= 0.975
