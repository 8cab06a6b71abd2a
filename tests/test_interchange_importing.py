"""`hf-attn import` writes a model that is right, or nothing; what a file is, its names tell."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_attn import AttnViTForImageClassification
from hf_attn.interchange.importing import import_checkpoint
from tests.test_cli import refuse, run
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
