"""Where the tensors of a checkpoint are: on the Hub, pickled weights alone are not the end."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hf_attn.interchange import checkpoints
from hf_attn.interchange.checkpoints import BOT, read_config, read_tensors

WEIGHTS = {"norm.weight": torch.arange(4.0)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository with pickled weights, and an offer of safetensors by whom `author` says."""
    for revision in ("main", "refs/pr/7"):
        (tmp_path / revision).mkdir(parents=True)
    torch.save(WEIGHTS, tmp_path / "main" / "pytorch_model.bin")
    save_file(WEIGHTS, tmp_path / "refs/pr/7" / "model.safetensors")
    repository = SimpleNamespace(author=BOT, tokens=[])

    def cached_file(source, name, revision=None, token=None, **options):
        repository.tokens.append(token)
        path = tmp_path / (revision or "main") / name
        return str(path) if path.exists() else None

    def previous_pr(api, repo, title, token):
        assert (repo, title, token) == ("you/model", checkpoints.BOTS_TITLE, "hf_you")
        return repository.author and SimpleNamespace(author=repository.author, git_reference="refs/pr/7")

    monkeypatch.setattr(checkpoints, "cached_file", cached_file)
    monkeypatch.setattr(checkpoints, "previous_pr", previous_pr)
    monkeypatch.setattr(checkpoints, "is_offline_mode", lambda: False)
    return repository


def test_the_hub_s_own_bot_is_believed(hub):
    found = read_tensors("you/model", {"token": "hf_you"})
    assert found.keys() == WEIGHTS.keys() and torch.equal(found["norm.weight"], WEIGHTS["norm.weight"])
    assert set(hub.tokens) == {"hf_you"}


@pytest.mark.parametrize("author", [None, "somebody"])
def test_nobody_else_is(hub, author):
    hub.author = author
    with pytest.raises(OSError, match=r"pickled ones, which can run code .* `hf-attn import you/model DIRECTORY`"):
        read_tensors("you/model", {"token": "hf_you"})


@pytest.mark.parametrize("place", [{"revision": "refs/pr/1"}, {"local_files_only": True}])
def test_nobody_is_asked_for_another_revision_or_without_a_network(hub, place, monkeypatch):
    monkeypatch.delattr(checkpoints, "previous_pr")
    with pytest.raises(OSError, match="no weights"):
        read_tensors("you/model", {"token": "hf_you", **place})


def test_pickled_weights_are_read_where_they_may_be(hub):
    assert read_tensors("you/model", {"token": "hf_you"}, safe=False).keys() == WEIGHTS.keys()


def test_what_has_no_configuration_is_told(tmp_path):
    assert read_config(tmp_path, {}) is None
    (tmp_path / "config.json").write_text("{")
    assert read_config(tmp_path, {}) is None
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert read_config(tmp_path, {})["model_type"] == "vit"
