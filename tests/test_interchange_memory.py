"""`hf-attn import` needs little more memory than the checkpoint has bytes, in whatever file it comes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from transformers import MarianConfig, MarianMTModel

import hf_attn
from tests import test_interchange_vit_jax as google

MOST = 1.3  # of the checkpoint's bytes
# What is loaded with the first import is in memory before the second is measured. The numbers are of this process
# alone; the resource module's begin with those of its parent.
IMPORT = """
import re, sys
from pathlib import Path
from hf_attn.interchange.importing import import_checkpoint

def kilobytes(of):
    return int(re.search(rf"{of}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

import_checkpoint(sys.argv[1], "small")
before = kilobytes("VmRSS")
import_checkpoint(sys.argv[2], "large")
print(kilobytes("VmHWM") - before)
"""


def marian_directory(place: Path, is_large: bool) -> Path:
    """More than half of it is one tensor."""
    words, width, layers = (50_000, 512, 3) if is_large else (60, 16, 1)
    both = {"layers": layers, "attention_heads": 2, "ffn_dim": 2 * width}
    sizes = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in both.items()}
    special = {"pad_token_id": words - 1, "decoder_start_token_id": words - 1, "eos_token_id": 0}
    MarianMTModel(MarianConfig(vocab_size=words, d_model=width, **sizes, **special)).save_pretrained(place)
    return place


def timm_file(place: Path, is_large: bool) -> Path:
    """A quarter of it are queries, keys and values in one, which become three."""
    shape = {"embed_dim": 768 if is_large else 64, "num_heads": 12 if is_large else 1, "depth": 6, "num_classes": 3}
    file = place.with_suffix(".pth")
    torch.save(timm.create_model("vit_base_patch16_224", **shape).state_dict(), file)
    return file


def google_file(place: Path, is_large: bool) -> Path:
    """Most of it is transposed."""
    width = 768 if is_large else 24
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WIDTH": width, "WIDE": 4 * width, "LAYERS": 6}.items():
            patch.setattr(google, name, value)
        np.savez(place.with_suffix(".npz"), **google.arrays(google.shapes(google.PAPER)))
    return place.with_suffix(".npz")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where Linux says how much memory was used")
@pytest.mark.parametrize("write", [marian_directory, timm_file, google_file])
def test_memory_is_little_more_than_the_checkpoint(write, tmp_path):
    small, large = write(tmp_path / "small", False), write(tmp_path / "large", True)
    files = [large] if large.is_file() else large.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    assert size > 150e6
    home = tmp_path / "made"
    home.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_attn.__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT, small, large]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) * 1024 < MOST * size
