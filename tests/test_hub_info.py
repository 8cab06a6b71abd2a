"""What is said of a model agrees with the model, and none of it is loaded or run."""

import json
import re

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_attn.hub_files import LocalFiles
from hf_attn.hub_info import class_names, describe, how_to_use, in_bytes, kind, lines, shape
from tests.hub_fake import of_model, save_model
from tests.tiny import tiny_detr, tiny_translator, tiny_vit


@pytest.mark.parametrize(
    ("model", "words", "task", "some_of_shape"),
    [
        (tiny_translator, "translator", "translation", {"encoder layers": 2, "vocabulary": 41, "width": 16}),
        (tiny_vit, "picture classifier", "image-classification", {"layers": 2, "heads": 2, "patch": 8}),
        (tiny_detr, "object detector", "object-detection", {"decoder layers": 2, "queries": 7}),
    ],
)
def test_our_models_are_described(tmp_path, model, words, task, some_of_shape):
    network = model().to(torch.bfloat16)
    network.save_pretrained(tmp_path)
    facts = describe(LocalFiles(tmp_path))
    assert (facts["kind"], facts["task"], facts["class"]) == (words, task, type(network).__name__)
    assert facts["dtypes"] == {"bfloat16": network.num_parameters()}
    assert some_of_shape.items() <= facts["shape"].items()
    assert "layers" not in facts["shape"] or "encoder layers" not in facts["shape"]
    assert facts["use"].startswith("hf-attn ")
    assert facts["warnings"] == []
    assert json.loads(json.dumps(facts)) == facts


def test_a_model_of_transformers_is_described(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32)
    network = ViTForImageClassification(config)
    network.save_pretrained(tmp_path)
    facts = describe(LocalFiles(tmp_path))
    assert facts["parameters"] == network.num_parameters()
    assert (facts["family"], facts["model_type"], facts["library"]) == (None, "vit", "transformers")
    assert facts["classes"] == ["LABEL_0", "LABEL_1"]  # which its configuration leaves out


def test_one_screen_says_it_in_words(tmp_path):
    directory = save_model(tmp_path / "vit")
    (directory / "pytorch_model.bin").write_bytes(b"")
    (directory / "modeling_x.py").write_text("raise SystemError('was run')")
    for number in range(20):
        (directory / f"{number:02}.txt").write_text("x")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.X", "AutoConfig": "modeling_y.Y"}
    (directory / "config.json").write_text(json.dumps(config))
    said = list(lines(describe(LocalFiles(directory))))
    assert len(said) < 40
    text = "\n".join(said)
    assert "picture classifier, a Vision Transformer (Dosovitskiy et al. 2021)" in said[0]
    assert f"parameters  {tiny_vit().num_parameters():,} (float32)" in said
    assert "classes     3: LABEL_0, LABEL_1, LABEL_2" in said
    assert "licence     mit" in said
    assert "config.json asks for modeling_x.X, modeling_y.Y, which runs only with trust_remote_code=True" in text
    assert re.search(r"code        attention.py, .* more;", text)
    assert f"in {len(of_model(directory)) + 21 - 12} more" in text
    assert "in 5 more files, which `push` leaves out" in text
    assert (
        "warning     pickle files, which may run code when they are read: pytorch_model.bin, training_args.bin" in text
    )
    assert "warning     config.json names code that is not there: modeling_y.py" in said


def test_what_is_unknown_is_said_to_be(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3}')
    (tmp_path / "README.md").write_text("---\nmodel-index: [1]\nlicense: mit\n---\n")
    facts = describe(LocalFiles(tmp_path))
    assert (facts["class"], facts["kind"], facts["library"], len(facts["classes"])) == ("resnet18", "model", None, 3)
    assert facts["warnings"] == [
        "README.md: its model-index has no scores",
        "no weights in safetensors that transformers would load",
    ]
    text = "\n".join(lines(facts))
    assert "library unknown, task unknown" in text and "parameters  unknown" in text
    (tmp_path / "README.md").write_text("# x")
    assert "has no YAML" in describe(LocalFiles(tmp_path))["warnings"][0]


def test_scores_are_those_of_the_card(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    result = "{task: {type: t}, dataset: {name: D, type: d, split: test}, metrics: [{type: bleu, value: 1.5}]}"
    (tmp_path / "README.md").write_text(f"---\nmodel-index: [{{name: x, results: [{result}]}}]\n---\n")
    facts = describe(LocalFiles(tmp_path))
    assert facts["scores"] == [{"dataset": "D", "split": "test", "metric": "bleu", "value": 1.5}]
    assert "score       bleu 1.5 on D (test)" in lines(facts)


def test_small_parts():
    assert kind("MarianMTModel") == ("translator", "translation") and kind(None) == ("model", None)
    assert shape({"text_config": {"n_layer": 3}, "image_size": [2, 3], "d_model": 4}) == {
        "layers": 3,
        "width": 4,
        "picture": "2x3",
    }
    assert class_names({}, "XModel") == [] and class_names({"num_labels": 1}, None) == ["LABEL_0"]
    custom = {"model_type": "x", "auto_map": {"AutoModel": "a.B"}}
    assert how_to_use("m", custom, None) == 'AutoModel.from_pretrained("m", trust_remote_code=True)'
    assert how_to_use("m", {"model_type": "attn_vit"}, "t") == 'import hf_attn; pipeline("t", model="m")'
    assert how_to_use("m", {}, None) == "with the library that made it, see README.md"
    assert [in_bytes(size) for size in (999, 1_500, 2_000_000, 3_210_000_000)] == [
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3.2 GB",
    ]


def test_a_model_without_a_type_is_described_without_one(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "num_classes": 3}')
    assert not any("None" in line for line in lines(describe(LocalFiles(tmp_path))))
