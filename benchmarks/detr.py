"""Detect and train with DETR-R50 of hf_attn and of transformers, and compare; RT-DETR-R50 for orientation.

    python benchmarks/detr.py

Random weights, 91 classes, 100 queries, frozen batch norm, in one process with the same number of threads. They take
turns, one call each, and who begins a turn rotates; so all see the same machine. RT-DETR is another network, made for
640x640 pixels, and gets these: its speed says what a user would have by choosing it instead.

The rows: one picture of 800x1200; a batch of four pictures of different sizes, padded to the largest, with a mask; a
training step (forward, loss with the losses of all layers, backward, fused AdamW; stem and first stage frozen) on one
picture of 800x1200 with 20 boxes; and the matching alone, of all six layers, for 32 pictures with 20 boxes each.

`img/s` are pictures per second, the median of all turns and their quartiles. `ratio` is hf_attn's speed over that of
the other in the same turn, median and quartiles: above 1 hf_attn is faster. `peak` is the share of the fastest matrix
product that was measured on this machine in the same number format. Operations are those that torch counts in
hf_attn's forward, two for each multiply-add, three times that in training.

Measured on 2 threads of an Intel Xeon at 2.5 GHz without bfloat16, shared with others, by `--dtype fp32 --turns 5`:

    fp32: the fastest matrix product is oneDNN's with 241 GFLOP/s

    one picture, fp32
                                           img/s                     ratio    peak
    hf_attn                  0.67 (0.56 to 0.68)                               50%
    transformers             0.40 (0.36 to 0.43)       1.58 (1.35 to 1.89)     30%
    RT-DETR                  0.68 (0.63 to 0.78)       0.90 (0.78 to 1.05)     51%

    mixed batch of 4, fp32
                                           img/s                     ratio    peak
    hf_attn                  0.66 (0.57 to 0.77)                               44%
    transformers             0.24 (0.21 to 0.24)       2.89 (2.52 to 3.38)     16%
    RT-DETR                  0.52 (0.44 to 0.55)       1.34 (1.16 to 1.51)     34%

    training step, fp32
                                           img/s                     ratio    peak
    hf_attn                  0.15 (0.15 to 0.16)                               34%
    transformers             0.16 (0.13 to 0.17)       0.96 (0.90 to 1.18)     36%
    RT-DETR                  0.19 (0.19 to 0.24)       0.76 (0.66 to 0.78)     44%

    matching of 6 layers, 32 pictures, 20 boxes each
                                           img/s                     ratio
    hf_attn         1702.74 (1664.19 to 1758.32)
    transformers          85.33 (73.07 to 88.08)    20.06 (19.67 to 23.53)

and the matching once more, on 1 thread, by `--row matching --threads 1 --turns 25`:

    hf_attn          1208.30 (960.60 to 1260.61)
    transformers          30.09 (29.37 to 30.88)    39.77 (34.28 to 41.68)

`--quick` takes seconds, with pictures and a backbone too small to say anything about speed: to see whether all of it
runs.
"""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from turns import DTYPES, OURS, check_choices, measure_peak, report, take_turns

CLASSES, QUERIES, BOXES, MATCHED_PICTURES = 91, 100, 20, 32
Labels = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Sizes:
    """(height, width) of the pictures in pixels, and the backbone."""

    single: tuple[int, int] = (800, 1200)
    mixed: tuple[tuple[int, int], ...] = ((800, 1200), (800, 1066), (1066, 800), (640, 960))
    fixed: int = 640  # RT-DETR's
    backbone: str = "resnet50"


QUICK = Sizes((64, 96), ((64, 96), (64, 80), (96, 64), (64, 64)), 160, "resnet18")


# --- the sides -----------------------------------------------------------------------------------------------------


def hf_attn_model(sizes: Sizes) -> nn.Module:
    from hf_attn import AttnDetrConfig, AttnDetrForObjectDetection

    config = AttnDetrConfig(backbone=sizes.backbone, num_labels=CLASSES, frozen_batch_norm=True, frozen_stride=4)
    return AttnDetrForObjectDetection(config)


def transformers_model(sizes: Sizes) -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

    backbone = TimmBackboneConfig(backbone=sizes.backbone, out_indices=[1, 2, 3, 4])
    config = DetrConfig(
        backbone_config=backbone, num_labels=CLASSES, num_queries=QUERIES, auxiliary_loss=True, attention_dropout=0.1
    )
    model = DetrForObjectDetection(config)
    for name, parameter in model.named_parameters():  # as the authors' code, which this one means to do as well
        if "backbone" in name and not any(stage in name for stage in ("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)
    return model


def rt_detr_model(sizes: Sizes) -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return RTDetrForObjectDetection(RTDetrConfig(num_labels=CLASSES))


SIDES: dict[str, Callable[[Sizes], nn.Module]] = {
    OURS: hf_attn_model,
    "transformers": transformers_model,
    "RT-DETR": rt_detr_model,
}
MIXED, MATCHING = "mixed batch of 4", "matching"
ROWS = ["one picture", MIXED, "training step", MATCHING]
ALL_SIDES, ALL_DTYPES = list(SIDES), list(DTYPES)


def build(side: str, sizes: Sizes, dtype: torch.dtype, device: str) -> nn.Module:
    torch.manual_seed(0)
    return SIDES[side](sizes).to(device, dtype)


# --- what they do --------------------------------------------------------------------------------------------------


def one_size(pictures: int, height: int, width: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    pixels = torch.randn(pictures, 3, height, width)
    return {"pixel_values": pixels.to(device, dtype)}


def mixed_sizes(sizes: Sizes, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    height, width = max(h for h, _ in sizes.mixed), max(w for _, w in sizes.mixed)
    pixels = torch.zeros(len(sizes.mixed), 3, height, width)
    mask = torch.zeros(len(sizes.mixed), height, width, dtype=torch.long)
    for row, (own_height, own_width) in enumerate(sizes.mixed):
        pixels[row, :, :own_height, :own_width] = torch.randn(3, own_height, own_width)
        mask[row, :own_height, :own_width] = 1
    return {"pixel_values": pixels.to(device, dtype), "pixel_mask": mask.to(device)}


def some_labels(pictures: int, device: str) -> Labels:
    generator = torch.Generator().manual_seed(0)

    def one() -> dict[str, torch.Tensor]:
        centres = 0.25 + 0.5 * torch.rand(BOXES, 2, generator=generator)
        sides = 0.05 + 0.4 * torch.rand(BOXES, 2, generator=generator)
        classes = torch.randint(CLASSES, (BOXES,), generator=generator)
        return {"class_labels": classes.to(device), "boxes": torch.cat([centres, sides], dim=1).to(device)}

    return [one() for _ in range(pictures)]


def detect(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            model(**inputs)

    model.eval()
    return call


def train(model: nn.Module, inputs: dict[str, Any], dtype: torch.dtype, device: str) -> Callable[[], None]:
    """The weights stay in float32; bfloat16 is autocast's."""
    model.float().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].float()}

    def call() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def matchers(device: str) -> dict[str, Callable[[], None]]:
    """hf_attn's matching of six layers at once, and transformers' layer by layer."""
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    from hf_attn import AttnDetrConfig
    from hf_attn.loss_detr import match

    torch.manual_seed(0)
    config = AttnDetrConfig(num_labels=CLASSES)
    logits = torch.randn(6, MATCHED_PICTURES, QUERIES, CLASSES + 1, device=device)
    boxes = torch.rand(6, MATCHED_PICTURES, QUERIES, 4, device=device) * 0.5 + 0.1
    labels = some_labels(MATCHED_PICTURES, device)
    theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)

    def by_layer() -> None:
        for layer in range(6):
            theirs({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels)

    return {OURS: lambda: match(logits, boxes, labels, config), "transformers": by_layer}


# --- the table -----------------------------------------------------------------------------------------------------


def operations(sizes: Sizes, inputs: dict[str, torch.Tensor]) -> float:
    """Of hf_attn's forward on these inputs, a picture."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build(OURS, sizes, torch.float32, "cpu").eval()(**{k: v.cpu() for k, v in as_float(inputs).items()})
    return counter.get_total_flops() / len(inputs["pixel_values"])


def as_float(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def compare(
    sides: list[str], sizes: Sizes, row: str, dtype: torch.dtype, turns: int, device: str
) -> tuple[dict[str, list[float]], int, float]:
    """Seconds of each side turn by turn, pictures of a call, and operations of a picture."""
    mixed = row == MIXED
    ours = mixed_sizes(sizes, dtype, device) if mixed else one_size(1, *sizes.single, dtype, device)
    pictures = len(ours["pixel_values"])
    calls = {}
    for side in sides:
        inputs: dict[str, Any] = (
            ours if side != "RT-DETR" else one_size(pictures, sizes.fixed, sizes.fixed, dtype, device)
        )
        model = build(side, sizes, dtype, device)
        if row == "training step":
            calls[side] = train(model, {**inputs, "labels": some_labels(pictures, device)}, dtype, device)
        else:
            calls[side] = detect(model, inputs)
    return take_turns(calls, turns, device), pictures, operations(sizes, ours)


def main(
    side: Annotated[list[str], typer.Option(help="whom to compare with, as often as wanted")] = ALL_SIDES,
    row: Annotated[list[str], typer.Option(help="what to measure, as often as wanted")] = ROWS,
    dtype: Annotated[list[str], typer.Option(help="number format, as often as wanted")] = ALL_DTYPES,
    turns: Annotated[int, typer.Option(help="calls of each side that are measured", min=2)] = 9,
    threads: Annotated[int, typer.Option(help="threads of all sides", min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="tiny pictures, to see whether it runs")] = False,
) -> None:
    check_choices(side, SIDES, dtype, packages={"RT-DETR": "transformers"})
    if set(row) - set(ROWS):
        raise typer.BadParameter(f"{sorted(set(row) - set(ROWS))[0]} is none of {', '.join(ROWS)}")
    torch.set_num_threads(threads)
    sizes = QUICK if quick else Sizes()
    sides = [OURS, *(name for name in SIDES if name in side and name != OURS)]
    print(f"{sizes}, {turns} turns, {threads} threads, {device}")
    networks = [one for one in row if one != MATCHING]
    for name in dtype if networks else []:
        peak, way = measure_peak(DTYPES[name], device)
        print(f"\n{name}: the fastest matrix product is {way}'s with {peak / 1e9:,.0f} GFLOP/s")
        for one in networks:
            measured, pictures, count = compare(sides, sizes, one, DTYPES[name], turns, device)
            report(f"{one}, {name}", measured, pictures, count * (3 if one == "training step" else 1), peak)
            gc.collect()  # models with hooks refer to themselves
    if MATCHING in row:
        measured = take_turns(matchers(device), turns, device)
        report(f"matching of 6 layers, {MATCHED_PICTURES} pictures, {BOXES} boxes each", measured, MATCHED_PICTURES)


if __name__ == "__main__":
    typer.run(main)
