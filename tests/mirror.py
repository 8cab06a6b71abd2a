"""A mirror of packages made up for tests of the examples: it answers apt-get and dpkg-deb without a network."""

import importlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
downloads = importlib.import_module("downloads")


class Mirror:
    """Answers apt-get and dpkg-deb from packages in memory, {path: content}, and counts the downloads."""

    def __init__(self, packages: dict[str, dict[str, bytes]]):
        self.packages = packages
        self.downloads: list[str] = []

    def run(self, *command: str | Path, remedy: str, cwd: Path | None = None, capture: bool = False) -> bytes:
        words = [str(word) for word in command]
        if words[0] == "dpkg-deb":
            return Path(words[2]).read_bytes()
        if "download" in words:
            assert cwd is not None
            package = words[-1]
            self.downloads.append(package)
            (cwd / f"{package}_1_all.deb").write_bytes(tar_of(self.packages[package]))
        return b""

    def answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(downloads, "run", self.run)
        monkeypatch.setattr(downloads.shutil, "which", lambda command: f"/usr/bin/{command}")


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./usr/share/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def picture_file(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def png(mode: str, size: tuple[int, int], colour: Any) -> bytes:
    return picture_file(Image.new(mode, size, colour))
