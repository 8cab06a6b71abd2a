"""What each of DETR's switches is worth: AP50 over time of the same small detector on the same scenes.

    python examples/detection_scenes.py fashion data/scenes/fashion
    python benchmarks/ablate_detr.py data/scenes/fashion

Plain DETR, each of three changes alone, and all of them: conditional attention with anchors (arXiv 2108.06152,
2201.12329), whose shortest wave is a quarter of a picture; denoising (2203.01305); focal loss with its weights of 2
for classes. All else is the preset "tiny", but with 16 queries, since more of them slow plain DETR down. Each run has
a process and a CPU thread to itself; several go on at once. What is complete is not run again.

AP50 is that of the first validation scenes. Time is what the process used of its CPU, evaluations left out.

Measured on an Intel Xeon at 2.5 GHz without bfloat16, shared with others, by `--steps 500`: 8,000 pictures, five to
seven CPU minutes of training a run, two seeds each (model_cards/fashion_detr/ablation.png):

    |             | AP           | AP50         | pictures/CPU-s |
    |-------------|--------------|--------------|----------------|
    | plain       | 0.000, 0.000 | 0.003, 0.002 | 24, 28         |
    | conditional | 0.118, 0.128 | 0.225, 0.241 | 21, 22         |
    | denoising   | 0.001, 0.002 | 0.002, 0.006 | 21, 20         |
    | focal       | 0.002, 0.002 | 0.010, 0.010 | 25, 28         |
    | all         | 0.258, 0.241 | 0.441, 0.443 | 20, 21         |

So soon only the conditional attention lets boxes move, and with it the other two double what is found; alone they do
nothing yet. How the five compare after thousands of steps is not known.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# What makes the preset "tiny" the authors' DETR again, by change
NOT_CONDITIONAL = {"conditional_attention": False, "position_temperature": 10000, "position_scale": 2 * math.pi}
NOT_DENOISING = {"denoising_groups": 0}
NOT_FOCAL = {"class_loss": "cross_entropy", "class_loss_coefficient": 1, "class_cost": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {**NOT_CONDITIONAL, **NOT_DENOISING, **NOT_FOCAL},
    "conditional": {**NOT_DENOISING, **NOT_FOCAL},
    "denoising": {**NOT_CONDITIONAL, **NOT_FOCAL},
    "focal": {**NOT_CONDITIONAL, **NOT_DENOISING},
    "all": {},
}
EVALUATIONS = 5
FILE = "ap50.json"


def train(data: Path, variant: str, seed: int, steps: int, pictures: int, output: Path) -> None:
    """One run, and its AP50 in a file: [[pictures, seconds, AP, AP50], ...]."""
    from hf_attn.training.callbacks import ProgressEvent
    from hf_attn.training.detection_data import load_detections
    from hf_attn.training.detr import train_detr

    seconds = 0.0
    last: float | None = None

    def add_time(event: ProgressEvent) -> None:
        nonlocal seconds, last
        now = time.process_time()
        if event.stage == "train" and last is not None:
            seconds += now - last
        last = now  # from the first step on

    scenes, _ = load_detections(data, test_share=0)
    scenes["validation"] = scenes["validation"].select(range(min(pictures, len(scenes["validation"]))))
    shutil.rmtree(output, ignore_errors=True)  # of a run that was stopped, whose time is not known
    result = train_detr(
        scenes,
        output,
        preset="tiny",
        model_config=VARIANTS[variant],
        num_queries=16,
        max_steps=steps,
        eval_steps=steps // EVALUATIONS,
        drawn_pictures=0,
        seed=seed,
        bf16=False,
        progress=add_time,
    )
    training = result.metrics["training"]
    curve = []
    for entry in result.log_history:
        if "eval_ap50" in entry:
            share = entry["step"] / training["steps"]
            curve.append((share * training["pictures"], share * seconds, entry["eval_ap"], entry["eval_ap50"]))
    unfinished = output / f"{FILE}.tmp"
    unfinished.write_text(json.dumps({"steps": steps, "pictures": pictures, "curve": curve}))
    unfinished.rename(output / FILE)


def finished(output: Path, steps: int, pictures: int) -> list[list[float]] | None:
    """The curve of a run that is complete."""
    if not (output / FILE).exists():
        return None
    stored = json.loads((output / FILE).read_text())
    if (stored["steps"], stored["pictures"]) != (steps, pictures):
        raise ValueError(f"{output} is of {stored['steps']} steps and {stored['pictures']} pictures; delete it")
    return stored["curve"]


def run_in_a_process(arguments: list[str], output: Path) -> None:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    print(f"{output.name}: AP50 {json.loads((output / FILE).read_text())['curve'][-1][3]:.3f}", flush=True)


def draw(curves: dict[str, list[list[list[float]]]], path: Path) -> None:
    """AP50 over CPU minutes: a thin line for each seed, a thick one for their mean."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (variant, runs) in enumerate(curves.items()):
        colour = f"C{number}"
        minutes = [[seconds / 60 for _, seconds, _, _ in run] for run in runs]
        shares = [[ap50 for *_, ap50 in run] for run in runs]
        for times, values in zip(minutes, shares, strict=True):
            axes.plot([0, *times], [0, *values], color=colour, linewidth=0.8, alpha=0.5)
        mean = [[sum(column) / len(column) for column in zip(*rows, strict=True)] for rows in (minutes, shares)]
        axes.plot([0, *mean[0]], [0, *mean[1]], color=colour, linewidth=2.2, marker="o", markersize=4, label=variant)
    axes.set(xlabel="CPU minutes of training", ylabel="AP50", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    unfinished = path.with_name(f"unfinished_{path.name}")
    figure.savefig(unfinished, dpi=150)
    unfinished.rename(path)


def table(curves: dict[str, list[list[list[float]]]]) -> str:
    """A row for each variant: AP and AP50 at the end, of each seed, and pictures a CPU second."""
    rows = ["| | AP | AP50 | pictures/CPU-s |", "|---|---|---|---|"]
    for variant, runs in curves.items():
        ends = [run[-1] for run in runs]
        cells = [
            ", ".join(f"{end[2]:.3f}" for end in ends),
            ", ".join(f"{end[3]:.3f}" for end in ends),
            ", ".join(f"{end[0] / end[1]:.0f}" for end in ends),
        ]
        rows.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(
    data: Annotated[Path, typer.Argument(help="Directory of scenes, as detection_scenes.py makes them.")],
    output: Annotated[Path, typer.Option(help="Directory for the runs, the table and the plot.")] = Path(
        "runs/ablation"
    ),
    steps: Annotated[int, typer.Option(help="Of 16 pictures, for each run.", min=200)] = 1000,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 2,
    pictures: Annotated[int, typer.Option(help="Validation scenes.")] = 300,
    processes: Annotated[int, typer.Option(help="Runs at once.")] = 2,
    only: Annotated[str | None, typer.Option(help="Do one run, VARIANT-SEED, and nothing else.")] = None,
) -> None:
    """Train each variant with each seed; print a table and draw a plot."""
    if only is not None:
        variant, seed = only.split("-")
        train(data, variant, int(seed), steps, pictures, output / only)
        return
    runs = [(variant, seed) for seed in range(seeds) for variant in VARIANTS]
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        waiting = []
        for variant, seed in runs:
            name = f"{variant}-{seed}"
            if finished(output / name, steps, pictures) is None:
                numbers = ["--steps", str(steps), "--pictures", str(pictures), "--only", name]
                arguments = [str(data), "--output", str(output), *numbers]
                waiting.append(pool.submit(run_in_a_process, arguments, output / name))
        for one in waiting:
            one.result()
    curves = {
        variant: [finished(output / f"{variant}-{seed}", steps, pictures) for seed in range(seeds)]
        for variant in VARIANTS
    }
    print(table(curves))
    draw(curves, output / "ap50.png")


if __name__ == "__main__":
    typer.run(main)
