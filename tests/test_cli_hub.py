"""`hf-attn info`, `card` and `push`: results on stdout, one line a mistake, and no torch where none is needed."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.hub_fake import ADDRESS, FakeHub, of_model
from tests.loopback_hub import LoopbackHub
from tests.test_cli import ROOT, refuse, run


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


def test_info_reads_a_directory_without_torch_and_without_the_hub(saved_vit):
    script = (
        f"import runpy, sys; sys.argv = ['hf-attn', 'info', {str(saved_vit)!r}]\n"
        "try: runpy.run_module('hf_attn', run_name='__main__')\n"
        "except SystemExit as leaving:\n"
        "    print(leaving.code, sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"
    assert run.stdout.startswith(f"{saved_vit}: picture classifier") and run.stderr == ""


def test_info_of_a_directory_and_of_the_hub_agree(vit, hub):
    hub.create_repo("me/vit", exist_ok=True)
    hub.repositories["me/vit"]["v1"] = {name: (vit / name).read_bytes() for name in of_model(vit)}
    here = json.loads(run("info", vit, "--json").stdout)
    there = json.loads(run("info", "me/vit", "--revision", "v1", "--json").stdout)
    different = {"model", "use", "training_files", "pickles", "warnings"}
    assert {name: here[name] for name in here if name not in different} == {
        name: there[name] for name in there if name not in different
    }
    assert there["use"] == "hf-attn classify picture.jpg --model me/vit" and there["warnings"] == []


def test_info_does_not_let_a_stranger_steer_the_terminal(vit):
    config = json.loads((vit / "config.json").read_text())
    config["id2label"] = {"0": "\x1b[31mred"}
    (vit / "config.json").write_text(json.dumps(config))
    assert "classes     1: \N{REPLACEMENT CHARACTER}[31mred\n" in run("info", vit).stdout


def test_info_says_what_is_wrong(vit, hub):
    assert "no such directory, and no name on the Hub" in refuse("info", vit / "nowhere")
    assert "no such model that the Hub would give" in refuse("info", "me/vit")
    refuse("info", vit, "--revision", "main", code=2)
    weights = (vit / "model.safetensors").read_bytes()
    (vit / "model.safetensors").write_bytes(weights[:-100])
    assert f"is cut off: it has {len(weights) - 100:,} bytes" in refuse("info", vit)
    (vit / "config.json").write_text("{")
    assert "is not JSON" in refuse("info", vit)
    (vit / "config.json").unlink()
    assert "no config.json" in refuse("info", vit)


def test_a_card_is_written_once_and_checked(vit):
    assert "is there already; give --force" in refuse("card", vit)
    (vit / "README.md").unlink()
    assert "has no README.md" in refuse("card", vit, "--check")
    assert "--license apache2 is none that the Hub knows" in refuse("card", vit, "--license", "apache2")
    assert run("card", vit).stdout.startswith(f"{vit}/README.md: written")
    incomplete = run("card", vit, "--check")
    assert incomplete.exit_code == 1
    assert incomplete.stdout.startswith(f"{vit}/README.md: no license") and incomplete.stdout.count("\n") == 1
    assert incomplete.stderr == f"hf-attn: {vit}/README.md is not complete: 1 to mend, listed above\n"
    assert run("card", vit, "--force", "--license", "apache-2.0").exit_code == 0
    assert run("card", vit, "--check").stdout == f"{vit}/README.md: complete\n"
    assert run("card", vit, "--output", vit / "other.md").exit_code == 0
    assert "license" not in (vit / "other.md").read_text().split("---")[1]
    refuse("card", vit, "--check", "--force", code=2)
    assert "no such directory" in refuse("card", vit / "nowhere")


def test_push_says_what_it_does_on_stderr_and_the_address_on_stdout(vit, hub):
    result = run("push", vit, "vit", "--private")
    assert (result.exit_code, result.stdout) == (0, f"{ADDRESS}/me/vit\n")
    assert f"{vit} to vit: {len(of_model(vit))} files, " in result.stderr and "model.safetensors" in result.stderr
    quiet = run("push", vit, "me/vit", "--revision", "next", "--message", "Second", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (f"{ADDRESS}/me/vit/tree/next\n", "")
    assert hub.messages == ["Upload a model with hf-attn push", "Second"]


def test_push_refuses_in_one_line(vit, hub):
    assert "a/b/c is no name of a repository" in refuse("push", vit, "a/b/c")
    assert "no such directory" in refuse("push", vit / "nowhere", "vit")
    hub.breaks = KeyboardInterrupt()
    result = run("push", vit, "vit")
    assert result.stderr.splitlines()[-1] == (
        "hf-attn: interrupted; vit has no part of it: repeat the command to go on"
    )
    (vit / "README.md").write_text("---\na: [\n---\n")
    assert re.search("README.md: its YAML cannot be read", refuse("push", vit, "vit"))
    assert hub.messages == []


def test_the_hub_has_all_of_a_push_or_none(vit, tmp_path):
    with LoopbackHub() as there:

        def call(*arguments: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "hf_attn", *map(str, arguments)]
            return subprocess.run(
                command, cwd=ROOT, env=there.environment(tmp_path / "home"), capture_output=True, text=True
            )

        first = call("push", vit, "vit", "--revision", "next")
        assert (first.returncode, first.stdout) == (0, f"{there.url}/someone/vit/tree/next\n"), first.stderr
        before = there.files("someone/vit", "next")
        assert before.keys() == {".gitattributes", *of_model(vit)}
        (vit / "old.py").write_text("")
        there.fail_on("commit", "cut")
        cut = call("push", vit, "someone/vit", "--revision", "next", "--quiet")
        assert cut.returncode == 1 and "the Hub cannot be reached, or hung up" in cut.stderr
        assert there.files("someone/vit", "next") == before
        facts = json.loads(call("info", "someone/vit", "--revision", "next", "--json").stdout)
        assert facts["parameters"] == json.loads(run("info", vit, "--json").stdout)["parameters"] > 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_plain_file_is_left_alone(vit, hub):
    os.mkfifo(vit / "pipe")
    (vit / "dangling").symlink_to("nowhere")
    assert run("push", vit, "vit").exit_code == 0
    assert not {"pipe", "dangling"} & hub.repositories["me/vit"]["main"].keys()


def test_convert_makes_a_model_loadable(vit):
    weights = load_file(vit / "model.safetensors")
    torch.save(weights, vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    result = run("convert", vit)
    assert result.exit_code == 0 and result.stdout == f"{vit / 'model.safetensors'}: written\n"
    converted = load_file(vit / "model.safetensors")
    assert weights.keys() == converted.keys()
    assert all(torch.equal(weight, converted[name]) for name, weight in weights.items())
    assert "is there already" in refuse("convert", vit)
