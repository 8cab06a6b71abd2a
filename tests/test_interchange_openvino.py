"""Graphs for OpenVINO, run there beside the models in PyTorch, at sizes that the export has not seen."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor

from hf_attn import AttnViTImageProcessor
from hf_attn.interchange import openvino as exporting
from hf_attn.interchange.openvino import CompiledGraphs, convert_graph, export_openvino
from tests.test_cli import refuse, run
from tests.tiny import tiny_detr, tiny_vit

ROOT = Path(__file__).parents[1]
CLOSE = {"rtol": 0, "atol": 1e-5}


def outputs(directory: Path, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    found = CompiledGraphs(directory).run("model.onnx", inputs)
    return {name: torch.from_numpy(value) for name, value in found.items()}


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_vit(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("openvino") / "vit"
    tiny_vit().save_pretrained(directory)
    AttnViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    said = run("export", directory, "--to", "openvino")
    assert said.stdout == f"{directory}-openvino: written for openvino\n", said.stderr
    return Path(f"{directory}-openvino")


@torch.no_grad()
def test_a_vit_takes_pictures_of_any_size_one_after_another(exported_vit):
    graphs, model = (
        CompiledGraphs(exported_vit),
        tiny_vit(),
    )  # compiled once, and the code of the first picture is kept
    for shape in ((1, 8, 8), (1, 8, 128), (4, 104, 40), (2, 32, 32), (1, 8, 72), (17, 128, 128)):
        pixels = torch.randn(shape[0], 3, *shape[1:])
        found = graphs.run("model.onnx", {"pixel_values": pixels})["logits"]
        assert_close(torch.from_numpy(found), model(pixels).logits, **CLOSE)


def test_files_of_a_vit(exported_vit):
    names = {path.name for path in exported_vit.iterdir() if path.suffix != ".py"}
    assert names == {"model.xml", "model.bin", "config.json", "preprocessor_config.json"}
    assert AutoConfig.from_pretrained(exported_vit).id2label == tiny_vit().config.id2label
    assert AutoImageProcessor.from_pretrained(exported_vit).size == {"height": 32, "width": 32}
    weights = 4 * sum(weight.numel() for weight in tiny_vit().parameters())
    assert (exported_vit / "model.bin").stat().st_size >= weights  # in float32, then
    text = (exported_vit / "model.xml").read_text()
    assert ".onnx" not in text and ".py" not in text  # names of files on the machine that exported


def test_readmes_example(exported_vit, tmp_path, monkeypatch, capsys):
    shutil.copytree(exported_vit, tmp_path / "models" / "vit-openvino")
    Image.new("RGB", (70, 60), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^    import openvino\n(?:(?:    .*)?\n)*", readme, re.MULTILINE)
    exec(compile(re.sub("^    ", "", block, flags=re.MULTILINE), "README.md", "exec"), {})
    assert re.fullmatch(r"LABEL_[012]\n", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"antialias_positions": False, "pooling": "class_token_and_mean", "image_size": 40},
        {"pooling": "attention", "class_token": False, "layer_scale_init": 0.1, "query_key_norm": True},
        {"pad_to_patch": True, "num_register_tokens": 3, "patch_size": [8, 4], "position_embedding": "none"},
    ],
    ids=["DINOv2", "attention", "padded"],
)
@torch.no_grad()
def test_vits_of_other_kinds(tmp_path, fields):
    model = tiny_vit(**fields)
    export_openvino(model, tmp_path / "vit")
    pixels = torch.randn(2, 3, *((51, 30) if model.config.pad_to_patch else (56, 24)))
    assert_close(outputs(tmp_path / "vit", pixel_values=pixels)["logits"], model(pixels).logits, **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_a_detector_takes_pictures_of_any_size_without_padding(tmp_path):
    model = tiny_detr(encoder_layers=1, decoder_layers=1)
    export_openvino(model, tmp_path / "detr")
    graphs = CompiledGraphs(tmp_path / "detr")
    for shape in ((1, 3, 17, 17), (1, 3, 256, 256), (1, 3, 80, 50), (3, 3, 33, 129), (2, 3, 17, 64)):
        pixels, mask = torch.randn(shape), torch.ones(shape[0], *shape[2:], dtype=torch.long)
        expected, found = model(pixels), graphs.run("model.onnx", {"pixel_values": pixels, "pixel_mask": mask})
        for name in ("logits", "pred_boxes"):
            assert_close(torch.from_numpy(found[name]), expected[name], **CLOSE)
    mask[1, 12:] = 0
    for output in outputs(tmp_path / "detr", pixel_values=pixels, pixel_mask=mask).values():
        assert output[0].isfinite().all() and output[1].isnan().all()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_graphs_that_differ_are_not_kept(exported_vit, tmp_path, monkeypatch):
    def copy(source: Path, target: Path) -> None:
        for suffix in (".xml", ".bin"):
            shutil.copy(exported_vit / f"model{suffix}", target.with_suffix(suffix))

    monkeypatch.setattr(exporting, "write_graph", lambda graph, path: None)
    monkeypatch.setattr(exporting, "convert_graph", copy)
    with pytest.raises(ValueError, match=r"logits of pictures .* differ by .* OpenVINO and .* of openvino and onnxsc"):
        export_openvino(tiny_vit(seed=1), tmp_path / "vit")
    assert not list(tmp_path.iterdir())
    assert export_openvino(tiny_vit(), tmp_path / "vit").files == [tmp_path / "vit" / "model.xml"]
    with pytest.raises(FileExistsError, match="there already"):
        export_openvino(tiny_vit(), tmp_path / "vit")


def test_translators_are_refused(translator_directory, tmp_path):
    said = refuse("export", translator_directory, "--to", "openvino", "--output", tmp_path / "translator")
    assert "wrong logits" in said and "export it to onnx or ctranslate2" in said
    assert not list(tmp_path.iterdir())


def test_what_openvino_cannot_read(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"model\.onnx cannot be read by OpenVINO 20\d\d\..*; another release may"):
        convert_graph(tmp_path / "model.onnx", tmp_path / "model.xml")


@pytest.mark.parametrize("package", ["openvino", "onnxscript"])
def test_packages_that_are_missing(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"export to OpenVINO needs .*: pip install {package}, or"):
        export_openvino(tiny_vit(), tmp_path / "vit")
    assert not list(tmp_path.iterdir())
