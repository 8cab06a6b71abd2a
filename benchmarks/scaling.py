"""What grows how: cost over sentence length, batch, picture size and vocabulary; memory over a stream of sentences.

    python benchmarks/scaling.py                    # 10 minutes on 2 cores
    python benchmarks/scaling.py --only streaming
    python benchmarks/scaling.py --quick            # few sizes, tiny models

A slope of 1 in the log-log plot is cost in proportion to size, 2 is quadratic. Of each curve two slopes are told: over
all sizes, and over the last doubling, where what is fixed weighs least. To be expected at the end: 1 for batches; for
sentences and pixels (the square of a picture's side) between 1 and 2, which is attention's; for vocabularies up to 1,
the output layer's. A decoder's cost over the length of what it writes is quadratic in attention alone.

Streaming puts short sentences as a generator through pipeline("translation") with a tiny model and reads the process's
memory on the way. What it tells is the slope over the last three quarters, in MiB per 10,000 sentences: near zero, if
memory stays flat.

Writes results/scaling.json, scaling.png and streaming.png.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import charts
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from results import MIB, header, write_json
from sentences import made_up_sentences
from turns import seconds
from worker import memory

from hf_attn import (
    AttnDetrConfig,
    AttnDetrForObjectDetection,
    AttnTranslatorConfig,
    AttnTranslatorForConditionalGeneration,
    AttnViTConfig,
    AttnViTForImageClassification,
    train_tokenizer,
)

RESULTS = Path(__file__).parent / "results"
CALLS = 5
WIDTH = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
Curve = Callable[[int, bool], Callable[[], object]]  # a size, and whether models are tiny → what is timed


# --- the curves ----------------------------------------------------------------------------------------------------


def translator(quick: bool, **shape: Any) -> AttnTranslatorForConditionalGeneration:
    torch.manual_seed(0)
    layers = {"encoder_layers": 1 if quick else 3, "decoder_layers": 1 if quick else 3}
    config = AttnTranslatorConfig(**{"vocab_size": 8000, **layers, **(TINY if quick else WIDTH), **shape})
    model = AttnTranslatorForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # says as much as it is asked for
    return model


def translate(model: Any, sentences: int, source: int, target: int) -> Callable[[], object]:
    input_ids = torch.randint(4, 500, (sentences, source))
    return lambda: model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=target)


def source_length(size: int, quick: bool) -> Callable[[], object]:
    return translate(translator(quick), 4, size, 1)


def target_length(size: int, quick: bool) -> Callable[[], object]:
    return translate(translator(quick), 4, 16, size)


def sentences_at_once(size: int, quick: bool) -> Callable[[], object]:
    return translate(translator(quick), size, 16, 8)


def vocabulary(size: int, quick: bool) -> Callable[[], object]:
    return translate(translator(quick, vocab_size=size), 4, 16, 8)


def forward(model: torch.nn.Module, batch: int, side: int) -> Callable[[], object]:
    pictures = torch.randn(batch, 3, side, side)
    return lambda: model.eval()(pictures)


def vit(quick: bool) -> AttnViTForImageClassification:
    torch.manual_seed(0)
    layers = 2 if quick else 6
    config = AttnViTConfig(**(TINY if quick else WIDTH), num_hidden_layers=layers, image_size=224, patch_size=16)
    return AttnViTForImageClassification(config)


def picture_size_vit(size: int, quick: bool) -> Callable[[], object]:
    return forward(vit(quick), 1, size)


def pictures_at_once(size: int, quick: bool) -> Callable[[], object]:
    return forward(vit(quick), size, 112)


def picture_size_detr(size: int, quick: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    layers = {"encoder_layers": 1 if quick else 3, "decoder_layers": 1 if quick else 3}
    config = AttnDetrConfig(backbone="resnet18", **layers, **(TINY if quick else WIDTH), num_labels=91)
    return forward(AttnDetrForObjectDetection(config), 1, size)


CURVES: dict[str, tuple[Curve, list[int], list[int]]] = {  # and sizes, and those of --quick
    "source length, tokens": (source_length, [32, 64, 128, 256, 512, 1024, 2048], [8, 16, 32]),
    "target length, tokens": (target_length, [8, 16, 32, 64, 128, 256, 512], [2, 4, 8]),
    "sentences at once": (sentences_at_once, [1, 2, 4, 8, 16, 32, 64, 128], [1, 2, 4]),
    "vocabulary, words": (vocabulary, [1000, 4000, 16_000, 64_000, 256_000], [1000, 2000, 4000]),
    "ViT, pixels a side": (picture_size_vit, [64, 128, 256, 512, 1024], [32, 64, 128]),
    "ViT, pictures at once": (pictures_at_once, [1, 2, 4, 8, 16, 32, 64], [1, 2, 4]),
    "DETR, pixels a side": (picture_size_detr, [128, 256, 512, 1024, 1536], [64, 96, 128]),
}


def measure(curve: Curve, sizes: list[int], quick: bool) -> list[float]:
    """Seconds of a call at each size, the median of some."""
    taken = []
    with torch.inference_mode():
        for size in sizes:
            call = curve(size, quick)
            call()
            taken.append(statistics.median(seconds(call, "cpu") for _ in range(2 if quick else CALLS)))
    return taken


def slopes(sizes: list[int], taken: list[float]) -> tuple[float, float]:
    """In the log-log plot: over all sizes by least squares, and between the last two."""
    x, y = np.log(sizes), np.log(taken)
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def draw_curves(curves: dict[str, Any], path: Path) -> None:
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.3 * columns, 3.0 * lines), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(curves) :]:
        axes.axis("off")
    for axes, (name, curve) in zip(grid.flat, curves.items(), strict=False):
        sizes, taken = np.array(curve["sizes"]), np.array(curve["seconds"])
        axes.loglog(sizes, taken, "o-", color="#4477aa", base=2)
        for power, style in ((1, "--"), (2, ":")):
            axes.loglog(sizes, taken[-1] * (sizes / sizes[-1]) ** power, style, color="#999999", base=2)
        axes.set_ylim(taken.min() / 1.5, taken.max() * 1.5)
        axes.set_title(f"slope {curve['slope']:.2f}, at the end {curve['last_slope']:.2f}", fontsize=9)
        axes.set_xlabel(name)
        axes.set_ylabel("seconds")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        axes.tick_params(labelsize=7)
    figure.suptitle("Cost over size, log-log; dashed: in proportion, dotted: quadratic", fontsize=10)
    charts.save(figure, path)


# --- streaming -----------------------------------------------------------------------------------------------------


def stream(count: int, every: int) -> dict[str, list[float]]:
    """Translations of `count` short sentences, one by one: how many were read, seconds and MiB, every so many."""
    from transformers import pipeline

    texts = made_up_sentences(2000)
    model = translator(True, vocab_size=500)
    translate_all = pipeline("translation", model=model, tokenizer=train_tokenizer(texts, 500), device="cpu")
    read: dict[str, list[float]] = {"sentences": [], "seconds": [], "mib": []}

    def source() -> Iterator[str]:
        for index in range(count):
            yield f"{' '.join(texts[index % len(texts)].split()[:3])} {index}"  # none is like another

    began = time.monotonic()
    for index, _ in enumerate(translate_all(source(), max_new_tokens=4, num_beams=1), start=1):
        if index % every == 0:
            read["sentences"].append(index)
            read["seconds"].append(time.monotonic() - began)
            read["mib"].append(memory("VmRSS") / MIB)
    return read


def growth(read: dict[str, list[float]]) -> float:
    """MiB per 10,000 sentences, over the last three quarters."""
    first = len(read["sentences"]) // 4
    return float(np.polyfit(read["sentences"][first:], read["mib"][first:], 1)[0]) * 10_000


def draw_stream(read: dict[str, list[float]], slope: float, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(read["sentences"], read["mib"], color="#4477aa")
    axes.set_ylim(0, 1.15 * max(read["mib"]))
    axes.set_xlabel("sentences read from the generator")
    axes.set_ylabel("memory of the process, MiB")
    axes.set_title(f"pipeline('translation') on a stream: {slope:+.2f} MiB per 10,000 sentences", fontsize=10)
    axes.grid(color="#dddddd")
    charts.save(figure, path)


def main(
    only: Annotated[str, typer.Option(help="curves, streaming, or both")] = "streaming,curves",
    sentences: Annotated[int, typer.Option(help="sentences to stream", min=40)] = 100_000,
    threads: Annotated[int, typer.Option(help="threads", min=1)] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option("--quick", help="few sizes, tiny models, 4,000 sentences")] = False,
    output: Annotated[Path, typer.Option(help="folder to write to")] = RESULTS,
) -> None:
    parts = only.split(",")
    if set(parts) - {"curves", "streaming"}:
        raise typer.BadParameter(f"--only {only!r}: its parts are curves and streaming")
    torch.set_num_threads(threads)
    count = min(sentences, 4000) if quick else sentences
    record = header(quick=quick, threads=threads, sentences=count)
    if "streaming" in parts:  # first: the curves leave memory behind
        read = stream(count, max(1, count // 100))
        slope = growth(read)
        print(
            f"streaming {count:,} sentences, {count / read['seconds'][-1]:,.0f} a second: {slope:+.2f} MiB per 10,000"
        )
        record["streaming"] = {**read, "mib_per_10000": slope}
        draw_stream(read, slope, output / "streaming.png")
    if "curves" in parts:
        record["curves"] = {}
        for name, (curve, sizes, few) in CURVES.items():
            used = few if quick else sizes
            taken = measure(curve, used, quick)
            everywhere, last = slopes(used, taken)
            record["curves"][name] = {"sizes": used, "seconds": taken, "slope": everywhere, "last_slope": last}
            print(f"{name:24} slope {everywhere:.2f}, at the end {last:.2f}", flush=True)
        draw_curves(record["curves"], output / "scaling.png")
    write_json(output / "scaling.json", record)


if __name__ == "__main__":
    typer.run(main)
