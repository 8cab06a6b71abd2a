"""Vision Transformers of other libraries, small and randomised, and how far ours are from them."""

from pathlib import Path

import sklearn.datasets
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny import randomise

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def pictures(*size: int, seed: int = 1) -> torch.Tensor:
    """(2, 3, *size), 32x32 by default."""
    return torch.randn(2, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(seed))


def of_transformers(model_class, config, directory: Path, in_memory: bool = False):
    """A randomised model of transformers, saved by the names on disk, as transformers does, or by those in memory."""
    torch.manual_seed(0)
    model = randomise(model_class(config)).eval()
    model.save_pretrained(directory)
    if in_memory:
        save_weights({name: weight.clone() for name, weight in model.state_dict().items()}, directory)
    return model


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def save_weights(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def difference(ours, theirs) -> float:
    """The largest, between two tensors or two sequences of them."""
    if isinstance(ours, torch.Tensor):
        assert ours.shape == theirs.shape
        return (ours - theirs).abs().max().item()
    return max(difference(one, other) for one, other in zip(ours, theirs, strict=True))


def picture() -> Image.Image:
    """A real photograph, 640 x 427, that scikit-learn ships."""
    return Image.open(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg")
