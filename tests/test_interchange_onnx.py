"""Exported graphs in onnxruntime beside the models in PyTorch, at sizes that the export has not seen."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig

from hf_attn import (
    AttnDetrConfig,
    AttnDetrForObjectDetection,
    AttnDetrImageProcessor,
    AttnTranslatorForConditionalGeneration,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTImageProcessor,
    AttnViTModel,
)
from hf_attn.interchange import onnx as exporting
from hf_attn.interchange.exporting import export_model
from hf_attn.interchange.onnx import check_onnx, export_onnx, write_graph
from hf_attn.interchange.onnx_checks import Sessions
from hf_attn.interchange.onnx_graphs import Graph, detr_graphs, translator_graphs
from tests.tiny import DETR_VARIANTS, randomise, randomise_statistics, tiny_detr, tiny_translator, tiny_vit

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
translate_onnx = importlib.import_module("translate_onnx")

CLOSE = {"rtol": 0, "atol": 1e-4}
VIT_VARIANTS = {
    "DINOv2": {"antialias_positions": False, "pooling": "class_token_and_mean", "image_size": 40},
    "DeiT": {"pooling": "prefix_tokens", "num_register_tokens": 1, "image_size": [96, 72]},
    "eager": {"attn_implementation": "eager"},
    "sinusoids": {"position_embedding": "sinusoids", "pooling": "mean", "final_norm": "after_pooling"},
    "attention": {"pooling": "attention", "class_token": False, "layer_scale_init": 0.1, "query_key_norm": True},
    "padded": {"pad_to_patch": True, "num_register_tokens": 3, "patch_size": [8, 4], "position_embedding": "none"},
}
SMALL_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ONE_LAYER = {"encoder_layers": 1, "decoder_layers": 1}
VIT_BACKBONE = {
    "backbone_config": AttnViTConfig(**SMALL_VIT, image_size=64, patch_size=8).to_dict(),
    "backbone_kwargs": None,
    "backbone_feature": -1,
}


def outputs(directory: Path, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    found = Sessions(directory).run("model.onnx", inputs)
    return {name: torch.from_numpy(value) for name, value in found.items()}


def random_sources(batch: int, longest: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids, each sentence of another length, and their mask."""
    lengths = torch.randint(1, longest + 1, (batch, 1))
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths).long()
    return torch.randint(4, words, (batch, longest)).where(mask.bool(), 1), mask


# --- the translator --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_translator(translator_directory, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("onnx") / "translator"
    return export_model(translator_directory, "onnx", directory)  # as `hf-attn export --to onnx` does


@pytest.fixture(scope="module")
def translator(translator_directory):
    return AttnTranslatorForConditionalGeneration.from_pretrained(translator_directory)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "longest", "words"), [(4, 23, 9), (1, 1, 2)])
@torch.no_grad()
def test_logits_of_a_translator_token_by_token(exported_translator, translator, batch, longest, words):
    ids, mask = random_sources(batch, longest, translator.config.vocab_size)
    target = torch.randint(4, translator.config.vocab_size, (batch, words))
    onnx = translate_onnx.OnnxTranslator(exported_translator)
    memory = onnx.read(ids.numpy(), mask.numpy())
    past = {name.replace("encoder", "decoder"): keys[:, :, :0] for name, keys in memory.items()}
    found = []
    for word in target.numpy().T:
        inputs = {"input_ids": word[:, None], "encoder_attention_mask": mask.numpy(), **past, **memory}
        logits, *present = onnx.decoder.run(None, inputs)
        past = dict(zip(past, present, strict=True))
        found.append(torch.from_numpy(logits))
    assert_close(torch.cat(found, dim=1), translator(ids, mask, target).logits, **CLOSE)


@pytest.mark.slow
def test_greedy_translations_of_fifty_sources(exported_translator, translator):
    ids, mask = random_sources(50, 15, translator.config.vocab_size)
    found = translate_onnx.OnnxTranslator(exported_translator).generate(ids.numpy(), mask.numpy())
    expected = translator.generate(ids, attention_mask=mask, num_beams=1, do_sample=False)
    assert len({tuple(words) for words in found}) > 10
    assert [words + [1] * (expected.shape[1] - 1 - len(words)) for words in found] == expected[:, 1:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 4},
        {"max_length": 6, "forced_eos_token_id": 2, "bad_words_ids": [[7], [9]]},
        {"max_length": 6, "forced_bos_token_id": 17},
    ],
    ids=str,
)
def test_settings_of_generation_are_followed(exported_translator, translator, tmp_path, settings):
    directory = shutil.copytree(exported_translator, tmp_path / "onnx")
    GenerationConfig(**{**GenerationConfig.from_pretrained(directory).to_diff_dict(), **settings}).save_pretrained(
        directory
    )
    ids, mask = random_sources(5, 8, translator.config.vocab_size)
    found = translate_onnx.OnnxTranslator(directory).generate(ids.numpy(), mask.numpy())
    expected = translator.generate(ids, attention_mask=mask, num_beams=1, do_sample=False, **settings)
    assert [words + [1] * (expected.shape[1] - 1 - len(words)) for words in found] == expected[:, 1:].tolist()


@pytest.mark.slow
def test_settings_that_are_not_followed_are_refused(exported_translator, tmp_path):
    directory = shutil.copytree(exported_translator, tmp_path / "onnx")
    GenerationConfig(repetition_penalty=1.2, eos_token_id=2).save_pretrained(directory)
    with pytest.raises(ValueError, match="repetition_penalty"):
        translate_onnx.OnnxTranslator(directory)


@pytest.mark.slow
def test_the_example_translates_without_torch(exported_translator, translator, translator_directory):
    code = "import sys, typer, translate_onnx; typer.run(translate_onnx.main)"
    guard = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'hf_attn'])); "
    texts = ["Das ist ein Satz.", "Noch ein Satz </s> folgt.", ""]
    run = subprocess.run(
        [sys.executable, "-c", guard + code, str(exported_translator)],
        input="\n".join(texts) + "\n",
        capture_output=True,
        text=True,
        cwd=EXAMPLES,
    )
    assert run.returncode == 0, run.stderr
    tokenizer = AutoTokenizer.from_pretrained(translator_directory)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    expected = translator.generate(**batch, num_beams=1, do_sample=False)
    decoded = tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert run.stdout == "".join(f"{text}\n" for text in decoded)


@pytest.mark.slow
def test_files_beside_a_translator(exported_translator, translator_directory):
    assert {path.name for path in exported_translator.iterdir()} == {
        *("encoder.onnx", "decoder.onnx", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    ours, theirs = (AutoConfig.from_pretrained(path) for path in (translator_directory, exported_translator))
    assert theirs.architectures == ["AttnTranslatorForConditionalGeneration"] and not hasattr(theirs, "auto_map")
    assert theirs.hidden_size == ours.hidden_size
    for graph in exported_translator.glob("*.onnx"):  # names of files on the machine that exported
        assert b".py" not in graph.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("eager", {"norm_position": "pre", "position_layout": "halves", "encoder_layers": 1}),
        ("sdpa", {"logits_bias": True, "share_embeddings": False, "decoder_vocab_size": 37, "decoder_layers": 3}),
    ],
    ids=["eager", "sdpa"],
)
def test_translators_of_every_kind(tmp_path, kernel, fields):
    model = tiny_translator(**fields)
    model.set_attn_implementation(kernel)
    assert export_onnx(model, tmp_path / "onnx").difference <= 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_translators_graphs_are_traced_for_any_sizes():
    model = tiny_translator()
    encoder, decoder = (
        torch.export.export(graph.module.eval(), graph.inputs, dynamic_shapes=graph.sizes).module()
        for graph in translator_graphs(model)
    )
    for batch, longest, words in ((3, 11, 4), (1, 1, 2)):
        ids, mask = random_sources(batch, longest, 41)
        target = torch.randint(4, 41, (batch, words))
        expected = model(ids, mask, target)
        memory, pairs = encoder(ids, mask)
        assert_close(memory, expected.encoder_last_hidden_state)
        past = [tuple(keys[:, :, :0] for keys in pair) for pair in pairs]
        for place, word in enumerate(target.split(1, dim=1)):
            logits, past = decoder(word, mask, past, pairs)
            assert_close(logits, expected.logits[:, place : place + 1], rtol=1e-5, atol=1e-5)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_vit(tmp_path_factory) -> Path:
    saved, directory = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("onnx") / "vit"
    tiny_vit().save_pretrained(saved)
    AttnViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(saved)
    return export_model(saved, "onnx", directory)


@pytest.mark.parametrize("shape", [(1, 3, 8, 72), (4, 3, 104, 40), (2, 3, 32, 32), (1, 3, 8, 8)])
@torch.no_grad()
def test_a_vit_takes_pictures_of_any_size(exported_vit, shape):
    pixels = torch.randn(shape)
    assert_close(outputs(exported_vit, pixel_values=pixels)["logits"], tiny_vit()(pixels).logits, **CLOSE)


def test_files_beside_a_vit(exported_vit):
    assert AutoConfig.from_pretrained(exported_vit).id2label == tiny_vit().config.id2label
    assert AutoImageProcessor.from_pretrained(exported_vit).size == {"height": 32, "width": 32}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VIT_VARIANTS)
@torch.no_grad()
def test_vits_of_every_kind(tmp_path, variant):
    fields = dict(VIT_VARIANTS[variant])
    implementation = fields.pop("attn_implementation", "sdpa")
    model = tiny_vit(**fields)
    model.set_attn_implementation(implementation)
    export_onnx(model, tmp_path / "onnx")
    height, width = (51, 30) if model.config.pad_to_patch else (56, 24)
    pixels = torch.randn(2, 3, height, width)
    assert_close(outputs(tmp_path / "onnx", pixel_values=pixels)["logits"], model(pixels).logits, **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_a_vit_without_a_head(tmp_path):
    model = randomise(AttnViTModel(AttnViTConfig(**SMALL_VIT, image_size=32, patch_size=8))).eval()
    export_onnx(model, tmp_path / "onnx")
    pixels = torch.randn(2, 3, 40, 64)
    expected, found = model(pixels), outputs(tmp_path / "onnx", pixel_values=pixels)
    for name in ("last_hidden_state", "pooler_output"):
        assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_vit_base_as_large_as_it_is(tmp_path):
    model = randomise(AttnViTForImageClassification(AttnViTConfig(num_labels=1000)), std=0.02).eval()
    assert export_onnx(model, tmp_path / "onnx").difference <= 1e-4
    for shape in ((2, 3, 384, 384), (1, 3, 160, 256)):  # more and fewer positions than were learned
        pixels = torch.randn(shape)
        assert_close(outputs(tmp_path / "onnx", pixel_values=pixels)["logits"], model(pixels).logits, **CLOSE)


@pytest.fixture(scope="module")
def exported_detr(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("onnx") / "detr"
    export_onnx(tiny_detr(**ONE_LAYER), directory, AttnDetrImageProcessor())
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 80, 50), (3, 3, 33, 129), (2, 3, 17, 64)])
@torch.no_grad()
def test_a_detector_takes_pictures_of_any_size(exported_detr, shape):
    pixels, mask = torch.randn(shape), torch.ones(shape[0], *shape[2:], dtype=torch.long)
    expected, found = tiny_detr(**ONE_LAYER)(pixels), outputs(exported_detr, pixel_values=pixels, pixel_mask=mask)
    assert_close(found["logits"], expected.logits, **CLOSE)
    assert_close(found["pred_boxes"], expected.pred_boxes, **CLOSE)


@pytest.mark.slow
def test_what_is_said_of_a_padded_picture_is_no_number(exported_detr):
    pixels, mask = half_padded()
    for output in outputs(exported_detr, pixel_values=pixels, pixel_mask=mask).values():
        assert output[0].isfinite().all() and output[1].isnan().all()


def half_padded() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, mask = torch.randn(2, 3, 64, 48), torch.ones(2, 64, 48, dtype=torch.long)
    mask[1, 50:] = 0
    return pixels, mask


@torch.no_grad()
def test_a_detectors_graph_before_it_is_traced():
    model = tiny_detr(**ONE_LAYER)
    (graph,) = detr_graphs(model)
    pixels, mask = half_padded()
    expected = model(pixels)
    assert_close(graph.module(pixels, torch.ones_like(mask)), (expected.logits, expected.pred_boxes))
    for output, whole in zip(graph.module(pixels, mask), (expected.logits, expected.pred_boxes), strict=True):
        assert torch.equal(output[0], whole[0]) and output[1].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["all", "vit", "convolution of stride 32"])
@torch.no_grad()
def test_detectors_of_every_kind(tmp_path, variant):
    fields = {**DETR_VARIANTS, "vit": VIT_BACKBONE, "convolution of stride 32": {"backbone_feature": -1}}[variant]
    model = tiny_detr(**fields)
    export_onnx(model, tmp_path / "onnx")
    pixels, mask = torch.randn(2, 3, 120, 88), torch.ones(2, 120, 88, dtype=torch.long)
    expected, found = model(pixels), outputs(tmp_path / "onnx", pixel_values=pixels, pixel_mask=mask)
    assert_close(found["logits"], expected.logits, **CLOSE)
    assert_close(found["pred_boxes"], expected.pred_boxes, **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_detr_r50_as_large_as_it_is(tmp_path):
    model = AttnDetrForObjectDetection(AttnDetrConfig(num_labels=91))
    model = randomise_statistics(randomise(model, std=0.01)).eval()
    assert export_onnx(model, tmp_path / "onnx").difference <= 1e-4
    pixels, mask = torch.randn(1, 3, 480, 333), torch.ones(1, 480, 333, dtype=torch.long)
    expected, found = model(pixels), outputs(tmp_path / "onnx", pixel_values=pixels, pixel_mask=mask)
    assert_close(found["logits"], expected.logits, **CLOSE)
    assert_close(found["pred_boxes"], expected.pred_boxes, **CLOSE)


# --- what is not kept, and what is refused ---------------------------------------------------------------------------


def test_graphs_that_differ_are_not_kept(exported_vit, tmp_path, monkeypatch):
    other = tiny_vit(seed=1)
    with pytest.raises(ValueError, match=r"logits of pictures \(1, 3, 32, 32\) differ by"):
        check_onnx(other, exported_vit)
    monkeypatch.setattr(exporting, "write_graph", lambda graph, path: shutil.copy(exported_vit / graph.name, path))
    with pytest.raises(ValueError, match="differ by"):
        export_onnx(other, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(tiny_vit(), tmp_path / "onnx").files == [tmp_path / "onnx" / "model.onnx"]


def test_what_is_there_is_not_replaced(exported_vit):
    with pytest.raises(FileExistsError, match="there already"):
        export_onnx(tiny_vit(), exported_vit)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_traced(tmp_path):
    graph = Graph("model.onnx", Branching(), (torch.randn(2, 3),), ({},), ["x"], ["y"])
    with pytest.raises(ValueError, match=r"model\.onnx cannot be traced for inputs of every size: "):
        write_graph(graph, tmp_path / graph.name)


@pytest.mark.slow
def test_large_weights_lie_beside_their_graph(tmp_path, monkeypatch):
    layer, x = torch.nn.Linear(64, 64), torch.randn(2, 64)
    graph = Graph("model.onnx", layer, (x,), ({},), ["x"], ["y"])
    monkeypatch.setattr(exporting, "LARGEST_FILE", 4 * 64 * 65)
    write_graph(graph, tmp_path / graph.name)
    assert (tmp_path / "model.onnx").stat().st_size < 4 * 64 * 64 <= (tmp_path / "model.onnx.data").stat().st_size
    moved = shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert_close(outputs(Path(moved), x=x)["y"], layer(x).detach(), **CLOSE)


def test_models_that_are_refused(tmp_path, monkeypatch):
    vit = tiny_vit()
    faults = {
        "training mode": tiny_vit().train(),
        "bfloat16 on cpu": tiny_vit().bfloat16(),
        "AttnViTForMaskedImageModeling, which has no graph": AttnViTForMaskedImageModeling(vit.config).eval(),
    }
    for message, model in faults.items():
        with pytest.raises(ValueError, match=message):
            export_onnx(model, tmp_path / "onnx")
    monkeypatch.setattr(vit.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ValueError, match=r"flex_attention.*set_attn_implementation"):
        export_onnx(vit, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_graph(tmp_path):
    with pytest.raises(ValueError, match="AttnViTForMaskedImageModeling, which has no graph in ONNX; these have"):
        export_onnx(AttnViTForMaskedImageModeling(tiny_vit().config), tmp_path / "onnx")


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-attn\[interchange\]'"):
        export_onnx(tiny_vit(), tmp_path / "onnx")


def test_outputs_of_another_shape_are_no_match():
    compared = iter([("logits", torch.zeros(2, 3), np.zeros((2, 1), np.float32))])
    with pytest.raises(ValueError, match=r"logits are \(2, 1\) in ONNX and \(2, 3\) in PyTorch"):
        exporting.largest_difference(compared)
