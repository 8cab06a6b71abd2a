"""Push once, load anywhere: models, their processors and trained runs, over a Hub on loopback and the real client."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import hf_attn
from hf_attn import AttnViTImageProcessor
from hf_attn.hub_files import LocalFiles
from hf_attn.training.plain_card import plain_card
from tests.loopback_hub import LoopbackHub
from tests.tiny import tiny_vit

ROOT = Path(hf_attn.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# With the package: push, load again, train with a push at each checkpoint, and see what others may not see
PUSH = """
    import sys
    from pathlib import Path
    import torch
    from PIL import Image
    from transformers import AutoModel, pipeline
    from hf_attn import AttnDetrImageProcessor, AttnViTImageProcessor, train_tokenizer
    from hf_attn.training.vit_trainer import ViTTrainer, ViTTrainingArguments
    from tests.tiny import tiny_detr, tiny_translator, tiny_vit
    from tests.training_runs import ChangedPictures, stack

    tokenizer = train_tokenizer(["Das ist ein Satz.", "Ende"] * 3, 280)
    detr_processor = AttnDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    models = {
        "translator": (tiny_translator(vocab_size=len(tokenizer)), tokenizer),
        "vit": (tiny_vit(), AttnViTImageProcessor(size=32)),
        "detr": (tiny_detr(), detr_processor),
    }
    for name, (model, processor) in models.items():
        model.push_to_hub(f"someone/{name}", private=name == "vit")
        processor.push_to_hub(f"someone/{name}")
    better = tiny_vit(seed=1)
    better.push_to_hub("someone/vit", commit_message="Better weights")

    picture = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    found = {
        "translator": pipeline("translation", "someone/translator")("Ende", max_new_tokens=8),
        "vit": pipeline("image-classification", "someone/vit")(picture),
        "detr": pipeline("object-detection", "someone/detr")(picture, threshold=0.0),
        "main": dict(better.state_dict()),
        "old": dict(models["vit"][0].state_dict()),
    }
    torch.save(found, sys.argv[1])

    for token in (False, "hf_another", "hf_wrong"):
        try:
            AutoModel.from_pretrained("someone/vit", token=token, cache_dir=str(token))
        except OSError as error:
            print("refused", token, "private" in str(error) or "Invalid credentials" in str(error))

    Path("run").mkdir()
    Path("run/README.md").write_text("---\\nlibrary_name: transformers\\n---\\n\\nOur own words.\\n")
    arguments = ViTTrainingArguments(
        output_dir="run", max_steps=4, save_steps=2, save_strategy="steps", per_device_train_batch_size=4, bf16=False,
        use_cpu=True, push_to_hub=True, hub_model_id="someone/trained", hub_private_repo=True, hub_always_push=True,
    )
    trainer = ViTTrainer(tiny_vit(), arguments, stack, ChangedPictures(20, seed=1))
    trainer.train()
    assert Path("run/modeling_vit.py").exists()  # what was pushed with the checkpoints
    trainer.push_to_hub()
"""

# Without the package
LOAD = """
    import sys

    class Hide:
        def __init__(self, finder): self.finder = finder
        def __getattr__(self, name): return getattr(self.finder, name)
        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] == "hf_attn" else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]

    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification, pipeline

    old, out = sys.argv[1:]
    options = {"trust_remote_code": True}
    picture = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    found = {
        "translator": pipeline("translation", "someone/translator", **options)("Ende", max_new_tokens=8),
        "vit": pipeline("image-classification", "someone/vit", **options)(picture),
        "detr": pipeline("object-detection", "someone/detr", **options)(picture, threshold=0.0),
    }
    for name, revision in (("main", "main"), ("old", old)):
        model = AutoModelForImageClassification.from_pretrained("someone/vit", revision=revision, **options)
        found[name] = dict(model.state_dict())
    torch.save(found, out)
    assert "hf_attn" not in sys.modules
"""


def run(hub: LoopbackHub, home: Path, script: str, *arguments: str, token: str | None = "hf_someone", **more) -> str:
    """What a fresh process says that talks to this hub."""
    environment = hub.environment(home, token, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **more)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments]
    home.mkdir(exist_ok=True)
    result = subprocess.run(
        command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "not supported" not in result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> tuple[dict, str]:
    """What the models answer that were pushed, and what the process said."""
    home = tmp_path_factory.mktemp("pushing")
    said = run(hub, home, PUSH, "found.pt")
    return torch.load(home / "found.pt"), said


@pytest.mark.slow
def test_pushed_models_load_without_the_package_at_any_revision_and_from_the_cache(hub, pushed, tmp_path):
    better, first = hub.history("someone/vit")[:2]
    assert better.summary == "Better weights"
    expected, _ = pushed
    for offline in ("0", "1"):
        out = tmp_path / f"{offline}.pt"
        asked = len(hub.requests)
        run(hub, tmp_path / "home", LOAD, first.sha, str(out), HF_HUB_OFFLINE=offline)
        assert (len(hub.requests) == asked) == (offline == "1")
        found = torch.load(out)
        for name in ("translator", "vit", "detr"):
            assert found[name] == expected[name]
        for name in ("main", "old"):
            assert found[name].keys() == expected[name].keys()
            assert all(torch.equal(weight, expected[name][of]) for of, weight in found[name].items())


@pytest.mark.slow
def test_a_private_model_is_for_those_who_may_see_it(hub, pushed):
    assert hub.repositories["someone/vit"].private
    refusals = [line for line in pushed[1].splitlines() if line.startswith("refused")]
    assert refusals == ["refused False True", "refused hf_another True", "refused hf_wrong True"]


@pytest.mark.slow
def test_a_trained_model_is_pushed_with_its_code_and_the_card_stays_ours(hub, pushed):
    files = hub.files("someone/trained")
    assert b"Our own words." in files["README.md"]
    assert {"config.json", "model.safetensors", "modeling_vit.py", "self_contained.py"} <= files.keys()
    assert hub.repositories["someone/trained"].private
    complete = [commit for commit in hub.history("someone/trained") if "model.safetensors" in commit.files]
    assert complete and all("modeling_vit.py" in commit.files and "config.json" in commit.files for commit in complete)


# --- the command line ------------------------------------------------------------------------------------------------


def commands(hub: LoopbackHub, home: Path, *lines: str, fails: str | None = None) -> str:
    """What `hf-attn` says to these commands, in processes of their own; the last one fails where so told."""
    said = ""
    for number, line in enumerate(lines, start=1):
        command = [sys.executable, "-W", "ignore", "-m", "hf_attn", *shlex.split(line)[1:]]
        environment = hub.environment(home / "home", PYTHONPATH=str(ROOT))
        result = subprocess.run(
            command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        refused = fails is not None and number == len(lines)
        assert result.returncode == (1 if refused else 0), result.stderr
        assert not refused or fails in result.stderr
        said += result.stdout
    return said


@pytest.fixture
def home(tmp_path) -> Path:
    """A directory with a trained model, in `runs/demo_vit`."""
    model = tmp_path / "runs" / "demo_vit"
    tiny_vit().save_pretrained(model)
    AttnViTImageProcessor(size=32).save_pretrained(model)
    (model / "README.md").write_text(str(plain_card(LocalFiles(model), "apache-2.0")), encoding="utf-8")
    return tmp_path


def test_what_readme_says_of_sharing_works(hub, home):
    section = README.split("## Share it")[1].split("\n## ")[0]
    lines = re.findall(r"^    (hf-attn .*)$", section, re.MULTILINE)
    assert len(lines) == 3
    said = commands(hub, home, *(line.replace("you/", "someone/") for line in lines))
    assert said.startswith("runs/demo_vit: picture classifier, a Vision Transformer")
    assert said.endswith(f"{hub.url}/someone/clothes\n")
    assert hub.repositories["someone/clothes"].private
    pushed = hub.files("someone/clothes")
    here = {path.name: path.read_bytes() for path in (home / "runs" / "demo_vit").iterdir()}
    assert {name: content for name, content in pushed.items() if name != ".gitattributes"} == here


def test_a_second_push_replaces_the_model_and_one_that_breaks_off_changes_nothing(hub, home):
    push = "hf-attn push runs/demo_vit someone/replaced"
    commands(hub, home, push)
    first = hub.history("someone/replaced")[0]
    model = home / "runs" / "demo_vit"
    (model / "model.safetensors").unlink()
    tiny_vit(seed=1).save_pretrained(model, max_shard_size="8KB")
    for endpoint, failure, message in (("upload", 403, "repeat the command"), ("commit", "cut", "cannot be reached")):
        hub.fail_on(endpoint, failure)
        commands(hub, home, push, fails=message)
        assert hub.history("someone/replaced")[0].sha == first.sha
    commands(hub, home, push)
    second = hub.history("someone/replaced")[0]
    assert second.parent.sha == first.sha
    assert "model.safetensors" in first.files and "model.safetensors" not in second.files
    shards = {path.name for path in model.glob("*.safetensors")}
    assert len(shards) > 1 and shards <= second.files.keys()
    assert hub.files("someone/replaced", first.sha)["model.safetensors"]  # a revision stays what it was


def test_info_of_the_hub_says_what_is_there(hub, home):
    commands(hub, home, "hf-attn push runs/demo_vit someone/described --private")
    facts = json.loads(commands(hub, home, "hf-attn info someone/described --json"))
    assert facts["class"] == "AttnViTForImageClassification"
    assert facts["license"] == "apache-2.0"
    assert facts["parameters"] == sum(weight.numel() for weight in tiny_vit().parameters())
    assert "modeling_vit.py" in facts["code"]["files"]
    shutil.rmtree(home / "runs")
    commands(hub, home, "hf-attn info runs/demo_vit", fails="no such directory")
