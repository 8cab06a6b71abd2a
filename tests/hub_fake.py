"""A Hub in memory, for what stands in front of `HfApi`; and model directories to put on it."""

from pathlib import Path
from types import SimpleNamespace

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    ModelCard,
    ModelCardData,
    parse_local_safetensors_file_metadata,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.tiny import tiny_vit

ADDRESS = "https://hub.test"


def refusal(kind: type[HfHubHTTPError], status: int, said: str | None = None) -> HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("GET", ADDRESS))
    return kind("a long message", response=response, server_message=said)


class Address(str):
    repo_id: str


class FakeHub:
    """Repositories by name, each a dictionary of branches, each one of paths and bytes; counts the commits."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.breaks: BaseException | None = None  # in the next commit

    def create_repo(self, repo: str, private: bool | None = None, exist_ok: bool = False) -> Address:
        assert exist_ok
        name = repo if "/" in repo else f"me/{repo}"
        if name not in self.repositories:
            self.repositories[name] = {"main": {".gitattributes": b""}}
            self.private[name] = bool(private)
        address = Address(f"{ADDRESS}/{name}")
        address.repo_id = name
        return address

    def create_branch(self, repo: str, *, branch: str) -> None:
        self.repositories[repo][branch] = dict(self.repositories[repo]["main"])

    def model_info(self, repo: str, revision: str | None = None, files_metadata: bool = False) -> SimpleNamespace:
        if repo not in self.repositories:
            raise refusal(RepositoryNotFoundError, 404)
        if (revision or "main") not in self.repositories[repo]:
            raise refusal(RevisionNotFoundError, 404)
        files = self.repositories[repo][revision or "main"]
        siblings = [SimpleNamespace(rfilename=path, size=len(content)) for path, content in files.items()]
        return SimpleNamespace(siblings=siblings, sha=revision or "main", private=self.private[repo])

    def create_commit(self, repo, operations, *, commit_message, revision, parent_commit) -> None:
        assert parent_commit == (revision or "main")
        if self.breaks is not None:
            error, self.breaks = self.breaks, None
            raise error
        branch = self.repositories[repo][revision or "main"]
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                branch[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
            elif isinstance(operation, CommitOperationDelete):
                del branch[operation.path_in_repo]
        self.messages.append(commit_message)

    def hf_hub_download(self, repo: str, path: str, *, revision: str) -> str:
        file = self.directory / repo / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.repositories[repo][revision][path])
        return str(file)

    def get_safetensors_metadata(self, repo: str, *, revision: str) -> SimpleNamespace:
        files = {}
        for path in self.repositories[repo][revision]:
            if path.endswith(".safetensors"):
                file = self.hf_hub_download(repo, path, revision=revision)
                files[path] = parse_local_safetensors_file_metadata(file)
        return SimpleNamespace(files_metadata=files)


def save_model(directory: Path, **more: object) -> Path:
    """A classifier with a complete card, and what a training leaves beside it."""
    tiny_vit().save_pretrained(directory, **more)
    write_card(directory)
    for path in ("checkpoints/checkpoint-2/optimizer.pt", "samples/1.png", "training_args.bin", "a.tmp", ".hidden"):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(b"not of the model")
    (directory / "training_settings.json").write_text('{"settings": {"base_model": "/home/me/secret"}}')
    return directory


def write_card(directory: Path, **changes: object) -> None:
    facts = {"license": "mit", "library_name": "transformers", "tags": ["hf_attn"]}
    data = ModelCardData(**{**facts, "pipeline_tag": "image-classification", **changes})
    (directory / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# Shapes\n")), encoding="utf-8")


def of_model(directory: Path) -> set[str]:
    """What `save_model` wrote that belongs to the model, its code too."""
    return {"README.md", "config.json", "model.safetensors", *(file.name for file in directory.glob("*.py"))}
