"""The repositories of the Hub on loopback, in memory: each a series of commits, and a commit is a complete tree."""

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from tests.loopback_cards import card_faults

LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".onnx")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()


class Refusal(Exception):
    """A status of HTTP, a message and, by which the client tells the cases apart, the Hub's code."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        line = " ".join(message.encode("ascii", "replace").decode().split())
        said = {"X-Error-Message": line} | ({"X-Error-Code": code} if code else {})
        self.status, self.message, self.headers = status, message, said | (headers or {})


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git keeps of a large file."""
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def blob(self) -> str:
        """What git calls the file."""
        kept = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob

    @property
    def lfs(self) -> dict[str, Any]:
        """Empty for a file that is not large. The tree calls the digest otherwise than the list of siblings does."""
        sizes = {"size": len(self.content), "pointerSize": len(self.pointer)}
        return {"lfs": {"oid": self.sha256, "sha256": self.sha256} | sizes} if self.large else {}


@dataclass(frozen=True)
class Commit:
    files: dict[str, File]
    summary: str
    description: str = ""
    parent: "Commit | None" = None
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    @cached_property
    def sha(self) -> str:
        blobs = sorted((path, file.blob) for path, file in self.files.items())
        parent = self.parent.sha if self.parent else None
        return hashlib.sha1(repr((blobs, parent, self.summary, self.description, self.date)).encode()).hexdigest()

    @property
    def card(self) -> str:
        return self.files["README.md"].content.decode() if "README.md" in self.files else ""


class Repository:
    """Begins, as on the Hub, with a commit of .gitattributes. `objects` were uploaded by LFS, committed or not.
    `offers` are the titles and authors of open pull requests, whose references are branches."""

    def __init__(self, owner: str, private: bool):
        self.owner, self.private = owner, private
        self.objects: dict[str, bytes] = {}
        self.offers: dict[str, tuple[str, str]] = {}
        first = Commit({".gitattributes": File(GIT_ATTRIBUTES)}, "initial commit")
        self.branches, self.commits = {"main": first}, {first.sha: first}

    def at(self, revision: str) -> Commit:
        commit = self.branches.get(revision) or self.commits.get(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """The newest commit first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(commits[-1].parent)
        return commits

    def commit(self, branch: str, operations: list[tuple[str, dict[str, Any]]]) -> Commit:
        """All operations or, where one is wrong, none; each is the (key, value) of a line that the client sends."""
        if branch not in self.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.branches[branch]
        header, files = dict[str, Any](), dict(head.files)
        for key, value in operations:
            path = value.get("path", "")
            if key == "header":
                header = value
            elif key == "file":
                files[path] = File(base64.b64decode(value["content"], validate=True))
            elif key == "lfsFile" and value["oid"] in self.objects:
                files[path] = File(self.objects[value["oid"]], large=True)
            elif key == "deletedFile" and path in files:
                del files[path]
            elif key == "deletedFolder":
                files = {name: file for name, file in files.items() if not name.startswith(path)}
            elif key == "deletedFile":
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            else:
                raise Refusal(400, f"{key} of {path}: no such operation, or no such object was uploaded")
        if not head.sha.startswith(header.get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = Commit(files, header.get("summary", ""), header.get("description", ""), head)
        if faults := card_faults(commit.card):
            raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(faults))
        self.commits[commit.sha] = self.branches[branch] = commit
        return commit
