"""The package as a package: floors, declared dependencies, set-up, and what it says about a broken torchvision."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hf_attn
from hf_attn.environment import check_torchvision

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_attn"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml"}
REQUIREMENTS = {
    IMPORTED_AS.get(requirement.name, requirement.name.replace("-", "_")): requirement
    for requirement in map(Requirement, PROJECT["dependencies"])
}
# Only for some files of other libraries, and imported by the function that needs them
OPTIONAL = {Requirement(one).name.replace("-", "_") for one in PROJECT["optional-dependencies"]["interchange"]}

# From the lowest up. What is not in STAY_HERE travels to the Hub with a model or its pipeline.
FLOORS = (
    r"attention|linear|inference|positions|boxes|self_contained|"
    r"environment|visualization|rollout|drawing_boxes|detr_attention",
    r"drawing|(configuration|modeling|generation|inference|inputs|layers|outputs|denoising|loss|tokenization|image_processing)_\w+",
    r"pipeline_\w+|hub_\w+|interchange/\w+|training/\w+",
    r"__init__|__main__|console|registration|commands_\w+",
)
STAY_HERE = re.compile(
    r"environment|visualization|rollout|drawing\w*|detr_attention|hub_\w+|interchange/\w+|training/\w+|" + FLOORS[3]
)


def modules() -> list[str]:
    """Every module of the package as a path without suffix, `training/data` for example."""
    return sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))


def floor(module: str) -> int:
    found = [number for number, pattern in enumerate(FLOORS) if re.fullmatch(pattern, module)]
    assert len(found) == 1, f"{module} stands on no floor; give it one in this test"
    return found[0]


def imports(module: str, that_run: bool = False) -> list[tuple[int, str]]:
    """The imports of a module, inside functions too: (leading dots, dotted name)."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    if that_run:
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # of TYPE_CHECKING
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def siblings(module: str) -> list[str]:
    """The modules of this package that a module imports, as paths like those of `modules`."""
    named = [name if dots else name.removeprefix("hf_attn.") for dots, name in imports(module, that_run=True)
             if dots or name.startswith("hf_attn.")]  # fmt: skip
    paths = [name.replace(".", "/") for name in named]
    return [path + "/__init__" if (PACKAGE / path).is_dir() else path for path in paths]


@pytest.mark.parametrize("module", modules())
def test_a_file_imports_only_from_floors_below_its_own_or_from_its_own(module):
    for sibling in siblings(module):
        assert floor(sibling) <= floor(module), f"{module} (floor {floor(module)}) imports {sibling}"


@pytest.mark.parametrize("module", [module for module in modules() if not STAY_HERE.fullmatch(module)])
def test_files_that_travel_to_the_hub_import_flat_siblings_only(module):
    for dots, name in imports(module):
        assert (dots == 1 and "." not in name and name) or (dots == 0 and not name.startswith("hf_attn")), (dots, name)
    # transformers finds siblings by these expressions in the raw text, docstrings and strings included.
    text = (PACKAGE / f"{module}.py").read_text()
    found = re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE)
    found += re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE)
    for name in found:
        assert (PACKAGE / f"{name}.py").is_file(), f"transformers would look for {name}.py"
        assert not STAY_HERE.fullmatch(name), f"{module} takes {name}, which does not travel, along"


def test_every_import_is_declared_and_every_declared_dependency_is_imported():
    used = {name.split(".")[0] for module in modules() for dots, name in imports(module) if not dots}
    foreign = used - set(sys.stdlib_module_names) - {"hf_attn"}
    declared_for_a_reason = {"accelerate"}  # transformers' Trainer refuses to start without it
    assert foreign - set(REQUIREMENTS) == OPTIONAL
    assert set(REQUIREMENTS) - foreign - declared_for_a_reason == set()


@pytest.mark.parametrize("name", sorted(REQUIREMENTS))
def test_installed_versions_satisfy_the_declared_bounds(name):
    version = importlib.metadata.version(REQUIREMENTS[name].name)
    assert REQUIREMENTS[name].specifier.contains(version), f"{name} {version} against {REQUIREMENTS[name].specifier}"


IMPORTING = """
import logging, os, signal, sys, warnings
import torch
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, GenerationMixin, pipeline

def surroundings():
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed()
    handlers = logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT), sys.excepthook
    return dict(os.environ), list(warnings.filters), list(sys.path), settings, handlers

AutoBackbone, AutoImageProcessor, AutoModel, GenerationMixin, pipeline
before, loaded = surroundings(), set(sys.modules)
import hf_attn
assert surroundings() == before
print(*sorted({name.split(".")[0] for name in set(sys.modules) - loaded} - {"transformers"}))
"""


def test_importing_the_package_loads_nothing_but_itself_and_changes_nothing():
    run = subprocess.run([sys.executable, "-c", IMPORTING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["hf_attn"] and run.stderr == ""


def test_the_package_is_typed_and_its_command_exists():
    assert files("hf_attn").joinpath("py.typed").is_file()
    module, function = PROJECT["scripts"]["hf-attn"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_version_stands_in_one_place_and_is_a_literal():
    assert "version" in PROJECT["dynamic"]
    assert f'__version__ = "{hf_attn.__version__}"' in (PACKAGE / "__init__.py").read_text()


# --- torchvision -----------------------------------------------------------------------------------------------------


def write_torchvision(folder: Path, body: str, requires: str = "torch (==2.14.0)") -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    information = folder / "torchvision-0.28.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\nRequires-Dist: {requires}\n"
    )


@pytest.fixture
def other_torchvision(tmp_path, monkeypatch):
    """A folder, first on the path, to put a torchvision into; whatever was imported before is forgotten."""
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("torchvision", None)


def test_a_torchvision_that_imports_is_welcome(other_torchvision):
    write_torchvision(other_torchvision, "")
    check_torchvision()


def test_no_torchvision_is_welcome(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_torchvision()


@pytest.mark.parametrize("kind", ["RuntimeError", "ImportError", "OSError", "AttributeError"])
def test_a_broken_torchvision_is_named_with_versions_rule_and_remedy(other_torchvision, kind):
    write_torchvision(other_torchvision, f"raise {kind}('operator torchvision::nms does not exist')")
    with pytest.raises(ImportError) as caught:
        check_torchvision()
    message = str(caught.value)
    for part in (
        "torchvision 0.28.0",
        f"torch {importlib.metadata.version('torch')}",
        f"{kind}: operator torchvision::nms does not exist",
        "asks for torch (==2.14.0)",
        "pip install --upgrade torch torchvision",
        "pip uninstall torchvision",
    ):
        assert part in message
    assert "\n" not in message


def test_importing_the_package_beside_a_broken_torchvision_says_so_before_transformers_does(tmp_path):
    write_torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", "import hf_attn"], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "ImportError: torchvision 0.28.0 is installed but cannot be imported" in run.stderr.splitlines()[-1]


# --- make ------------------------------------------------------------------------------------------------------------

# An interpreter that only says what it was asked for; `-m venv` makes a folder with a copy of itself.
STAND_IN = """#!/bin/sh
echo "$0 $*" >> calls
case "$*" in
    -VV|--version) echo "Python {version}" ;;
    *version_info*) exit {too_old} ;;
    *ensurepip*) exit {no_venv} ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install"*) if [ -e broken ]; then exit 1; fi ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    write_interpreter(tmp_path)
    return tmp_path


def write_interpreter(folder: Path, version: str = "3.11.7", too_old: int = 0, no_venv: int = 0) -> None:
    script = STAND_IN.format(version=version, too_old=too_old, no_venv=no_venv)
    (folder / "python").write_text(script)
    (folder / "python").chmod(0o755)


def make_setup(folder: Path, python: str = "./python") -> tuple[int, str, list[str]]:
    """Run `make setup`; gives the exit code, what it printed, and the installations and environments it asked for."""
    calls = folder / "calls"
    calls.write_text("")
    run = subprocess.run(
        ["make", "setup", f"PYTHON={python}"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    work = ["venv" if "-m venv" in line else "install" for line in calls.read_text().splitlines() if " -m " in line]
    return run.returncode, run.stdout, work


def test_set_up_happens_once_and_again_when_the_dependencies_change(checkout):
    assert make_setup(checkout)[::2] == (0, ["venv", "install"])
    assert make_setup(checkout)[::2] == (0, [])
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another dependency\n")
    assert make_setup(checkout)[::2] == (0, ["install"])
    assert make_setup(checkout)[::2] == (0, [])


def test_another_interpreter_gets_a_new_environment(checkout):
    make_setup(checkout)
    write_interpreter(checkout, version="3.12.1")
    assert make_setup(checkout)[::2] == (0, ["venv", "install"])


def test_an_environment_that_was_moved_is_made_anew(checkout, tmp_path_factory):
    make_setup(checkout)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.copytree(checkout, elsewhere)
    assert make_setup(elsewhere)[::2] == (0, ["venv", "install"])


def test_an_installation_that_failed_is_not_taken_as_complete(checkout):
    (checkout / "broken").touch()
    assert make_setup(checkout)[0] != 0
    (checkout / "broken").unlink()
    (checkout / ".venv" / "left_over").touch()
    assert make_setup(checkout)[::2] == (0, ["venv", "install"])
    assert not (checkout / ".venv" / "left_over").exists()


@pytest.mark.parametrize(
    ("interpreter", "remedy"),
    [
        ({"version": "3.9.2", "too_old": 1}, "Python 3.9.2 is too old: Python 3.11 or newer is needed"),
        ({"no_venv": 1}, "apt install python3-venv"),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused_with_the_remedy(checkout, interpreter, remedy):
    write_interpreter(checkout, **interpreter)
    code, printed, work = make_setup(checkout)
    assert (code != 0, work) == (True, [])
    assert remedy in printed
    assert not (checkout / ".venv").exists()


def test_a_missing_interpreter_is_refused_with_the_remedy(checkout):
    code, printed, _ = make_setup(checkout, python="python3.99")
    assert code != 0
    assert "python3.99 was not found. Install Python 3.11 or newer" in printed
