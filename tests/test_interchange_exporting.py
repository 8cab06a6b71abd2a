"""`hf-attn export` writes what another library loads, where it is asked to, or says what that library lacks."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_attn import train_tokenizer
from hf_attn.interchange.exporting import EXPORTS
from tests.test_cli import refuse, run
from tests.tiny import randomise, tiny_detr, tiny_translator, tiny_vit


@torch.no_grad()
def test_a_model_goes_where_it_is_told_and_beside_itself_else(tmp_path):
    ours = tiny_vit().eval()
    randomise(ours, std=0.1)
    ours.save_pretrained(tmp_path / "vit")
    said = run("export", tmp_path / "vit", "--to", "transformers")
    assert (said.exit_code, said.stdout) == (0, f"{tmp_path / 'vit-transformers'}: written for transformers\n")
    assert run("export", tmp_path / "vit", "--to", "timm", "--output", tmp_path / "timm").exit_code == 0
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "vit-transformers").eval()
    assert isinstance(theirs, ViTForImageClassification)
    pixels = torch.randn(2, 3, 32, 32)
    assert_close(theirs(pixels).logits, ours(pixels).logits, rtol=0, atol=1e-5)
    assert (tmp_path / "timm" / "model.safetensors").is_file()
    again = tmp_path / "again"
    assert run("import", tmp_path / "vit-transformers", again, "--quiet").exit_code == 0
    back = AutoModelForImageClassification.from_pretrained(again).eval()
    assert_close(back(pixels).logits, ours(pixels).logits, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    tiny_translator().save_pretrained(tmp_path / "translator")
    assert "timm has no model of type 'attn_translator'" in refuse("export", tmp_path / "translator", "--to", "timm")
    assert f"--to 'jax' is unknown; use {', '.join(sorted(EXPORTS))}" in refuse("export", tmp_path, "--to", "jax")
    assert "holds no model: it has no config.json" in refuse("export", tmp_path, "--to", "onnx")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path / "theirs")
    assert "of type 'vit', not ours; `hf-attn import`" in refuse("export", tmp_path / "theirs", "--to", "timm")
    tiny_detr(conditional_attention=True).save_pretrained(tmp_path / "detr")
    assert "conditional" in refuse("export", tmp_path / "detr", "--to", "transformers")
    there = tmp_path / "translator"
    assert "is there already" in refuse("export", tmp_path / "detr", "--to", "transformers", "--output", there)
    assert {path.name for path in tmp_path.iterdir()} == {"translator", "theirs", "detr"}


def without(name: str):
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.embeddings.positions"), "lacks 1 tensor of AttnViTForImageClassification, or has"),
        (
            lambda weights: weights | {"classifier.bias": torch.ones(4)},
            "or has them in other sizes: classifier.bias; ",
        ),
    ],
    ids=["missing", "another size"],
)
def test_of_weights_that_are_not_whole_nothing_is_made(change, message, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    assert message in refuse("export", tmp_path / "vit", "--to", "transformers")
    file.write_bytes(file.read_bytes()[:999])
    assert "the weights are damaged" in refuse("export", tmp_path / "vit", "--to", "transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


@pytest.mark.parametrize(("make", "file"), [(tiny_vit, "preprocessor_config.json"), (tiny_translator, "tokenizer")])
def test_a_damaged_companion_is_not_left_behind(make, file, tmp_path):
    make(**({} if make is tiny_vit else {"position_layout": "halves"})).save_pretrained(tmp_path / "model")
    if make is tiny_translator:
        train_tokenizer(["a b c"] * 3, 300).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_text("{")
    else:
        (tmp_path / "model" / file).write_text("{")
    assert f"has a {file}" in refuse("export", tmp_path / "model", "--to", "transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("named", [None, ["Other"]])
def test_a_class_that_is_none_of_ours_is_named(named, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    file = tmp_path / "vit" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": named}))
    message = f"is of class {(named or [''])[0]!r} by its config.json, and none of ours has that name"
    assert message in refuse("export", tmp_path / "vit", "--to", "transformers")


@pytest.mark.slow
def test_a_process_of_its_own_knows_all_models(tmp_path):
    """What `import hf_attn` does elsewhere, the commands do."""
    tiny_vit().save_pretrained(tmp_path / "vit")
    code = """
import sys
sys.argv = ["hf-attn"]
from hf_attn.__main__ import app
vit, theirs, ours = sys.argv_of_test
app(["export", vit, "--to", "transformers", "--output", theirs], standalone_mode=False)
app(["import", theirs, ours, "--quiet"], standalone_mode=False)
"""
    places = [str(tmp_path / name) for name in ("vit", "theirs", "ours")]
    code = code.replace("sys.argv_of_test", repr(places))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ours" / "modeling_vit.py").is_file()  # the code that reads it, too


@pytest.mark.parametrize("to", EXPORTS)
def test_every_target_has_its_function(to):
    for place in EXPORTS[to].values():
        module, name = place.split(".")
        assert callable(getattr(import_module(f"hf_attn.interchange.{module}"), name))
