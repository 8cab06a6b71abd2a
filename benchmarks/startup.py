"""From `python -c` to the first result: our three models beside transformers', each time in a fresh process.

    python benchmarks/startup.py                    # part of make bench; 4 minutes on 2 cores
    python benchmarks/startup.py --only vit --turns 3
    python benchmarks/startup.py --quick            # tiny models

ViT-B/16, DETR-R50 and Vaswani's base translator, saved with the same weights for both; the sides take turns. A process
imports the model's class, loads a saved model (and for the translator its tokenizer) and computes: the classes of a
picture, the boxes of a picture of 800x1200, the first word of a translation. Files are in the page cache, as after a
first start. Times are the medians of all turns with their quartiles, in seconds; `start` is the interpreter's own, and
memory is the process's largest.

Writes results/startup.json.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import preparation
import rows
import typer
from processes import environment, quartiles
from results import MIB, header, spread, write_json
from sentences import made_up_sentences

from hf_attn.training.checkpoints import no_progress_bars

RESULTS = Path(__file__).parent / "results"
PARTS = ("start", "import", "load", "first result", "all")
OURS, PEER = "hf_attn", "transformers"

TEMPLATE = """
import time
marks = [time.time()]
{imports}
marks.append(time.time())
{load}
marks.append(time.time())
import torch
with torch.inference_mode():
    {result}
marks.append(time.time())
import json
[most] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([marks, 1024 * int(most)]))
"""
CLASSES = {
    "vit": {OURS: "AttnViTForImageClassification", PEER: "ViTForImageClassification"},
    "detr": {OURS: "AttnDetrForObjectDetection", PEER: "DetrForObjectDetection"},
    "translator": {OURS: "AttnTranslatorForConditionalGeneration", PEER: "MarianMTModel"},
}


def script(family: str, side: str, files: Path, picture: tuple[int, int]) -> str:
    """What a fresh interpreter is given by `-c`."""
    name = CLASSES[family][side]
    directory = files / (family if side == OURS else f"{family}-transformers")
    imports, load = f"from {side} import {name}", f"model = {name}.from_pretrained({str(directory)!r}).eval()"
    result = f"model(torch.zeros(1, 3, {picture[0]}, {picture[1]}))"
    if family == "translator":
        imports += "\nfrom transformers import AutoTokenizer"
        load += f"\ntokenizer = AutoTokenizer.from_pretrained({str(directory)!r})"
        result = "model.generate(**tokenizer('Ein Satz.', return_tensors='pt'), max_new_tokens=1)"
    return TEMPLATE.format(imports=imports, load=load, result=result)


def start(code: str, threads: int) -> tuple[list[float], int]:
    """Seconds of each of PARTS, and the bytes that the process had at most."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code], env=environment(threads), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a process failed to start:\n{done.stderr[-2000:]}")
    marks, memory = json.loads(done.stdout.splitlines()[-1])
    marks = [began, *marks]
    return [*(b - a for a, b in itertools.pairwise(marks)), marks[-1] - began], memory


def measure(families: list[str], files: Path, picture: dict[str, tuple[int, int]], turns: int, threads: int) -> Any:
    """By family and side, the seconds of all turns by part, and the memory."""
    taken: Any = {family: {side: {"seconds": [], "memory": []} for side in (OURS, PEER)} for family in families}
    for turn in range(-1 if turns > 1 else 0, turns):  # one that fills the page cache
        for family in families:
            for side in (OURS, PEER) if turn % 2 else (PEER, OURS):
                seconds, memory = start(script(family, side, files, picture.get(family, (0, 0))), threads)
                if turn >= 0:
                    taken[family][side]["seconds"].append(seconds)
                    taken[family][side]["memory"].append(memory)
    return taken


def show(taken: Any) -> None:
    for family, sides in taken.items():
        print(f"\n{family}")
        print(f"{'':14}" + "".join(f"{part:>24}" for part in PARTS) + f"{'MiB':>8}")
        for side, of_side in sides.items():
            parts = [spread(quartiles(list(of_part))) for of_part in zip(*of_side["seconds"], strict=True)]
            memory = quartiles(of_side["memory"])[1] / MIB
            print(f"{side:14}" + "".join(f"{part:>24}" for part in parts) + f"{memory:>8,.0f}")
        ratios = [b[-1] / a[-1] for a, b in zip(sides[OURS]["seconds"], sides[PEER]["seconds"], strict=True)]
        print(f"{PEER}' time over ours: {spread(quartiles(ratios))}", flush=True)


def prepare(families: list[str], files: Path, quick: bool) -> dict[str, tuple[int, int]]:
    """Write the weights; returns the height and width of the pictures."""
    sizes = {}
    if "vit" in families:
        shape = rows.VIT_QUICK if quick else rows.VIT
        preparation.prepare_vit(files, shape, [])
        sizes["vit"] = (shape["image_size"], shape["image_size"])
    if "detr" in families:
        shape, sizes["detr"] = (rows.DETR_QUICK, rows.PICTURE_QUICK) if quick else (rows.DETR, rows.PICTURE)
        preparation.prepare_detr(files, shape, sizes["detr"], [])
    if "translator" in families:
        shape = rows.TRANSLATOR_QUICK if quick else rows.TRANSLATOR
        preparation.prepare_translators(files, shape, made_up_sentences(6000), 1)
    return sizes


def main(
    only: Annotated[str, typer.Option(help=f"of {', '.join(CLASSES)}, comma-separated")] = ",".join(CLASSES),
    turns: Annotated[int, typer.Option(help="starts of each side that are measured", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="threads of each side", min=1)] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option("--quick", help="tiny models and one turn, to see whether it runs")] = False,
    files: Annotated[Path | None, typer.Option(help="keep the weights here, to begin sooner the next time")] = None,
    output: Annotated[Path, typer.Option(help="file to write")] = RESULTS / "startup.json",
) -> None:
    families = only.split(",")
    for family in families:
        if family not in CLASSES:
            raise typer.BadParameter(f"{family!r} is none of {', '.join(CLASSES)}")
    turns = 1 if quick else turns
    with contextlib.ExitStack() as stack:
        if files is None:
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files.mkdir(parents=True, exist_ok=True)
        with no_progress_bars():
            picture = prepare(families, files, quick)
        taken = measure(families, files, picture, turns, threads)
    show(taken)
    settings = {"quick": quick, "turns": turns, "threads": threads}
    write_json(output, {**header(**settings), "parts": PARTS, "models": taken})


if __name__ == "__main__":
    typer.run(main)
