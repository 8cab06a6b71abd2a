"""Classify and train with the same Vision Transformer of hf_attn, transformers, timm and torchvision, and compare.

    python benchmarks/vit.py

ViT-B/16 at 224 with 1,000 classes: the same shape and number of parameters, random weights, in one process with the
same number of threads. The four take turns, one call each, and who begins a turn rotates; so all see the same machine.
An optimizer step of torch's fused AdamW belongs to a training step.

`img/s` are pictures per second, the median of all turns and their quartiles. `ratio` is hf_attn's speed over that of
the other in the same turn, median and quartiles: above 1 hf_attn is faster. `peak` is the share of the fastest matrix
product that was measured on this machine in the same number format: 2048 x 2048 times 2048 x 2048, by torch.mm or, on
CPUs, by oneDNN's linear layer, whichever is faster. A picture counts as two operations for each multiply-add of
the paper's layers (17.6 billion for ViT-B/16), three times that in training.

bench.py measures the same beside ONNX Runtime and OpenVINO, each in a process of its own; README.md has its figures.

`--quick` takes seconds, with a model too small to say anything about speed: to see whether all of it runs.
"""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import nn
from turns import DTYPES, OURS, check_choices, measure_peak, report, take_turns


@dataclass(frozen=True)
class Shape:
    image: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    classes: int = 1000

    @property
    def operations(self) -> int:
        """Of one picture's way through the model: two for each multiply-add."""
        patches, width = (self.image // self.patch) ** 2, self.width
        tokens = patches + 1
        layer = tokens * 12 * width**2 + 2 * tokens**2 * width  # projections and feed-forward; attention
        return 2 * (self.layers * layer + patches * 3 * self.patch**2 * width + width * self.classes)


QUICK = Shape(image=32, patch=8, width=64, layers=2, heads=2, classes=10)


# --- the four ------------------------------------------------------------------------------------------------------


def hf_attn_model(shape: Shape) -> nn.Module:
    from hf_attn import AttnViTConfig, AttnViTForImageClassification

    config = AttnViTConfig(
        image_size=shape.image,
        patch_size=shape.patch,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        num_labels=shape.classes,
    )
    return AttnViTForImageClassification(config)


def transformers_model(shape: Shape) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=shape.image,
        patch_size=shape.patch,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        num_labels=shape.classes,
    )
    return ViTForImageClassification(config)


def timm_model(shape: Shape) -> nn.Module:
    from timm.models import VisionTransformer

    return VisionTransformer(
        img_size=shape.image,
        patch_size=shape.patch,
        embed_dim=shape.width,
        depth=shape.layers,
        num_heads=shape.heads,
        num_classes=shape.classes,
    )


def torchvision_model(shape: Shape) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=shape.image,
        patch_size=shape.patch,
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        mlp_dim=4 * shape.width,
        num_classes=shape.classes,
    )


SIDES: dict[str, Callable[[Shape], nn.Module]] = {
    OURS: hf_attn_model,
    "transformers": transformers_model,
    "timm": timm_model,
    "torchvision": torchvision_model,
}


ALL_SIDES, ALL_DTYPES, BATCHES = list(SIDES), list(DTYPES), [1, 8]


def build(side: str, shape: Shape, dtype: torch.dtype, device: str) -> nn.Module:
    """A model with weights from one distribution: some begin with a head of zeros, whose gradients are zeros too."""
    torch.manual_seed(0)
    model = SIDES[side](shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
    return model.to(device, dtype)


def logits_of(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def classify(model: nn.Module, pictures: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            logits_of(model(pictures))

    model.eval()
    return call


def train(model: nn.Module, pictures: torch.Tensor, classes: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.arange(len(pictures), device=pictures.device) % classes

    def call() -> None:
        loss = nn.functional.cross_entropy(logits_of(model(pictures)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return call


def compare(
    sides: list[str], shape: Shape, dtype: torch.dtype, batch: int, trains: bool, turns: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each side's classification or training step of a batch, turn by turn."""
    pictures = torch.randn(batch, 3, shape.image, shape.image).to(device, dtype)
    models = {side: build(side, shape, dtype, device) for side in sides}
    sizes = {side: sum(p.numel() for p in model.parameters()) for side, model in models.items()}
    if len(set(sizes.values())) != 1:
        raise SystemExit(f"the models are not of one size: {sizes} parameters")
    calls = {
        side: train(model, pictures, shape.classes) if trains else classify(model, pictures)
        for side, model in models.items()
    }
    return take_turns(calls, turns, device)


def main(
    side: Annotated[list[str], typer.Option(help="whom to compare with, as often as wanted")] = ALL_SIDES,
    batch: Annotated[list[int], typer.Option(help="pictures at once in classification, as often as wanted")] = BATCHES,
    training_batch: Annotated[int, typer.Option(help="pictures in a training step")] = 8,
    dtype: Annotated[
        list[str], typer.Option(help="number format of the whole model, as often as wanted")
    ] = ALL_DTYPES,
    turns: Annotated[int, typer.Option(help="calls of each side that are measured", min=2)] = 15,
    threads: Annotated[int, typer.Option(help="threads of all sides", min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="a tiny model, to see whether it runs")] = False,
) -> None:
    check_choices(side, SIDES, dtype)
    torch.set_num_threads(threads)
    shape = QUICK if quick else Shape()
    sides = [OURS, *(name for name in SIDES if name in side and name != OURS)]
    print(f"{shape}, {shape.operations / 2e9:.3g} billion multiply-adds, {turns} turns, {threads} threads, {device}")
    for name in dtype:
        peak, way = measure_peak(DTYPES[name], device)
        print(f"\n{name}: the fastest matrix product is {way}'s with {peak / 1e9:,.0f} GFLOP/s")
        for size, trains in [*((size, False) for size in batch), (training_batch, True)]:
            measured = compare(sides, shape, DTYPES[name], size, trains, turns, device)
            title = f"{'training step' if trains else 'classification'}, {name}, batch {size}"
            report(title, measured, size, shape.operations * (3 if trains else 1), peak)
            gc.collect()  # models with hooks refer to themselves


if __name__ == "__main__":
    typer.run(main)
