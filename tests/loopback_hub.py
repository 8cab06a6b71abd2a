"""A Hub on loopback, for tests only: the endpoints that huggingface_hub 2.4 calls for repositories of models.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path))
        hub.files("someone/model")["config.json"]

The libraries read where the Hub is when they are imported, hence the subprocess. What the real Hub has and this one
has not: datasets and Spaces, tags, pull requests that a client opens, organisations, gated repositories, copies, Xet,
LFS in parts, redirects to another host for large files, answers of several pages, .gitignore, and a library or task
told from a model's files instead of its card.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_cards import card_faults, card_metadata, card_tags
from tests.loopback_repositories import LARGE_SUFFIXES, Commit, File, Refusal, Repository

USERS = {"hf_someone": "someone", "hf_another": "another"}  # by token

NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
MODEL, RESOLVE = rf"/api/models/{NAME}", rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)"
ENDPOINTS = {
    "whoami": ("GET", "/api/whoami-v2"),
    "validate": ("POST", "/api/validate-yaml"),
    "create": ("POST", "/api/repos/create"),
    "branch": ("POST", rf"{MODEL}/branch/{REVISION}"),
    "preupload": ("POST", rf"{MODEL}/preupload/{REVISION}"),
    "batch": ("POST", rf"/{NAME}\.git/info/lfs/objects/batch"),
    "upload": ("PUT", rf"/uploads/{NAME}/(?P<digest>[0-9a-f]+)"),
    "verify": ("POST", rf"/uploads/{NAME}/verify"),
    "commit": ("POST", rf"{MODEL}/commit/{REVISION}"),
    "info": ("GET", rf"{MODEL}(?:/revision/{REVISION})?"),
    "tree": ("GET", rf"{MODEL}/tree/{REVISION}(?:/(?P<path>.*))?"),
    "refs": ("GET", rf"{MODEL}/refs"),
    "history": ("GET", rf"{MODEL}/commits/{REVISION}"),
    "discussions": ("GET", rf"{MODEL}/discussions"),
    "metadata": ("HEAD", RESOLVE),
    "download": ("GET", RESOLVE),
}
# "cut" hangs up in the middle of the request's body, which then has no effect, or, where there is none, of the
# answer's; "lost" does what was asked and hangs up without an answer; a number is the status of a refusal.
Failure = Literal["cut", "lost"] | int


class Answer:
    """Content other than bytes is sent as JSON."""

    def __init__(self, content: bytes | Any = b"", status: int = 200, headers: dict[str, str] | None = None):
        self.content = content if isinstance(content, bytes) else json.dumps(content, default=str).encode()
        self.status = status
        self.headers = {"Content-Length": str(len(self.content))} | (headers or {})


@dataclass(frozen=True)
class Request:
    endpoint: str  # of ENDPOINTS, or "unknown"
    method: str
    path: str
    token: str | None
    status: int | None  # None where no answer, or half of one, was sent


class LoopbackHub:
    """Answers from `__enter__` to `close`. What has LARGE_SUFFIXES, or more than `large_size` bytes, goes by LFS."""

    def __init__(self, large_size: int = 1_000_000):
        self.large_size = large_size
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.failures: dict[str, list[Failure]] = {endpoint: [] for endpoint in ENDPOINTS}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Connections are refused from here on; what was pushed can still be looked at."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = "hf_someone", **more: str) -> dict[str, str]:
        """The variables of a subprocess that talks to this hub with `token` and has its caches in `home`."""
        foreign = re.compile(r"(HF|HUGGING\w*|TRANSFORMERS)_.*|(\w+_)?proxy", re.IGNORECASE)
        variables = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
        variables |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | ({"HF_TOKEN": token} if token else {})
        off = ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")
        return variables | {f"HF_HUB_DISABLE_{what}": "1" for what in off} | more

    def fail_on(self, endpoint: str, failure: Failure = 503, times: int = 1) -> None:
        """The next requests to one of ENDPOINTS fail; after these it works again."""
        self.failures[endpoint] += [failure] * times

    def create(self, name: str, private: bool = False) -> Repository:
        self.repositories[name] = Repository(name.split("/")[0], private)
        return self.repositories[name]

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main", summary: str = "a commit") -> str:
        """Adds files without a client and returns the hash of the commit."""
        repository = self.repositories[name]
        operations: list[tuple[str, dict[str, Any]]] = [("header", {"summary": summary})]
        for path, content in files.items():
            if self.is_large(path, len(content)):
                digest = File(content).sha256
                repository.objects[digest] = content
                operations.append(("lfsFile", {"path": path, "oid": digest}))
            else:
                operations.append(("file", {"path": path, "content": base64.b64encode(content)}))
        return repository.commit(branch, operations).sha

    def offer(self, name: str, files: dict[str, bytes], title: str, author: str) -> str:
        """Opens a pull request that adds files to main, and returns its reference."""
        repository = self.repositories[name]
        reference = f"refs/pr/{len(repository.offers) + 1}"
        repository.offers[reference] = (title, author)
        repository.branches[reference] = repository.at("main")
        self.commit(name, files, reference)
        return reference

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.repositories[name].at(revision).files.items()}

    def history(self, name: str, revision: str = "main") -> list[Commit]:
        """The newest commit first."""
        return self.repositories[name].history(revision)

    def is_large(self, path: str, size: int) -> bool:
        return size > self.large_size or path.endswith(LARGE_SUFFIXES)


class _Handler(BaseHTTPRequestHandler):
    """Finds the endpoint of a request, has `answer_<endpoint>` make the answer, and sends it or fails as told."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The log is `hub.requests`."""

    def respond(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        endpoint, arguments = "unknown", dict[str, str]()
        for name, (method, pattern) in ENDPOINTS.items():
            if method == self.command and (match := re.fullmatch(pattern, url.path)):
                endpoint = name
                arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                break
        with self.hub.lock:
            failures = self.hub.failures.get(endpoint)
            failure = failures.pop(0) if failures else None
        size = int(self.headers.get("Content-Length", 0))
        cut_request = failure == "cut" and size > 0
        self.body = self.rfile.read(size // 2 if cut_request else size)
        with self.hub.lock:
            answer = Answer() if cut_request else self.answer(endpoint, arguments, failure)
            status = None if failure in ("cut", "lost") else answer.status
            self.hub.requests.append(Request(endpoint, self.command, self.path, self.token, status))
        content = b"" if self.command == "HEAD" else answer.content
        self.close_connection |= status is None
        if failure == "lost" or (failure == "cut" and not content):
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if failure == "cut" else content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def answer(self, endpoint: str, arguments: dict[str, str], failure: Failure | None) -> Answer:
        try:
            if isinstance(failure, int):
                raise Refusal(failure, "this hub was told to fail")
            made: Answer = getattr(self, f"answer_{endpoint}")(**arguments)
            return made
        except Refusal as refusal:
            return Answer({"error": refusal.message}, refusal.status, refusal.headers)
        except (KeyError, TypeError, ValueError) as error:
            return Answer({"error": f"malformed request: {error!r}"}, 400)

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    @property
    def user(self) -> str | None:
        if self.token is None:
            return None
        if self.token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS[self.token]

    def signed_in_user(self) -> str:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    def repository(self, name: str, to_write: bool = False) -> Repository:
        repository, user = self.hub.repositories.get(name), self.user
        owned = repository is not None and user == repository.owner
        if repository is None or (repository.private and not owned) or (to_write and user is None):
            # Nobody is told which private repositories there are. The code is what the client makes of any 401 from an
            # address that begins with https, which this one does not.
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if to_write and not owned:
            raise Refusal(403, f"you don't have the rights to write to {name}")
        return repository

    def answer_unknown(self) -> Answer:
        raise Refusal(501, f"the hub on loopback does not know {self.command} {self.path}")

    def answer_whoami(self) -> Answer:
        role = {"accessToken": {"role": "write"}}
        return Answer({"type": "user", "name": self.signed_in_user(), "orgs": [], "auth": role})

    def answer_validate(self) -> Answer:
        card = json.loads(self.body)["content"]
        faults = card_faults(card)
        warnings = [] if faults or card_metadata(card) else ["empty or missing yaml metadata in repo card"]
        said: Any = {"errors": [{"message": text} for text in faults]}
        said |= {"warnings": [{"message": text} for text in warnings]}
        as_text = self.headers.get("Accept") == "text/plain"
        return Answer("\n".join(faults).encode() if as_text else said, 400 if faults else 200)

    def answer_create(self) -> Answer:
        wanted, user = json.loads(self.body), self.signed_in_user()
        namespace = wanted.get("organization") or user
        if wanted.get("type", "model") != "model":
            raise Refusal(501, "the hub on loopback has models only")
        if namespace != user:
            raise Refusal(403, f"you don't have the rights to create a model under the namespace {namespace}")
        name = f"{namespace}/{wanted['name']}"
        place = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return Answer({"error": "You already created this model repo"} | place, 409)
        self.hub.create(name, private=wanted.get("visibility") == "private")
        return Answer(place)

    def answer_branch(self, name: str, revision: str) -> Answer:
        repository = self.repository(name, to_write=True)
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.at(json.loads(self.body).get("startingPoint", "main"))
        return Answer({})

    def answer_preupload(self, name: str, revision: str) -> Answer:
        """How each file is to be uploaded, and what is there already, so that the client sends only what changed."""
        there, answers = self.repository(name, to_write=True).at(revision).files, []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if self.hub.is_large(file["path"], file["size"]) else "regular"
            oid = {"oid": there[file["path"]].etag} if file["path"] in there else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | oid)
        return Answer({"files": answers})

    def answer_batch(self, name: str) -> Answer:
        objects, place, answers = self.repository(name, to_write=True).objects, f"{self.hub.url}/uploads/{name}", []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{place}/{wanted['oid']}"}, "verify": {"href": f"{place}/verify"}}
            answers.append(wanted | ({} if wanted["oid"] in objects else {"actions": actions}))
        return Answer({"transfer": "basic", "objects": answers})

    def answer_upload(self, name: str, digest: str) -> Answer:
        """Comes without a token, for on the real Hub the address itself is signed."""
        if File(self.body).sha256 != digest:
            raise Refusal(400, f"the content does not have the digest {digest}")
        self.hub.repositories[name].objects[digest] = self.body
        return Answer()

    def answer_verify(self, name: str) -> Answer:
        wanted = json.loads(self.body)
        if len(self.repository(name, to_write=True).objects[wanted["oid"]]) != wanted["size"]:
            raise Refusal(400, f"{wanted['oid']} does not have {wanted['size']} bytes")
        return Answer({})

    def answer_commit(self, name: str, revision: str) -> Answer:
        if "create_pr" in self.query:
            raise Refusal(501, "the hub on loopback has no pull requests")
        lines = [json.loads(line) for line in self.body.splitlines()]
        operations = [(line["key"], line["value"]) for line in lines]
        sha = self.repository(name, to_write=True).commit(revision, operations).sha
        return Answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def answer_info(self, name: str, revision: str = "main") -> Answer:
        repository = self.repository(name)
        commit = repository.at(revision)
        metadata = card_metadata(commit.card) or {}
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
        if "blobs" in self.query:
            for sibling, file in zip(siblings, commit.files.values(), strict=True):
                sibling |= {"blobId": file.blob, "size": len(file.content)} | file.lfs
        info: dict[str, Any] = {"id": name, "author": repository.owner, "private": repository.private, "gated": False}
        info |= {"sha": commit.sha, "siblings": siblings, "lastModified": commit.date}
        info |= {"createdAt": repository.history()[-1].date, "tags": card_tags(metadata), "cardData": metadata}
        named = ("library_name", "pipeline_tag", "model-index")
        return Answer(info | {key: metadata[key] for key in named if key in metadata})

    def answer_tree(self, name: str, revision: str, path: str = "") -> Answer:
        entries: dict[str, dict[str, Any]] = {"": {}}
        for file_path, file in self.repository(name).at(revision).files.items():
            described = {"type": "file", "path": file_path, "oid": file.blob, "size": len(file.content)} | file.lfs
            entries[file_path] = described
            for folder in map(str, Path(file_path).parents[:-1]):
                digest = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "oid": digest, "size": 0}
        if path not in entries:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        below = f"{path}/" if path else ""
        found = {place.removeprefix(below): entry for place, entry in entries.items() if place.startswith(below)}
        deep = self.query.get("recursive", [""])[0].lower() == "true"
        return Answer([entry for place, entry in sorted(found.items()) if place and (deep or "/" not in place)])

    def answer_refs(self, name: str) -> Answer:
        repository = self.repository(name)
        branches = {ref: commit for ref, commit in repository.branches.items() if ref not in repository.offers}
        refs = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": commit.sha} for r, commit in branches.items()]
        return Answer({"branches": refs, "tags": [], "converts": [], "pullRequests": []})

    def answer_history(self, name: str, revision: str) -> Answer:
        repository, answers = self.repository(name), []
        for commit in repository.history(revision):
            said = {"title": commit.summary, "message": commit.description, "authors": [{"user": repository.owner}]}
            answers.append({"id": commit.sha, "date": commit.date} | said)
        return Answer(answers)

    def answer_discussions(self, name: str) -> Answer:
        repository, answers = self.repository(name), []
        for reference, (title, author) in repository.offers.items():
            said = {"title": title, "num": int(reference.split("/")[-1]), "author": {"name": author}, "status": "open"}
            said |= {"repo": {"name": name, "type": "model"}, "isPullRequest": True}
            answers.append(said | {"createdAt": repository.at(reference).date})
        return Answer({"count": len(answers), "start": 0, "discussions": answers})

    def answer_download(self, name: str, revision: str, path: str) -> Answer:
        commit = self.repository(name).at(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file, size = commit.files[path], len(commit.files[path].content)
        headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if file.large:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(size)}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return Answer(file.content, 200, headers)
        start, stop = int(part[1]), min(int(part[2] or size) + 1, size)
        if start >= stop:
            raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        return Answer(file.content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    answer_metadata = answer_download
