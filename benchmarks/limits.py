"""What the machine can do at most, as measured here and now: multiplying matrices and reading memory.

python benchmarks/limits.py --threads 2
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from turns import DTYPES, measure_peak, seconds

READ_BYTES = 2**30  # far more than any cache


def measure_bandwidth(device: str, size: int = READ_BYTES) -> tuple[float, str]:
    """Bytes per second of the fastest way to read memory, the best of ten times, and its name."""
    numbers = torch.ones(size // 4, device=device)
    matrix, vector = numbers.view(-1, 4096), torch.ones(4096, device=device)
    target = torch.empty_like(numbers)
    ways = {
        "sum": (lambda: numbers.sum(), size),
        "max": (lambda: numbers.max(), size),
        "matrix times vector": (lambda: matrix @ vector, size),
        "copy, read and written": (lambda: target.copy_(numbers), 2 * size),
    }
    best = {}
    with torch.inference_mode():
        for name, (way, of_call) in ways.items():
            best[name] = of_call / min(seconds(way, device) for _ in range(10))
    fastest = max(best, key=lambda name: best[name])
    return best[fastest], fastest


def measure(device: str, quick: bool) -> dict[str, dict[str, float | str]]:
    """Operations per second by number format, bytes per second as "memory", and by what each was reached."""
    limits = {}
    for dtype in DTYPES:
        rate, way = measure_peak(DTYPES[dtype], device)
        limits[dtype] = {"per_second": rate, "by": way}
    rate, way = measure_bandwidth(device, READ_BYTES // 64 if quick else READ_BYTES)
    return {**limits, "memory": {"per_second": rate, "by": way}}


def in_own_process(threads: int, quick: bool) -> dict[str, dict[str, float | str]]:
    """`measure` on the CPU, away from whatever this process has loaded."""
    from processes import environment

    command = [sys.executable, str(Path(__file__)), "--threads", str(threads), *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the machine failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main(
    threads: Annotated[int, typer.Option(help="threads", min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="read little")] = False,
) -> None:
    torch.set_num_threads(threads)
    print(json.dumps(measure(device, quick)))


if __name__ == "__main__":
    typer.run(main)
