"""The files of a model, in a directory or on the Hub, read without torch: sizes, JSON, and headers of weights."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIG, CARD = "config.json", "README.md"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What a training leaves beside its model; the settings of a run may hold paths on its machine.
TRAINING_DIRECTORIES = ("checkpoints", "checkpoint-*", "samples", "runs", "__pycache__")
TRAINING_FILES = ("training_settings.json", "training_args.bin", "trainer_state.json", "*.tmp", "*.tfevents.*")
LONGEST_HEADER = 100_000_000  # bytes, as the library safetensors has it
FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


class Tensor(NamedTuple):
    """What a header of weights says of a tensor; the type is safetensors' name for it, as F32."""

    name: str
    dtype: str
    shape: list[int]


class ModelFiles(ABC):
    """The files of a model, without hidden ones.

    Args:
        name: of the directory, or on the Hub.
        sizes: bytes by path, with / between directories.
    """

    def __init__(self, name: str, sizes: dict[str, int]):
        self.name = name
        self.sizes = {path: size for path, size in sorted(sizes.items()) if "/." not in f"/{path}"}

    @abstractmethod
    def read(self, path: str) -> str:
        """The text of a file."""

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """What the headers of all `weights` say. Raises a ValueError for a damaged file."""

    @property
    def of_model(self) -> dict[str, int]:
        """The sizes of what belongs to the model rather than to its training."""
        return {path: size for path, size in self.sizes.items() if not is_of_training(path)}

    @property
    def pickles(self) -> list[str]:
        """Files that may run code when they are read."""
        return [path for path in self.sizes if path.endswith(PICKLES) and not is_in(path, TRAINING_DIRECTORIES)]

    def json(self, path: str) -> dict[str, Any]:
        """Raises a ValueError for what is not a JSON object."""
        try:
            content = json.loads(self.read(path))
        except ValueError as error:  # not UTF-8 either
            raise ValueError(f"{self.name}/{path} is not JSON ({error}); mend it, or copy it again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.name}/{path} holds no JSON object but {type(content).__name__}; copy it again")
        return content

    def config(self) -> dict[str, Any]:
        if CONFIG not in self.sizes:
            raise ValueError(
                f"{self.name} holds no model (no {CONFIG}); give what `hf-attn train` or save_pretrained wrote"
            )
        return self.json(CONFIG)

    def metadata(self) -> dict[str, Any]:
        """What the YAML block of README.md says; empty without README.md.

        Raises:
            ValueError: if there is no such block, or it is no YAML.
        """
        if CARD not in self.sizes:
            return {}
        block = FRONT_MATTER.search(self.read(CARD).removeprefix("\ufeff"))
        if block is None:
            raise ValueError(f"{self.name}/{CARD} has no YAML between two lines of --- at its top; add it")
        try:
            content = yaml.safe_load(block[1])
        except yaml.YAMLError as error:
            raise ValueError(f"{self.name}/{CARD}: its YAML cannot be read ({error}); mend it") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.name}/{CARD}: its YAML is no list of `name: value`; mend it")
        return content

    def weights(self) -> list[str]:
        """The safetensors files that transformers loads; none if there are none.

        Raises:
            ValueError: if one is missing.
        """
        if WEIGHTS in self.sizes or INDEX not in self.sizes:
            return [WEIGHTS] if WEIGHTS in self.sizes else []
        names = self.json(INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
            raise ValueError(f"{self.name}/{INDEX} says in no weight_map where the weights are; copy it again")
        shards = sorted(set(names.values()))
        if missing := [shard for shard in shards if shard not in self.sizes]:
            raise ValueError(
                f"{self.name} lacks {len(missing)} of the {len(shards)} files of weights that {INDEX} names, "
                f"{missing[0]} first; copy the model again"
            )
        return shards

    def missing_code(self) -> list[str]:
        """The files of code that config.json names and that are not there, other repositories' aside."""
        modules = {f"{place.rpartition('.')[0]}.py" for place in auto_map_places(self.config()) if "--" not in place}
        return sorted(modules - self.sizes.keys())


class LocalFiles(ModelFiles):
    """The files of a directory."""

    def __init__(self, directory: Path):
        if directory.is_file():
            raise ValueError(f"{directory} is a file; give the directory of a model")
        if not directory.is_dir():
            raise ValueError(f"{directory}: no such directory; give the directory of a model")
        self.directory = directory
        super().__init__(str(directory), {path: (directory / path).stat().st_size for path in self._paths()})

    def _paths(self) -> Iterator[str]:
        for place, directories, names in os.walk(self.directory):
            directories[:] = [name for name in directories if not name.startswith(".")]
            for path in (Path(place, name) for name in names):
                if path.is_file():
                    yield path.relative_to(self.directory).as_posix()

    def read(self, path: str) -> str:
        return (self.directory / path).read_text(encoding="utf-8")

    def tensors(self) -> Iterator[Tensor]:
        for path in self.weights():
            yield from read_header(self.directory / path)


class HubFiles(ModelFiles):
    """The files of a model on the Hub, as they are at one commit.

    Raises:
        ValueError: if there is no such model, or the Hub cannot be reached.
    """

    ABSENT = "no such directory, and no such model that the Hub would give"

    def __init__(self, repo: str, revision: str | None = None, api: "HfApi | None" = None):
        from huggingface_hub import HfApi

        self.api = api or HfApi()
        with hub_errors(repo, self.ABSENT):
            info = self.api.model_info(repo, revision=revision, files_metadata=True)
        self.commit = info.sha
        super().__init__(repo, {file.rfilename: file.size or 0 for file in info.siblings or []})

    def read(self, path: str) -> str:
        with hub_errors(self.name, self.ABSENT):
            return Path(self.api.hf_hub_download(self.name, path, revision=self.commit)).read_text(encoding="utf-8")

    def tensors(self) -> Iterator[Tensor]:
        if not self.weights():
            return
        with hub_errors(self.name, self.ABSENT):
            files = self.api.get_safetensors_metadata(self.name, revision=self.commit).files_metadata
        for path, file in files.items():
            data = max((tensor.data_offsets[1] for tensor in file.tensors.values()), default=0)
            if self.sizes.get(path, data) < data:  # the client does not say how long the header before them is
                raise ValueError(
                    f"{self.name}/{path} is cut off: it has {self.sizes[path]:,} bytes, and its header says more than "
                    f"{data:,}; upload it again"
                )
            yield from (Tensor(name, tensor.dtype, tensor.shape) for name, tensor in file.tensors.items())


def open_files(model: str, revision: str | None = None) -> ModelFiles:
    """The files of a directory, or of a name on the Hub."""
    path = Path(model)
    if path.exists():
        return LocalFiles(path)
    try:
        check_repo(model)
    except ValueError as error:
        raise ValueError(f"{model}: no such directory, and no name on the Hub, which is owner/name") from error
    return HubFiles(model, revision)


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ValueError(
            f"{repo} is no name of a repository; write owner/name or name, at most 96 letters, digits, -, _ and ., "
            "with no - or . at either end and no -- or .. inside"
        ) from error


def is_in(path: str, directories: tuple[str, ...]) -> bool:
    return any(fnmatch(part, pattern) for part in PurePosixPath(path).parts[:-1] for pattern in directories)


def is_of_training(path: str) -> bool:
    name = PurePosixPath(path).name
    return is_in(path, TRAINING_DIRECTORIES) or any(fnmatch(name, pattern) for pattern in TRAINING_FILES)


def auto_map_places(config: dict[str, Any]) -> list[str]:
    """Where the code for a model is, as `module.Class`, or `owner/name--module.Class` in another repository."""
    places: list[str] = []
    for value in (config.get("auto_map") or {}).values():
        places += [place for place in (value if isinstance(value, list) else [value]) if place]
    return places


def read_header(path: Path) -> Iterator[Tensor]:
    """What the header of a safetensors file says of its tensors.

    Raises:
        ValueError: if it is no such file, or has more or fewer bytes than its header says.
    """
    there = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise ValueError(f"{path} is a pointer of Git LFS and not the weights; fetch them with `git lfs pull`")
        if len(start) < 8 or length > max(there, LONGEST_HEADER):
            raise ValueError(f"{path}, of {there:,} bytes, is no safetensors file; copy it again")
        header = file.read(length)
    needed = 8 + length
    if len(header) == length:
        try:
            entries = json.loads(header)
            entries.pop("__metadata__", None)
            tensors = [Tensor(name, entry["dtype"], entry["shape"]) for name, entry in entries.items()]
            needed += max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path}: its header is no description of tensors; copy it again") from error
    if there != needed:
        fault = "is cut off" if there < needed else "has something after its end"
        raise ValueError(
            f"{path} {fault}: it has {there:,} bytes, and its header says at least {needed:,}; copy it again"
        )
    yield from tensors


@contextmanager
def hub_errors(repo: str, absent: str) -> Iterator[None]:
    """Say in one line what the Hub refuses, and what to do about it; `absent` is for a missing repository."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{repo} is given to whom its owner lets in; ask on its page, and log in") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{repo}: {absent}; check the name, and log in with `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no such --revision; give a branch, a tag or a commit that it has") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or f"status {status}"
        remedy = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that is valid",
            403: "use a token that may write to it, from https://huggingface.co/settings/tokens",
            412: "somebody else changed it meanwhile; repeat the command",
        }.get(status, "repeat the command later")
        raise ValueError(f"{repo}: the Hub refused this ({said}); {remedy}") from error
    except errors.SafetensorsParsingError as error:
        raise ValueError(f"{repo}: the header of its weights cannot be read ({error}); upload them again") from error
    except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:  # none of the Hub's answers
        raise ValueError(
            f"{repo}: the Hub cannot be reached, or hung up ({error}); check network, HF_ENDPOINT, HF_HUB_OFFLINE"
        ) from error
    except RuntimeError as error:  # the client's, for a file of weights that did not get there
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"{repo} is as it was: {' '.join(f'{error}{cause}'.split())}; repeat the command") from error
