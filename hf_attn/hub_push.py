"""A model to the Hub, in one commit: what belongs to it goes there, and what it replaces goes away."""

import os
from collections.abc import Callable
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from hf_attn.hub_card import card_problems
from hf_attn.hub_files import PICKLES, LocalFiles, check_repo, hub_errors
from hf_attn.hub_info import in_bytes, some

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

# Of these, a repository keeps none that the model does not have: they would be loaded, or taken for its weights.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.py", "pytorch_model*.bin*")
MESSAGE = "Upload a model with hf-attn push"


def check_pushable(files: LocalFiles) -> list[str]:
    """What is missing in the model's card.

    Raises:
        ValueError: if the model would not load, or its card is wrong.
    """
    if not files.weights():
        remedy = "give what `hf-attn train` or save_pretrained wrote"
        if pickles := [path for path in files.pickles if path in files.of_model]:
            remedy = (
                f"{some(pickles, 2)} may run code when read: `hf-attn convert {files.name}` makes safetensors of them"
            )
        raise ValueError(f"{files.name} has no weights in safetensors; {remedy}")
    for _ in files.tensors():  # reads every header
        pass
    if missing := files.missing_code():
        raise ValueError(
            f"{files.name}/config.json names {some(missing, 3)}, which is not there; save the model again"
        )
    return card_problems(files)


def to_upload(files: LocalFiles) -> dict[str, int]:
    """What belongs to the model, with its sizes; no pickles, since there is safetensors."""
    return {path: size for path, size in files.of_model.items() if not path.endswith(PICKLES)}


def push(
    files: LocalFiles,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    api: "HfApi | None" = None,
) -> str:
    """Upload a model in one commit, so that the repository has all of it or is as it was; gives its address.

    Args:
        repo: `owner/name`, or `name` of one's own; made if it is not there.
        private: whether nobody else may see it.
        revision: branch; made if it is not there.
        tell: is told what is about to be done.

    Raises:
        ValueError: if the model would not load, its card is wrong, the repository is public and should be private, or
            the Hub refuses.
    """
    check_repo(repo)
    for problem in check_pushable(files):
        tell(f"README.md: {problem}")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise ValueError("the Hub takes models only from whom it knows; log in with `hf auth login`, or set HF_TOKEN")
    api = api or HfApi()
    new = to_upload(files)
    tell(f"{files.name} to {repo}: {len(new)} files, {in_bytes(sum(new.values()))}")
    for path, size in new.items():
        tell(f"{in_bytes(size):>10}  {path}")
    if left_out := [path for path in files.sizes if path not in new]:
        tell(f"left out: {some(left_out, 3)}, {in_bytes(sum(files.sizes[path] for path in left_out))} in all")
    with hub_errors(repo, "no such repository, and none that this token may make"):
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        there = _branch(api, address.repo_id, revision)
        if private and there.private is False:
            raise ValueError(
                f"{address.repo_id} is public already, and --private does not change that; do so in its settings, or "
                "leave --private out"
            )
        names = [file.rfilename for file in there.siblings or []]
        gone = [name for name in names if name not in new and any(fnmatch(name, kind) for kind in REPLACED)]
        gone = [name for name in gone if "/" not in name]  # a model lies at the top
        if gone:
            tell(f"deleted, since the model does not have them: {', '.join(gone)}")
        api.create_commit(
            address.repo_id,
            [
                *(CommitOperationAdd(path, os.fspath(files.directory / path)) for path in new),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=message or MESSAGE,
            revision=revision,
            parent_commit=there.sha,  # what was to be deleted was seen there
        )
    return f"{address}/tree/{revision}" if revision else str(address)


def _branch(api: "HfApi", repo: str, revision: str | None) -> "ModelInfo":
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(repo, revision=revision)
    except RevisionNotFoundError:
        if revision is None:
            raise
        api.create_branch(repo, branch=revision)
        return api.model_info(repo, revision=revision)
