"""What every test stands on: no network, no cache of the user's, the same seeds, no window."""

import os
import shutil
import socket
import tempfile

CACHE = tempfile.mkdtemp(prefix="hf_attn_tests_")
# Read by the Hugging Face libraries when they are imported, hence set before any of them is.
os.environ.update(
    HF_HOME=CACHE,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # models so small are slower with more
)

from pathlib import Path

import hypothesis
import pytest
from transformers import set_seed

from hf_attn.tokenization_translator import train_tokenizer
from tests.hub_fake import save_model
from tests.tiny import tiny_translator

# Examples drawn from the test alone, so that a failure repeats; no deadline, so that a busy machine does not fail.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def same_seeds() -> None:
    set_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address} over the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def translator_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved translator with its tokenizer; what it says is noise, for its weights are random."""
    directory = tmp_path_factory.mktemp("translator")
    tokenizer = train_tokenizer(["Das ist ein Satz.", "This is a sentence.", "Noch ein Satz folgt darauf."] * 4, 300)
    tokenizer.save_pretrained(directory)
    tiny_translator(vocab_size=len(tokenizer)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def saved_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier with what a training leaves beside it, to be read only; `vit` is a copy to change."""
    return save_model(tmp_path_factory.mktemp("model") / "vit")


@pytest.fixture
def vit(saved_vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_vit, tmp_path / "vit"))
