"""One commit puts all of a model on the Hub and nothing else; what would not load there does not leave the machine."""

import pytest

from hf_attn.hub_files import LocalFiles
from hf_attn.hub_push import push
from tests.hub_fake import ADDRESS, FakeHub, of_model
from tests.tiny import tiny_vit


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return FakeHub(tmp_path / "hub")


def test_the_model_and_nothing_else_is_pushed_in_one_commit(vit, hub):
    (vit / "pytorch_model.bin").write_bytes(b"pickle")
    said: list[str] = []
    assert (
        push(LocalFiles(vit), "vit", private=True, message="First", tell=said.append, api=hub) == f"{ADDRESS}/me/vit"
    )
    there = hub.repositories["me/vit"]["main"]
    assert there.keys() == {".gitattributes", *of_model(vit)}
    assert there["model.safetensors"] == (vit / "model.safetensors").read_bytes()
    assert hub.private["me/vit"] and hub.messages == ["First"]
    assert said[0].startswith(f"{vit} to vit: {len(of_model(vit))} files, ") and said[0].endswith(" kB")
    assert said[-1].startswith("left out: a.tmp, checkpoints/checkpoint-2/optimizer.pt, pytorch_model.bin and 3 more")


def test_a_second_push_replaces_weights_and_code_and_leaves_the_rest(vit, hub, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    for path in LocalFiles(tmp_path / "sharded").weights():
        (vit / path).write_bytes((tmp_path / "sharded" / path).read_bytes())
    index = "model.safetensors.index.json"
    (vit / index).write_bytes((tmp_path / "sharded" / index).read_bytes())
    (vit / "old.py").write_text("")
    push(LocalFiles(vit), "me/vit", api=hub)
    hub.repositories["me/vit"]["main"].update({"NOTES.md": b"", "onnx/model.py": b"", "pytorch_model.bin": b""})
    assert index in hub.repositories["me/vit"]["main"]

    for path in (*LocalFiles(tmp_path / "sharded").weights(), index, "old.py"):
        (vit / path).unlink()
    said: list[str] = []
    push(LocalFiles(vit), "me/vit", tell=said.append, api=hub)
    assert hub.repositories["me/vit"]["main"].keys() == {
        ".gitattributes",
        "NOTES.md",
        "onnx/model.py",
        *of_model(vit),
    }
    assert len(hub.messages) == 2
    assert "old.py" in said[-1] and said[-1].startswith("deleted, since the model does not have them: ")


def test_a_branch_is_made(vit, hub):
    assert push(LocalFiles(vit), "me/vit", revision="next", api=hub) == f"{ADDRESS}/me/vit/tree/next"
    assert hub.repositories["me/vit"]["main"].keys() == {".gitattributes"}
    assert "config.json" in hub.repositories["me/vit"]["next"]


def test_an_interrupted_push_leaves_the_repository_as_it_was_and_can_be_repeated(vit, hub):
    push(LocalFiles(vit), "me/vit", api=hub)
    before = dict(hub.repositories["me/vit"]["main"])
    (vit / "NEWS.md").write_text("more")
    hub.breaks = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        push(LocalFiles(vit), "me/vit", api=hub)
    assert hub.repositories["me/vit"]["main"] == before
    push(LocalFiles(vit), "me/vit", api=hub)
    assert "NEWS.md" in hub.repositories["me/vit"]["main"]


def test_a_public_repository_gets_no_private_model(vit, hub):
    push(LocalFiles(vit), "me/vit", api=hub)
    with pytest.raises(ValueError, match="me/vit is public already, and --private does not change that"):
        push(LocalFiles(vit), "me/vit", private=True, api=hub)
    assert len(hub.messages) == 1


def test_what_the_card_lacks_is_said(vit, hub):
    card = (vit / "README.md").read_text().replace("license: mit\n", "")
    (vit / "README.md").write_text(card)
    said: list[str] = []
    push(LocalFiles(vit), "me/vit", tell=said.append, api=hub)
    assert said[0].startswith("README.md: no license")


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b'{"auto_map": {"AutoModel": "x.Y"}}', "names x.py, which is not there"),
        ("model.safetensors", None, "has no weights in safetensors; give what `hf-attn train`"),
        ("model.safetensors", b"x" * 9, "is no safetensors file"),
        ("README.md", None, "has no README.md; write one with `hf-attn card"),
        ("README.md", b"---\na: [\n---\n", "its YAML cannot be read"),
    ],
)
def test_what_would_not_load_is_refused_before_the_hub_hears_of_it(vit, hub, path, content, said):
    (vit / path).unlink() if content is None else (vit / path).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        push(LocalFiles(vit), "me/vit", api=hub)
    assert hub.repositories == {}


def test_name_and_token_are_asked_for_before_anything_else(vit, hub, monkeypatch):
    with pytest.raises(ValueError, match="a/b/c is no name of a repository"):
        push(LocalFiles(vit), "a/b/c", api=hub)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="log in with `hf auth login`, or set HF_TOKEN"):
        push(LocalFiles(vit), "me/vit", api=hub)
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"may run code when read: `hf-attn convert .*` makes safetensors"):
        push(LocalFiles(vit), "me/vit", api=hub)
    assert hub.repositories == {}
