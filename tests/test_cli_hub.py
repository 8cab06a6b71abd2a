"""`hf-attn info`, `card` and `push`: results on stdout, one line a mistake, and no torch where none is needed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.hub_fake import ADDRESS, FakeHub, copied, of_model, save_model
from tests.loopback_hub import LoopbackHub
from tests.test_cli import ROOT, refuse, run


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "vit")


@pytest.fixture
def model(saved, tmp_path) -> Path:
    return copied(saved, tmp_path / "vit")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return hub


@pytest.mark.parametrize("command", ["info", "card", "push", "convert"])
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Example" in result.stdout


def test_info_reads_a_directory_without_torch_and_without_the_hub(saved):
    script = (
        f"import runpy, sys; sys.argv = ['hf-attn', 'info', {str(saved)!r}]\n"
        "try: runpy.run_module('hf_attn', run_name='__main__')\n"
        "except SystemExit as leaving:\n"
        "    print(leaving.code, sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"
    assert run.stdout.startswith(f"{saved}: picture classifier") and run.stderr == ""


def test_info_of_a_directory_and_of_the_hub_agree(model, hub):
    hub.create_repo("me/vit", exist_ok=True)
    hub.repositories["me/vit"]["v1"] = {name: (model / name).read_bytes() for name in of_model(model)}
    here = json.loads(run("info", model, "--json").stdout)
    there = json.loads(run("info", "me/vit", "--revision", "v1", "--json").stdout)
    different = {"model", "use", "training_files", "pickles", "warnings"}
    assert {name: here[name] for name in here if name not in different} == {
        name: there[name] for name in there if name not in different
    }
    assert there["use"] == "hf-attn classify picture.jpg --model me/vit" and there["warnings"] == []


def test_info_does_not_let_a_stranger_steer_the_terminal(model):
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "\x1b[31mred"}
    (model / "config.json").write_text(json.dumps(config))
    assert "classes     1: \N{REPLACEMENT CHARACTER}[31mred\n" in run("info", model).stdout


def test_info_says_what_is_wrong(model, hub):
    assert "no such directory, and no name on the Hub" in refuse("info", model / "nowhere")
    assert "no such model that the Hub would give" in refuse("info", "me/vit")
    refuse("info", model, "--revision", "main", code=2)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    assert f"is cut off: it has {len(weights) - 100:,} bytes" in refuse("info", model)
    (model / "config.json").write_text("{")
    assert "is not JSON" in refuse("info", model)
    (model / "config.json").unlink()
    assert "no config.json" in refuse("info", model)


def test_a_card_is_written_once_and_checked(model):
    assert "is there already; give --force" in refuse("card", model)
    (model / "README.md").unlink()
    assert "has no README.md" in refuse("card", model, "--check")
    assert "--license apache2 is none that the Hub knows" in refuse("card", model, "--license", "apache2")
    assert run("card", model).stdout.startswith(f"{model}/README.md: written")
    incomplete = run("card", model, "--check")
    assert incomplete.exit_code == 1
    assert incomplete.stdout.startswith(f"{model}/README.md: no license") and incomplete.stdout.count("\n") == 1
    assert incomplete.stderr == f"hf-attn: {model}/README.md is not complete: 1 to mend, listed above\n"
    assert run("card", model, "--force", "--license", "apache-2.0").exit_code == 0
    assert run("card", model, "--check").stdout == f"{model}/README.md: complete\n"
    assert run("card", model, "--output", model / "other.md").exit_code == 0
    assert "license" not in (model / "other.md").read_text().split("---")[1]
    refuse("card", model, "--check", "--force", code=2)
    assert "no such directory" in refuse("card", model / "nowhere")


def test_push_says_what_it_does_on_stderr_and_the_address_on_stdout(model, hub):
    result = run("push", model, "vit", "--private")
    assert (result.exit_code, result.stdout) == (0, f"{ADDRESS}/me/vit\n")
    assert f"{model} to vit: 11 files, " in result.stderr and "model.safetensors" in result.stderr
    quiet = run("push", model, "me/vit", "--revision", "next", "--message", "Second", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (f"{ADDRESS}/me/vit/tree/next\n", "")
    assert hub.messages == ["Upload a model with hf-attn push", "Second"]


def test_push_refuses_in_one_line(model, hub):
    assert "a/b/c is no name of a repository" in refuse("push", model, "a/b/c")
    assert "no such directory" in refuse("push", model / "nowhere", "vit")
    hub.breaks = KeyboardInterrupt()
    result = run("push", model, "vit")
    assert result.stderr.splitlines()[-1] == (
        "hf-attn: interrupted; vit has no part of it: repeat the command to go on"
    )
    (model / "README.md").write_text("---\na: [\n---\n")
    assert re.search("README.md: its YAML cannot be read", refuse("push", model, "vit"))
    assert hub.messages == []


def test_the_hub_has_all_of_a_push_or_none(model, tmp_path):
    with LoopbackHub() as there:

        def call(*arguments: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "hf_attn", *map(str, arguments)]
            return subprocess.run(
                command, cwd=ROOT, env=there.environment(tmp_path / "home"), capture_output=True, text=True
            )

        first = call("push", model, "vit", "--revision", "next")
        assert (first.returncode, first.stdout) == (0, f"{there.url}/someone/vit/tree/next\n"), first.stderr
        before = there.files("someone/vit", "next")
        assert before.keys() == {".gitattributes", *of_model(model)}
        (model / "old.py").write_text("")
        there.fail_on("commit", "cut")
        cut = call("push", model, "someone/vit", "--revision", "next", "--quiet")
        assert cut.returncode == 1 and "the Hub cannot be reached, or hung up" in cut.stderr
        assert there.files("someone/vit", "next") == before
        facts = json.loads(call("info", "someone/vit", "--revision", "next", "--json").stdout)
        assert facts["parameters"] == json.loads(run("info", model, "--json").stdout)["parameters"] > 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_plain_file_is_left_alone(model, hub):
    os.mkfifo(model / "pipe")
    (model / "dangling").symlink_to("nowhere")
    assert run("push", model, "vit").exit_code == 0
    assert not {"pipe", "dangling"} & hub.repositories["me/vit"]["main"].keys()


def test_convert_makes_a_model_loadable(model):
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    result = run("convert", model)
    assert result.exit_code == 0 and result.stdout == f"{model / 'model.safetensors'}: written\n"
    converted = load_file(model / "model.safetensors")
    assert weights.keys() == converted.keys()
    assert all(torch.equal(weight, converted[name]) for name, weight in weights.items())
    assert "is there already" in refuse("convert", model)
