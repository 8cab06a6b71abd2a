"""What is read of a model without loading it; what is damaged is named, with sizes and remedy."""

import json

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

from hf_attn.hub_files import HubFiles, LocalFiles, check_repo, hub_errors, open_files, read_header
from tests.hub_fake import FakeHub, of_model, refusal
from tests.tiny import tiny_vit


def test_the_header_says_what_the_weights_are(vit):
    tensors = {tensor.name: tensor for tensor in LocalFiles(vit).tensors()}
    state = tiny_vit().state_dict()
    assert {name: list(weight.shape) for name, weight in state.items()} == {n: t.shape for n, t in tensors.items()}
    assert {tensor.dtype for tensor in tensors.values()} == {"F32"}


def test_shards_are_read_as_one(tmp_path):
    tiny_vit().save_pretrained(tmp_path, max_shard_size="10KB")
    files = LocalFiles(tmp_path)
    assert len(files.weights()) > 1
    assert {tensor.name for tensor in files.tensors()} == tiny_vit().state_dict().keys()
    shard = files.weights()[1]
    (tmp_path / shard).unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of the \d+ files of weights that .*{shard} first; copy"):
        LocalFiles(tmp_path).weights()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="says in no weight_map where"):
        LocalFiles(tmp_path).weights()


def test_a_file_of_another_size_than_its_header_says_is_refused(vit):
    file = vit / "model.safetensors"
    whole = file.read_bytes()
    for content, said in (
        (whole[:-1], rf"is cut off: it has {len(whole) - 1:,} bytes, and its header says at least {len(whole):,}"),
        (whole[:50], "is cut off: it has 50 bytes"),
        (whole + b"x", "has something after its end"),
        (b"", "of 0 bytes, is no safetensors file"),
        (b"\xff" * 20, "of 20 bytes, is no safetensors file"),
        ((8).to_bytes(8, "little") + b"no JSON!", "its header is no description of tensors"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS .* `git lfs pull`"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            list(read_header(file))


def test_what_belongs_to_the_model_and_what_to_its_training(saved_vit, vit):
    (vit / "pytorch_model.bin").write_bytes(b"")
    files = LocalFiles(vit)
    assert set(files.of_model) == {"pytorch_model.bin", *of_model(saved_vit)}
    assert {"a.tmp", "samples/1.png"} <= files.sizes.keys() - files.of_model.keys()
    assert ".hidden" not in files.sizes
    assert set(files.pickles) == {"pytorch_model.bin", "training_args.bin"}


def test_code_that_config_names_is_looked_for(vit):
    config = json.loads((vit / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.X", "AutoTokenizer": ["a/b--c.D", None], "AutoConfig": "deep.er.X"}
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "modeling_x.py").write_text("raise SystemError('was run')")
    assert LocalFiles(vit).missing_code() == ["deep.er.py"]


@pytest.mark.parametrize(
    ("path", "content", "read", "said"),
    [
        ("config.json", None, LocalFiles.config, r"holds no model \(no config.json\)"),
        ("config.json", b"{", LocalFiles.config, "vit/config.json is not JSON .*line 1 column 2.*; mend it"),
        ("config.json", b"\xff", LocalFiles.config, "is not JSON .*0xff"),
        ("config.json", b"[]", LocalFiles.config, "holds no JSON object but list"),
        ("README.md", b"# x", LocalFiles.metadata, "has no YAML between two lines of ---"),
        ("README.md", b"---\na: [\n---\n", LocalFiles.metadata, "its YAML cannot be read"),
        ("README.md", b"---\n- a\n---\n", LocalFiles.metadata, "is no list of `name: value`"),
    ],
)
def test_damaged_text_is_named(vit, path, content, read, said):
    (vit / path).unlink() if content is None else (vit / path).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read(LocalFiles(vit))


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for name, said in (
        (str(tmp_path / "file"), "is a file; give the directory"),
        (str(tmp_path / "nowhere"), "no such directory, and no name on the Hub, which is owner/name"),
        ("a/b", "a/b: the Hub cannot be reached, .*HF_HUB_OFFLINE"),  # which the tests have set
    ):
        with pytest.raises(ValueError, match=said):
            open_files(name)
    with pytest.raises(ValueError, match="nowhere: no such directory; give"):
        LocalFiles(tmp_path / "nowhere")


def test_a_model_on_the_hub_is_read_as_one_in_a_directory(saved_vit, tmp_path):
    hub = FakeHub(tmp_path)
    hub.create_repo("me/vit", exist_ok=True)
    local = LocalFiles(saved_vit)
    hub.repositories["me/vit"]["main"] = {path: (saved_vit / path).read_bytes() for path in local.sizes}
    there = HubFiles("me/vit", api=hub)
    assert there.sizes == local.sizes
    assert (there.config(), there.metadata()) == (local.config(), local.metadata())
    assert sorted(there.tensors()) == sorted(local.tensors())
    cut = (saved_vit / "model.safetensors").read_bytes()[:5000]
    hub.repositories["me/vit"]["cut"] = {**hub.repositories["me/vit"]["main"], "model.safetensors": cut}
    with pytest.raises(ValueError, match=r"me/vit/model.safetensors is cut off: it has 5,000 bytes.*upload it again"):
        list(HubFiles("me/vit", "cut", api=hub).tensors())
    with pytest.raises(ValueError, match="me/other: no such directory, and no such model that the Hub would give"):
        HubFiles("me/other", api=hub)
    with pytest.raises(ValueError, match="me/vit has no such --revision"):
        HubFiles("me/vit", "v2", api=hub)


@pytest.mark.parametrize("repo", ["a/b/c", "a b", "-a", "a--b", "x" * 97, ""])
def test_names_that_the_hub_does_not_take(repo):
    with pytest.raises(ValueError, match="is no name of a repository; write owner/name or name"):
        check_repo(repo)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refusal(GatedRepoError, 403), "its owner lets in; ask on its page"),
        (refusal(RevisionNotFoundError, 404), "has no such --revision"),
        (refusal(HfHubHTTPError, 401), "refused this .status 401.; log in with `hf auth login`, or set HF_TOKEN"),
        (refusal(HfHubHTTPError, 403, "no rights"), "refused this .no rights.; use a token that may write"),
        (refusal(HfHubHTTPError, 412), "somebody else changed it meanwhile; repeat"),
        (refusal(HfHubHTTPError, 500), "status 500.; repeat the command later"),
        (OfflineModeIsEnabled("offline"), "cannot be reached, or hung up .offline.; check network"),
    ],
)
def test_what_the_hub_answers_comes_with_its_remedy(error, said):
    with pytest.raises(ValueError, match=said), hub_errors("a/b", "absent"):
        raise error
