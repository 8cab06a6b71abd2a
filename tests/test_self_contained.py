"""Saved directories load anywhere, with the package and without it, to the bit; and nothing in them runs unasked."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import hf_attn
from hf_attn import AttnDetrImageProcessor, AttnViTImageProcessor, train_tokenizer
from hf_attn.registration import MODELS
from tests.tiny import DETR_VARIANTS, tiny_detr, tiny_translator, tiny_vit

PACKAGE = Path(hf_attn.__file__).parent
PICTURES = {
    "attention.py",
    "configuration_checks.py",
    "image_processing_base.py",
    "image_processing_conversion.py",
    "image_processing_inputs.py",
    "image_processing_resize.py",
    "linear.py",
    "positions.py",
    "self_contained.py",
}
VIT = {
    "configuration_vit.py",
    "inference.py",
    "inference_vit.py",
    "inputs_vit.py",
    "loss_vit.py",
    "modeling_vit.py",
}
FILES = {
    "translator": {
        "attention.py",
        "configuration_checks.py",
        "configuration_translator.py",
        "generation_beam_search.py",
        "generation_constraints.py",
        "generation_greedy.py",
        "generation_required_phrases.py",
        "generation_scoring.py",
        "generation_steps.py",
        "generation_translator.py",
        "inference.py",
        "inference_translator.py",
        "inputs_translator.py",
        "linear.py",
        "loss_translator.py",
        "modeling_translator.py",
        "pipeline_alignment.py",
        "pipeline_batches.py",
        "pipeline_segmentation.py",
        "pipeline_translation.py",
        "pipeline_workers.py",
        "positions.py",
        "self_contained.py",
        "tokenization_translator.py",
    },
    "vit": {*PICTURES, *VIT, "image_processing_vit.py"},
    "detr": {
        *PICTURES,
        *VIT,  # which may be its backbone
        "boxes.py",
        "configuration_detr.py",
        "denoising_detr.py",
        "image_processing_annotations.py",
        "image_processing_detr.py",
        "inference_detr.py",
        "inputs_detr.py",
        "layers_detr.py",
        "loss_detr.py",
        "modeling_detr.py",
        "outputs_detr.py",
        "pipeline_detection.py",
    },
}
# What each demands of those who run it, beside what transformers itself demands
ALWAYS = {"torch", "transformers", "huggingface_hub", "numpy", "tokenizers"}
DEMANDED = {"translator": set(), "vit": {"PIL"}, "detr": {"PIL"}}  # timm and scipy where they are called for
TEXTS = ["Das ist ein Satz. Das ist noch einer.", "Ende"]
USE = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    package, out, *directories = sys.argv[1:]

    class Hide:
        def __init__(self, finder): self.finder = finder
        def __getattr__(self, name): return getattr(self.finder, name)
        def find_spec(self, name, path=None, target=None):
            hidden = name.split(".")[0] in ("hf_attn", "scipy")
            return None if hidden else self.finder.find_spec(name, path, target)

    if package == "with":
        import hf_attn
    else:
        sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]

    import torch
    from transformers import (
        AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForObjectDetection,
        AutoModelForSeq2SeqLM, AutoTokenizer, pipeline,
    )

    KINDS = {
        "attn_translator": (AutoModelForSeq2SeqLM, "translation", TEXTS),
        "attn_vit": (AutoModelForImageClassification, "image-classification", ["a.png", "b.png"]),
        "attn_detr": (AutoModelForObjectDetection, "object-detection", ["a.png", "b.png"]),
    }
    TRUST = {"trust_remote_code": True}

    @torch.no_grad()
    def numbers(model, directory):
        dtype = model.dtype
        if model.config.model_type == "attn_translator":
            inputs = {"input_ids": torch.tensor([[7, 8, 9, 2]]), "decoder_input_ids": torch.tensor([[0, 5, 6]])}
        else:
            side = (64, 96) if model.config.model_type == "attn_detr" else (32, 32)
            inputs = {"pixel_values": torch.linspace(-1, 1, 3 * side[0] * side[1]).view(1, 3, *side).to(dtype)}
        return model(**inputs)[0 if model.config.model_type != "attn_detr" else "last_hidden_state"]

    found = {}
    for directory, options in [(directory, {}) for directory in directories if package == "with"] + [
        (directory, TRUST) for directory in directories if not directory.endswith("_without_code")
    ]:
        key = directory + " trusted" if options and package == "with" else directory
        config = AutoConfig.from_pretrained(directory, **options)
        head, task, examples = KINDS[config.model_type]
        for name, kind, more in (
            ("base", AutoModel, {}),
            ("head", head, {}),
            ("auto", head, {"dtype": "auto"}),
            ("bfloat16", head, {"dtype": torch.bfloat16}),
            ("device_map", head, {"device_map": "auto"}),
        ):
            model = kind.from_pretrained(directory, **options, **more)
            assert type(model).__module__.startswith("hf_attn." if package == "with" else "transformers_modules.")
            wanted = torch.bfloat16 if name == "bfloat16" else torch.float32
            assert {parameter.dtype for parameter in model.parameters()} == {wanted}
            found[key, name] = numbers(model, directory)
        use = pipeline(task, model=directory, **options)
        length = {"max_new_tokens": 8} if task == "translation" else {"batch_size": 2}
        if task == "object-detection":
            length["threshold"] = 0.0
        found[key, "pipeline"] = use(examples, **length)
        if options:
            again = Path(out).parent / package / Path(directory).name
            use.model.save_pretrained(again)
            if use.image_processor is not None:
                use.image_processor.save_pretrained(again)
            loaded = head.from_pretrained(again, **options)
            found[key, "again"] = numbers(loaded, directory)
            found[key, "files"] = sorted(path.name for path in again.glob("*.py"))
    if package != "with":
        assert "hf_attn" not in sys.modules
    torch.save(found, out)
""").replace("TEXTS", repr(TEXTS))


def without_code(source: Path, target: Path) -> None:
    """As if it had been saved by a package that does not carry its code."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py"))
    for name in ("config.json", "preprocessor_config.json"):
        if (target / name).exists():
            stored = json.loads((target / name).read_text())
            (target / name).write_text(json.dumps({key: stored[key] for key in stored if key not in CODE}))


CODE = ("auto_map", "custom_pipelines")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with models of each kind."""
    place = tmp_path_factory.mktemp("Ort für Modelle")
    tokenizer = train_tokenizer(TEXTS * 3, 280)
    buffers = {"backbone": "resnetblur18", "backbone_kwargs": {"channels": [8, 8, 16, 16]}}  # that are not stored
    vit_of_detr = {"backbone_config": tiny_vit().config.to_dict(), "backbone_feature": -1}
    models = {
        "translator": tiny_translator(vocab_size=len(tokenizer)),
        "vit": tiny_vit(),
        "detr": tiny_detr(),
        "detr_all": tiny_detr(**buffers, **DETR_VARIANTS["all"]),
        "detr_vit": tiny_detr(**vit_of_detr),
    }
    for name, model in models.items():
        model.save_pretrained(place / name)
    models["vit"].save_pretrained(place / "sharded", max_shard_size="8KB")
    assert len(list((place / "sharded").glob("*.safetensors"))) > 1
    tokenizer.save_pretrained(place / "translator")
    for name in ("vit", "sharded"):
        AttnViTImageProcessor(size=32).save_pretrained(place / name)
    for name in ("detr", "detr_all", "detr_vit"):
        size = {"height": 64, "width": 64} if name == "detr_vit" else {"shortest_edge": 64, "longest_edge": 96}
        AttnDetrImageProcessor(size=size).save_pretrained(place / name)
    for name, size in (("a.png", (60, 80)), ("b.png", (90, 60))):
        Image.linear_gradient("L").resize(size).convert("RGB").save(place / name)
    for name in FILES:
        without_code(place / name, place / f"{name}_without_code")
    return place


def use(place: Path, package: str, *names: str, timeout: float = 300) -> dict:
    """What a fresh process finds that loads these models in every way. Its keyboard stays silent."""
    out = place / f"{package}.pt"
    command = [sys.executable, "-W", "error::FutureWarning", "-c", USE, package, str(out), *names]
    own = {"PYTHONPATH": str(PACKAGE.parent), "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    before = {path: path.stat().st_mtime_ns for name in names for path in (place / name).rglob("*")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env={**os.environ, **own}, cwd=place, **pipes) as process:
        try:
            process.wait(timeout)  # stdin stays open: who asks waits for ever
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        said = process.stderr.read().decode()
        assert process.returncode == 0, said
    assert "not supported" not in said and "UNEXPECTED" not in said and "MISSING" not in said, said
    after = {path: path.stat().st_mtime_ns for name in names for path in (place / name).rglob("*")}
    assert after == before  # nothing is written beside a model that is read
    return torch.load(out)


NAMES = (*FILES, "detr_all", "detr_vit", "sharded")
KIND = {"detr_all": "detr", "detr_vit": "detr", "sharded": "vit"}


@pytest.fixture(scope="module")
def at_home(place) -> dict:
    """What the package finds."""
    return use(place, "with", *NAMES, *(f"{name}_without_code" for name in FILES))


def assert_same(found: dict, expected: dict, ending: str = "", names: Iterable[str] = NAMES) -> None:
    """What was found in each way of loading, and of loading what was saved again."""
    for name in names:
        for way in ("base", "head", "auto", "bfloat16", "device_map", "again"):
            if (name + ending, way) in found:
                assert torch.equal(found[name + ending, way], expected[name, "head" if way == "again" else way]), way
        assert found[name + ending, "pipeline"] == expected[name, "pipeline"]


def test_the_package_loads_alike_with_and_without_trust_and_code(at_home):
    assert_same(at_home, at_home, ending=" trusted")
    assert_same(at_home, at_home, ending="_without_code", names=FILES)
    for name in NAMES:
        assert torch.equal(at_home[name, "auto"], at_home[name, "head"])
        assert set(at_home[f"{name} trusted", "files"]) == FILES[KIND.get(name, name)]


def test_without_the_package_all_is_the_same_to_the_bit_and_saved_again_stays_complete(place, at_home):
    found = use(place, "without", *NAMES)
    assert_same(found, at_home)
    for name in NAMES:
        assert set(found[name, "files"]) == FILES[KIND.get(name, name)]


REFUSED = """
import sys
if sys.argv[1] == "with":
    import hf_attn
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, lambda name: pipeline(sys.argv[3], model=name)):
    try:
        load(sys.argv[2])
        print("loaded")
    except ValueError as error:
        print("refused" if "trust_remote_code=True" in str(error) else error)
"""


@pytest.mark.parametrize(("package", "answer"), [("with", "loaded"), ("without", "refused")])
def test_code_of_a_repository_does_not_run_unasked(place, tmp_path, package, answer):
    model = tmp_path / "vit"
    shutil.copytree(place / "vit", model)
    for path in model.glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\n" + path.read_text())
    command = [sys.executable, "-W", "ignore", "-c", REFUSED, package, str(model), "image-classification"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert re.findall("loaded|refused", result.stdout) == [answer] * 3, result.stdout + result.stderr
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("name", FILES)
def test_exactly_these_files_travel(place, name):
    assert {path.name for path in (place / name).glob("*.py")} == FILES[name]
    assert all((place / name / file).read_text() == (PACKAGE / file).read_text() for file in FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_only_what_is_needed_is_demanded_of_who_runs_it(place, name):
    demanded = {package for file in FILES[name] for package in get_imports(place / name / file)}
    standard = set(sys.stdlib_module_names)
    assert demanded - standard - ALWAYS == DEMANDED[name]


@pytest.mark.parametrize("name", FILES)
def test_every_relative_import_that_transformers_sees_is_there(place, name):
    for path in (place / name).glob("*.py"):
        found = {Path(file).name for file in get_relative_import_files(path)}
        assert found <= FILES[name]
        assert not re.search(r"^\s*from \. import", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_the_configuration_names_every_automatic_class(place, name):
    stored = json.loads((place / name / "config.json").read_text())
    config = next(config for config in MODELS if config.model_type == stored["model_type"])
    assert stored["auto_map"].keys() == {"AutoConfig", *(auto_class.__name__ for auto_class in MODELS[config])}
    for reference in stored["auto_map"].values():
        module, class_name = reference.split(".")
        assert re.search(rf"^class {class_name}\b", (place / name / f"{module}.py").read_text(), re.MULTILINE)


def test_a_part_of_a_model_is_saved_without_code(tmp_path):
    tiny_translator().model.encoder.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
