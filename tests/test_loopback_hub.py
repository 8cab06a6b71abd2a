"""The Hub on loopback, held against huggingface_hub itself, which runs in processes of its own."""

import base64
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_cards import card_faults, card_metadata, card_tags
from tests.loopback_hub import LoopbackHub
from tests.loopback_repositories import GIT_ATTRIBUTES, Refusal

pytestmark = pytest.mark.slow  # of a tool of the tests: nine processes

PRELUDE = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download, snapshot_download

def failure(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__
    return "none"

def contents(directory):
    paths = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes().hex() for path in paths}

api = HfApi()
given, answer = json.loads(sys.argv[1]), {}
"""
CARD = """---
license: apache-2.0
language: [de, en]
library_name: transformers
pipeline_tag: image-classification
tags: [tiny]
datasets: someone/animals
model-index:
- name: model
  results:
  - task: {type: image-classification}
    dataset: {type: someone/animals, name: Animals}
    metrics: [{type: accuracy, value: 0.9}]
---
# A model
"""
LARGE = bytes(range(256)) * 20  # the hub of these tests has more than 1000 bytes uploaded by LFS


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(large_size=1000) as hub:
        yield hub


def client(hub: LoopbackHub, home: Path, script: str, variables: dict[str, str] | None = None, **given: object) -> Any:
    """What a process that runs the script with `given` leaves in `answer`."""
    code = PRELUDE + textwrap.dedent(script) + "\nprint(json.dumps(answer))"
    environment = hub.environment(home, **(variables or {}))
    command = [sys.executable, "-c", code, json.dumps(given)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def folder_of(directory: Path, files: dict[str, bytes]) -> str:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return str(directory)


def in_hex(files: dict[str, bytes]) -> dict[str, str]:
    return {path: content.hex() for path, content in files.items()}


def statuses(hub: LoopbackHub, endpoint: str) -> list[int | None]:
    return [request.status for request in hub.requests if request.endpoint == endpoint]


# --- pushing and loading ---------------------------------------------------------------------------------------------


def test_a_folder_goes_up_changes_and_comes_down_at_either_revision(hub, tmp_path):
    first = {"README.md": CARD.encode(), "config.json": b"{}", "deep/er/a b%.txt": b"old", "empty.txt": b""}
    first |= {"model.safetensors": b"small, yet large by its name", "vocabulary.txt": LARGE}
    second = {"config.json": b'{"a": 1}', "model.safetensors": LARGE + b"more", "new.txt": b"new"}
    script = """
    name = api.create_repo("model").repo_id
    assert api.create_repo(name, exist_ok=True).repo_id == name
    first = api.upload_folder(repo_id=name, folder_path=given["first"]).oid
    second = api.upload_folder(repo_id=name, folder_path=given["second"], delete_patterns=["deep/*", "*.md"]).oid
    answer["unchanged"] = api.upload_folder(repo_id=name, folder_path=given["second"]).oid
    answer |= dict(name=name, first=first, second=second, exists=failure(api.create_repo, name))
    answer["files now"] = contents(snapshot_download(name))
    answer["files before"] = contents(snapshot_download(name, revision=first))
    tree = list(api.list_repo_tree(name, revision=first, recursive=True))
    answer["large"] = [entry.path for entry in tree if getattr(entry, "lfs", None)]
    answer["folders"] = [entry.path for entry in tree if not hasattr(entry, "lfs")]
    answer["top"] = [entry.path for entry in api.list_repo_tree(name, revision=first)]
    answer["deep"] = [entry.path for entry in api.list_repo_tree(name, "deep/er", revision=first)]
    answer["commits"] = [commit.commit_id for commit in api.list_repo_commits(name)]
    answer["branches"] = {branch.name: branch.target_commit for branch in api.list_repo_refs(name).branches}
    answer["user"] = api.whoami()["name"]
    """
    folders = {"first": folder_of(tmp_path / "first", first), "second": folder_of(tmp_path / "second", second)}
    answer = client(hub, tmp_path / "home", script, **folders)
    assert (answer["name"], answer["user"], answer["exists"]) == ("someone/model", "someone", "HfHubHTTPError")
    kept = {".gitattributes": GIT_ATTRIBUTES, "empty.txt": b"", "vocabulary.txt": LARGE}
    assert hub.files("someone/model") == kept | second
    assert hub.files("someone/model", answer["first"]) == kept | first
    assert answer["files now"] == in_hex(kept | second)
    assert answer["files before"] == in_hex(kept | first)
    assert answer["unchanged"] == answer["second"]
    assert answer["branches"] == {"main": answer["second"]}
    history = hub.history("someone/model")
    assert answer["commits"] == [commit.sha for commit in history]
    assert history[0].sha == answer["second"] and history[-1].summary == "initial commit"
    assert sorted(answer["large"]) == ["model.safetensors", "vocabulary.txt"]
    assert sorted(answer["folders"]) == ["deep", "deep/er"]
    assert set(answer["top"]) == {path.split("/")[0] for path in kept | first}
    assert answer["deep"] == ["deep/er/a b%.txt"]
    assert statuses(hub, "upload") == [200] * 3  # two large files, then the one that changed
    assert statuses(hub, "commit") == [200] * 2
    assert {request.token for request in hub.requests} == {"hf_someone", None}
    assert {request.endpoint for request in hub.requests if request.token is None} == {"upload"}
    assert not statuses(hub, "unknown")


def test_revisions_and_files_that_are_missing_are_told_apart(hub, tmp_path):
    hub.create("someone/model")
    pinned = hub.commit("someone/model", {"config.json": b"old"})
    hub.commit("someone/model", {"config.json": b"new"})
    script = """
    name = "someone/model"
    api.create_branch(name, branch="trial/1", revision=given["pinned"])
    api.upload_file(repo_id=name, path_or_fileobj=b"tried", path_in_repo="trial.txt", revision="trial/1")
    for revision in (None, given["pinned"], "trial/1"):
        answer[revision or "main"] = Path(hf_hub_download(name, "config.json", revision=revision)).read_text()
    api.delete_file("config.json", repo_id=name)
    moved = dict(repo_id=name, path_or_fileobj=b"", path_in_repo="config.json", parent_commit=given["pinned"])
    answer["failures"] = [
        failure(hf_hub_download, name, "config.json"),
        failure(hf_hub_download, name, "trial.txt", revision="main"),
        failure(hf_hub_download, name, "config.json", revision="0" * 40),
        failure(api.list_repo_tree(name, "nowhere").__next__),
        failure(api.delete_file, "nowhere.txt", repo_id=name),
        failure(api.upload_file, repo_id=name, path_or_fileobj=b"", path_in_repo="a", revision=given["pinned"]),
        failure(api.upload_file, **moved),
        failure(api.model_info, "someone/nothing", token=False),
        failure(api.create_branch, name, branch="trial/1"),
        failure(api.create_tag, name, tag="v1"),
    ]
    """
    answer = client(hub, tmp_path, script, pinned=pinned)
    assert (answer["main"], answer[pinned], answer["trial/1"]) == ("new", "old", "old")
    assert answer["failures"] == [
        *("RemoteEntryNotFoundError", "RemoteEntryNotFoundError", "RevisionNotFoundError"),
        *("RemoteEntryNotFoundError", "RemoteEntryNotFoundError", "RevisionNotFoundError", "HfHubHTTPError"),
        *("RepositoryNotFoundError", "HfHubHTTPError", "HfHubHTTPError"),
    ]
    assert "config.json" not in hub.files("someone/model")
    assert hub.files("someone/model", "trial/1")["trial.txt"] == b"tried"
    assert statuses(hub, "unknown") == [501]  # the tag


def test_what_was_loaded_is_there_without_the_hub(hub, tmp_path):
    hub.create("someone/model")
    pinned = hub.commit("someone/model", {"config.json": b"{}", "model.safetensors": LARGE})
    script = """
    for revision in given["revisions"]:
        snapshot = contents(snapshot_download("someone/model", revision=revision))
        config = Path(hf_hub_download("someone/model", "config.json", revision=revision)).read_text()
        answer[revision or "main"] = snapshot, config
    answer["missing"] = failure(hf_hub_download, "someone/model", "nowhere.json")
    """
    loaded = client(hub, tmp_path, script, revisions=[None])
    assert loaded == {"main": [in_hex(hub.files("someone/model")), "{}"], "missing": "RemoteEntryNotFoundError"}
    hub.close()
    offline = client(hub, tmp_path, script, {"HF_HUB_OFFLINE": "1"}, revisions=[None, pinned])
    assert offline == {"main": loaded["main"], pinned: loaded["main"], "missing": "LocalEntryNotFoundError"}


# --- who may ---------------------------------------------------------------------------------------------------------


def test_a_private_repository_is_there_for_its_owner_only(hub, tmp_path):
    hub.create("another/model")
    script = """
    api.create_repo("someone/model", private=True)
    def asked_with(token):
        push = dict(path_or_fileobj=b"pushed", path_in_repo="pushed.txt", token=token)
        load = dict(repo_id="someone/model", cache_dir=f"{given['caches']}/{token}", token=token)
        return [
            failure(api.model_info, "someone/model", token=token),
            failure(hf_hub_download, filename=".gitattributes", **load),
            failure(snapshot_download, **load),
            failure(api.upload_file, repo_id="someone/model", **push),
            failure(api.upload_file, repo_id="another/model", **push),
            failure(api.create_repo, "someone/other", token=token),
        ]
    answer = {str(token): asked_with(token) for token in (False, "hf_wrong", "hf_another", "hf_someone")}
    answer["private"] = api.model_info("someone/model").private
    answer["public"] = api.model_info("another/model", token=False).private
    """
    answer = client(hub, tmp_path, script, caches=str(tmp_path / "caches"))
    missing = "RepositoryNotFoundError"
    assert answer["False"] == [missing] * 5 + ["HfHubHTTPError"]
    assert answer["hf_wrong"] == ["HfHubHTTPError"] * 6
    assert answer["hf_another"] == [missing] * 4 + ["none", "HfHubHTTPError"]
    assert answer["hf_someone"] == ["none"] * 4 + ["HfHubHTTPError", "none"]
    assert (answer["private"], answer["public"]) == (True, False)
    assert {request.status for request in hub.requests if request.token == "hf_wrong"} == {401}
    assert set(hub.repositories) == {"another/model", "someone/model", "someone/other"}


def test_the_environment_says_where_the_hub_is_and_nothing_else(hub, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "https_proxy", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, "1")
    environment = hub.environment(tmp_path, HF_HUB_VERBOSITY="error")
    named = {name: value for name, value in environment.items() if "HF" in name or "OFFLINE" in name}
    off = {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")}
    expected = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_someone",
        "HF_HUB_VERBOSITY": "error",
    }
    assert named == expected | off
    assert "https_proxy" not in environment and environment["PATH"]
    assert "HF_TOKEN" not in hub.environment(tmp_path, token=None)


# --- what breaks -----------------------------------------------------------------------------------------------------


def test_a_push_that_breaks_changes_nothing_and_can_be_repeated(hub, tmp_path):
    hub.create("someone/model")
    good = hub.commit("someone/model", {"config.json": b"good"})
    folder = folder_of(tmp_path / "folder", {"config.json": b"better", "model.safetensors": LARGE})
    script = """
    push = dict(repo_id="someone/model", folder_path=given["folder"])
    for attempt in range(given["attempts"]):
        answer[attempt] = failure(api.upload_folder, **push), api.model_info("someone/model").sha
    """
    hub.fail_on("upload", 403)
    hub.fail_on("upload", "cut")  # which the client repeats by itself, after a second
    hub.fail_on("commit", "cut")  # which it does not
    refused, cut, done = client(hub, tmp_path / "home", script, folder=folder, attempts=3).values()
    assert refused == ["RuntimeError", good]
    assert cut[0] in ("RemoteProtocolError", "ReadError") and cut[1] == good
    assert done == ["none", hub.history("someone/model")[0].sha]
    assert statuses(hub, "upload") == [403, None, 200]  # the third push finds the file there
    assert statuses(hub, "commit") == [None, 200]
    assert hub.files("someone/model")["model.safetensors"] == LARGE

    folder_of(tmp_path / "folder", {"config.json": b"best"})
    hub.fail_on("commit", "lost")
    lost, repeated = client(hub, tmp_path / "home", script, folder=folder, attempts=2).values()
    assert lost == ["RemoteProtocolError", hub.history("someone/model")[0].sha]
    assert repeated == ["none", lost[1]] and lost[1] != done[1]
    assert hub.files("someone/model")["config.json"] == b"best"


def test_a_download_that_breaks_goes_on_where_it_stopped(hub, tmp_path):
    hub.create("someone/model")
    hub.commit("someone/model", {"model.safetensors": LARGE})
    hub.fail_on("metadata", 500)
    hub.fail_on("download", "cut")
    script = """
    constants.DOWNLOAD_CHUNK_SIZE = 100  # what is kept of a broken download is a number of whole chunks
    answer["content"] = Path(hf_hub_download("someone/model", "model.safetensors")).read_bytes().hex()
    """
    assert client(hub, tmp_path, script) == {"content": LARGE.hex()}
    assert statuses(hub, "metadata") == [500, 200]
    assert statuses(hub, "download") == [None, 206]


def test_a_commit_is_made_whole_or_not_at_all(hub):
    repository = hub.create("someone/model")
    before = hub.files("someone/model")
    added = ("file", {"path": "a.txt", "content": b"YQ=="})
    bad_card = base64.b64encode("---\nlicense: größer\n\ttab\n---\n".encode())
    for wrong in (
        ("lfsFile", {"path": "model.safetensors", "oid": "0" * 64}),
        ("deletedFile", {"path": "nowhere.txt"}),
        ("header", {"parentCommit": "0" * 40}),
        ("file", {"path": "README.md", "content": bad_card}),
        ("unheard", {}),
    ):
        with pytest.raises(Refusal) as refused:
            repository.commit("main", [added, wrong])
        assert refused.value.headers["X-Error-Message"].isprintable()
    assert hub.files("someone/model") == before and len(repository.commits) == 1
    repository.commit("main", [added, ("deletedFile", {"path": ".gitattributes"})])
    assert hub.files("someone/model") == {"a.txt": b"a"}


# --- model cards -----------------------------------------------------------------------------------------------------


def test_a_card_is_read_and_checked_for_the_client(hub, tmp_path):
    hub.create("someone/model")
    hub.commit("someone/model", {"README.md": CARD.encode(), "model.safetensors": LARGE})
    script = """
    import warnings
    info = api.model_info("someone/model", files_metadata=True)
    answer |= dict(tags=info.tags, task=info.pipeline_tag, library=info.library_name, license=info.card_data.license)
    answer["accuracy"] = info.card_data.eval_results[0].metric_value
    answer["files"] = {file.rfilename: [file.size, file.lfs and file.lfs.sha256] for file in info.siblings}
    answer["text"] = ModelCard.load("someone/model").text
    ModelCard(given["card"]).validate()
    bad = given["card"].replace("license: apache-2.0", "license: {name: mine}")
    upload = dict(repo_id="someone/model", path_in_repo="README.md")
    pushed = failure(api.upload_file, path_or_fileobj=bad.encode(), **upload)
    answer["failures"] = failure(ModelCard(bad).validate), pushed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.upload_file(path_or_fileobj=b"no metadata", **upload)
    answer["warned"] = "".join(str(warning.message) for warning in caught if "metadata" in str(warning.message))
    answer["nothing"] = api.model_info("someone/model").library_name
    """
    answer = client(hub, tmp_path, script, card=CARD)
    tags = ["transformers", "image-classification", "tiny", "de", "en"]
    assert answer["tags"] == [*tags, "license:apache-2.0", "dataset:someone/animals"] == card_tags(card_metadata(CARD))
    assert (answer["task"], answer["library"], answer["nothing"]) == ("image-classification", "transformers", None)
    assert (answer["license"], answer["accuracy"]) == ("apache-2.0", 0.9)
    assert answer["files"]["README.md"] == [len(CARD), None]
    assert answer["files"]["model.safetensors"][0] == len(LARGE) and answer["files"]["model.safetensors"][1]
    assert answer["text"] == "# A model\n"
    assert answer["failures"] == ["ValueError", "ValueError"]
    assert "empty or missing yaml metadata" in answer["warned"]
    assert statuses(hub, "validate") == [200, 400, 400, 200]
    assert hub.files("someone/model")["README.md"] == b"no metadata"


@pytest.mark.parametrize(
    "card",
    [CARD, CARD.replace("\n", "\r\n"), "", "# No metadata", "---\n\n---\n", "---\nlicense: [mit, other]\n---"],
)
def test_a_sound_card_has_no_faults(card):
    assert card_faults(card) == []


@pytest.mark.parametrize(
    ("sound", "wrong", "fault"),
    [
        ("license: apache-2.0", "license: [", "the metadata is no YAML"),
        ("license: apache-2.0", "license: 2", '"license" must be a string or a list of strings'),
        ("license: apache-2.0", "license: Apache 2.0", '"license" must be an identifier'),
        ("[de, en]", "[de, no]", '"language" must be a string or a list'),  # in YAML, Norwegian is False
        ("[tiny]", "[{tiny: true}]", '"tags" must be'),
        ("pipeline_tag: image", "pipeline_tag: [image]\nother: image", '"pipeline_tag" must be a string'),
        ("model-index:", "model-index: model\nother:", '"model-index" must be a list'),
        ("- name: model\n ", "-", '"model-index[0].name" is required'),
        ("task: {type: image-classification}", "task: vision", '"model-index[0].results[0].task" must be a mapping'),
        ("{type: someone/animals, ", "{", '"model-index[0].results[0].dataset.type" is required'),
        ("{type: someone/animals", "{type: Animals 2", "must not be 'Animals 2'"),
        ("[{type: accuracy, value: 0.9}]", "[]", '"model-index[0].results[0].metrics" must be a list'),
        (", value: 0.9", "", '"model-index[0].results[0].metrics[0].value" is required'),
    ],
)
def test_faults_of_a_card_are_named(sound, wrong, fault):
    assert sound in CARD
    (found,) = card_faults(CARD.replace(sound, wrong))
    assert fault in found


def test_metadata_that_is_no_mapping_is_refused():
    assert card_faults("---\n- license\n---\n") == ["the metadata must be a mapping"]
