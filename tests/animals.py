"""Small pictures of animals that are told apart by their colours, damaged ones too, and a model that knows them."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hf_attn.image_processing_vit import AttnViTImageProcessor
from tests.tiny import tiny_vit

COLOURS = {"cat": (220, 40, 40), "dog": (40, 220, 40), "wild boar": (40, 40, 220)}
NAMES = dict(enumerate(COLOURS))


def picture(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """One colour with noise; `size` is (width, height)."""
    noise = np.random.default_rng(seed).normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype("uint8"))


def save_folders(root: Path) -> Path:
    """20 pictures for each of three classes, in folders."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(20):
            picture(colour, number).save(root / name / f"{number}.png")
    return root


def save_model(directory: Path, size: int | None = 32, **config: object) -> Path:
    """A classifier of three classes with its processor; what it says is noise, for its weights are random."""
    tiny_vit(id2label=NAMES, label2id={name: number for number, name in NAMES.items()}, **config).save_pretrained(
        directory
    )
    AttnViTImageProcessor(size=size).save_pretrained(directory)
    return directory


def write_bomb(path: Path, side: int = 30_000) -> Path:
    """A PNG that says it is 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    return path


def write_truncated(path: Path) -> Path:
    picture(COLOURS["cat"], 1).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path
