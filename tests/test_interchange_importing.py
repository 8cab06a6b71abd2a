"""`hf-attn import` writes a model that is right, or nothing; what a file is, its names tell."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_attn import AttnViTForImageClassification
from hf_attn.interchange import early_checks
from hf_attn.interchange.exporting import EXPORTS
from hf_attn.interchange.families import FORMATS
from hf_attn.interchange.importing import import_checkpoint
from tests.test_cli import refuse, run
from tests.test_interchange_vit_jax import FILES as ARRAYS
from tests.tiny import randomise, tiny_vit

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def directory(tmp_path):
    network = ViTForImageClassification(ViTConfig(**SHAPE, image_size=32, patch_size=8, num_labels=4))
    randomise(network, std=0.1)
    network.save_pretrained(tmp_path / "theirs")
    ViTImageProcessor(size=32, image_mean=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_a_directory_becomes_one_of_ours(directory, tmp_path):
    result = run("import", directory, tmp_path / "ours")
    assert result.exit_code == 0, result.stderr
    parameters = sum(weight.numel() for weight in load_file(directory / "model.safetensors").values())
    assert result.stdout == (
        f"{tmp_path / 'ours'}: AttnViTForImageClassification, {parameters:,} parameters in float32, 4 classes, "
        "AttnViTImageProcessor\n"
    )
    assert "a ViT of transformers, to become AttnViTForImageClassification" in result.stderr
    direct = AttnViTForImageClassification.from_pretrained(directory).state_dict()
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in direct.items())
    assert json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())["image_mean"] == [0.4, 0.5, 0.6]
    assert run("card", tmp_path / "ours", "--check").stdout.count("\n") == 1  # no licence, and nothing else
    facts = json.loads(run("import", directory, tmp_path / "again", "--json", "--quiet").stdout)
    assert (facts["classes"], facts["parameters"]) == (4, parameters)


def test_nothing_is_overwritten_and_nothing_half_written(directory, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "is there already; give a directory that is not" in refuse("import", directory, tmp_path / "full")
    weights = load_file(directory / "model.safetensors")
    weights["vit.layernorm.bias"][0] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert "are no numbers: model.final_norm.bias" in refuse("import", directory, tmp_path / "out", "--quiet")
    save_file({**weights, "other": torch.ones(1)}, directory / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensor that no such model has: other" in refuse("import", directory, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "full"}


def test_what_is_no_checkpoint_is_refused(directory, tmp_path):
    out = tmp_path / "out"
    assert "no such model could be had from the Hub" in refuse("import", tmp_path / "nowhere", out)
    assert "--format 'x' is unknown; use " in refuse("import", directory, out, "--format", "x")
    tiny_vit().save_pretrained(tmp_path / "own")
    assert "of type 'attn_vit' already" in refuse("import", tmp_path / "own", out)
    (tmp_path / "empty").mkdir()
    assert "has no config.json, or a damaged one; give the file" in refuse("import", tmp_path / "empty", out)
    (tmp_path / "text.pth").write_text("no weights")
    assert "holds more than tensors, or is broken" in refuse("import", tmp_path / "text.pth", out)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    unknown = refuse("import", tmp_path / "a.safetensors", out)
    assert "vit-torchvision by its 1 name (a); give the weights of a model" in unknown
    assert not out.exists()


def test_fields_of_the_configuration_count_more_than_the_checkpoint_and_are_checked(directory, tmp_path):
    result = run("import", directory, tmp_path / "ours", "--config", "image_size=48", "--config", "dropout=0.25")
    assert result.exit_code == 0, result.stderr
    config = AttnViTForImageClassification.from_pretrained(tmp_path / "ours").config
    assert (config.image_size, config.dropout, config.num_attention_heads) == (48, 0.25, 4)
    for assignment, message in {
        "hidden_sise=32": "AttnViTConfig has no field 'hidden_sise'; was 'hidden_size' meant? Correct the name",
        "num_attention_heads=5": "hidden_size 32 is not a multiple of num_attention_heads 5",
        "activation_function=gelo": "activation_function 'gelo' is unknown; use one of",
        "num_attention_heads=five": "Field 'num_attention_heads' expected int, got str (value: 'five')",
        "id2label=cat": """id2label is 'cat'; write it as {"0": "cat", "1": "dog"}""",
        'id2label={"0": 3}': "id2label is {'0': 3}; write it as",
        'id2label={"cat": "0"}': "id2label is {'cat': '0'}; write it as",
        **{
            f"{name}=1": f"AttnViTConfig has no field '{name}'"
            for name in ("format", "dtype", "tell", "config", "source")
        },
    }.items():
        assert message in refuse("import", directory, tmp_path / "out", "--quiet", "--config", assignment)
    result = run("import", directory, tmp_path / "out", "--config", "hidden_size")
    assert result.exit_code == 2 and "has no '='; write it as hidden_size=64" in result.stderr
    assert not (tmp_path / "out").exists()


def test_code_in_a_pickle_does_not_run(directory, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"vit.layernorm.bias": Code()}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds more than tensors"):
        import_checkpoint(directory, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_weights_get_the_type_that_is_asked_for(directory, tmp_path):
    result = run("import", directory, tmp_path / "half", "--dtype", "float16")
    assert result.exit_code == 0 and " parameters in float16, 4 classes" in result.stdout, result.stderr
    import_checkpoint(directory, tmp_path / "double", dtype=torch.float64)
    theirs = load_file(directory / "model.safetensors")["classifier.weight"]
    for name, dtype in (("half", torch.float16), ("double", torch.float64)):
        assert torch.equal(load_file(tmp_path / name / "model.safetensors")["classifier.weight"], theirs.to(dtype))


def test_a_format_that_does_not_fit_is_refused_with_what_the_file_is(directory, tmp_path):
    jax, out = tmp_path / "weights.npz", tmp_path / "out"
    np.savez(jax, **ARRAYS["the paper's"][0])
    said = refuse("import", jax, out, "--format", "vit-timm")
    assert f"{jax} (weights of a ViT of timm): it lacks 'patch_embed.proj.weight'. --format vit-timm does" in said
    assert "does not fit: by its names, the file is vit-jax" in said
    for name in FORMATS.keys() - {"vit-jax"}:
        assert f"--format {name} does not fit: by its names, the file is vit-jax" in refuse(
            "import", jax, out, "--format", name
        )
    theirs = directory / "model.safetensors"
    for name in FORMATS:
        assert f"--format {name} does not fit: by its names, the file is none of" in refuse(
            "import", theirs, out, "--format", name
        )
    assert not out.exists()


def test_options_that_would_not_be_read_are_refused(directory, tmp_path):
    out, file = tmp_path / "out", directory / "model.safetensors"
    for source, what in ((directory, "a directory"), ("you/model", "no file"), (tmp_path / "none.pth", "no file")):
        said = refuse("import", source, out, "--format", "vit-timm")
        assert f"--format is for a file of weights, and {source} is {what}; leave it out" in said
        with pytest.raises(ValueError, match="--format is for a file of weights"):
            import_checkpoint(source, out, format="vit-timm")
    for source in (directory, file):
        said = refuse("import", source, out, "--revision", "main")
        assert f"--revision is for models on the Hub, and {source} is on this disk; leave it out" in said


def test_what_is_wrong_at_once_is_said_before_torch_is_imported(directory, tmp_path):
    assert set(early_checks.FORMATS) == set(FORMATS) and set(early_checks.TARGETS) == set(EXPORTS)
    code = """
import sys
from hf_attn.__main__ import app
try:
    app(sys.argv[1:])
except SystemExit as leaving:
    print(leaving.code, "torch" in sys.modules)
"""
    for arguments, message in (
        (["import", directory, tmp_path / "out", "--format", "x"], "--format 'x' is unknown; use detr-dc5-original, "),
        (["import", directory, directory], "is there already; give a directory that is not"),
        (
            ["export", directory, "--to", "jax"],
            "--to 'jax' is unknown; use ctranslate2, onnx, openvino, timm, transformers",
        ),
        (["export", directory, "--to", "onnx", "-o", directory], "is there already; give a directory that is not"),
    ):
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'hf-attn'\n" + code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout == "1 False\n" and message in done.stderr, done.stderr


def test_of_what_fills_in_masked_patches_the_encoder_is_imported_and_that_is_said(tmp_path):
    masked = ViTConfig(**SHAPE, image_size=32, patch_size=8, encoder_stride=8)
    mae = ViTMAEConfig(**SHAPE, image_size=32, patch_size=8, decoder_hidden_size=16, decoder_num_attention_heads=2)
    for name, network in (
        ("simmim", ViTForMaskedImageModeling(masked)),
        ("mae", ViTMAEForPreTraining(mae)),
    ):
        network.save_pretrained(tmp_path / name)
        result = run("import", tmp_path / name, tmp_path / f"{name}-ours")
        assert "AttnViTModel, " in result.stdout, result.stderr
        assert f"{name}: its decoder, which filled in masked patches, is left out\n" in result.stderr
    ViTModel(masked).save_pretrained(tmp_path / "plain")
    assert "decoder" not in run("import", tmp_path / "plain", tmp_path / "plain-ours").stderr
