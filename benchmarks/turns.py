"""Taking turns with peers in one process: the clock, the share of the measured peak, and the table.

Used by vit.py and detr.py.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import torch
import typer

OURS = "hf_attn"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = 2048


# --- the clock -----------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object], device: str) -> float:
    """What one call takes."""
    wait = torch.accelerator.synchronize if device != "cpu" else nullcontext
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def take_turns(calls: dict[str, Callable[[], None]], turns: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call in each turn, after two turns to warm up."""
    measured: dict[str, list[float]] = {side: [] for side in calls}
    order = list(calls)
    for turn in range(-2, turns):
        for side in order:
            taken = seconds(calls[side], device)
            if turn >= 0:
                measured[side].append(taken)
        order.append(order.pop(0))
    return measured


def measure_peak(dtype: torch.dtype, device: str) -> tuple[float, str]:
    """Operations per second of the fastest way to multiply two matrices, the best of twenty times, and its name."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    ways: dict[str, Callable[[], torch.Tensor]] = {"torch.mm": lambda: torch.mm(a, b)}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        ways["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    best = {}
    with torch.inference_mode():
        for name, way in ways.items():
            best[name] = min(seconds(way, device) for _ in range(20))
    fastest = min(best, key=lambda name: best[name])
    return 2 * MATRIX**3 / best[fastest], fastest


# --- the table -----------------------------------------------------------------------------------------------------


def middle(values: list[float], digits: int) -> str:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def report(
    title: str, measured: dict[str, list[float]], batch: int, operations: float = 0.0, peak: float = 1.0
) -> None:
    """Print a table; without a number of operations, without shares of the peak."""
    print(f"\n{title}")
    print(f"{'':14}{'img/s':>30}{'ratio':>26}{'peak':>8}" if operations else f"{'':14}{'img/s':>30}{'ratio':>26}")
    for side, taken in measured.items():
        speeds = [batch / one for one in taken]
        ratios = [theirs / ours for ours, theirs in zip(measured[OURS], taken, strict=True)]
        share = statistics.median(speeds) * operations / peak
        line = f"{side:14}{middle(speeds, 2):>30}{middle(ratios, 2) if side != OURS else '':>26}"
        print(f"{line}{share:>8.0%}" if operations else line)
    others = [side for side in measured if side != OURS]
    if others:
        fastest = min(others, key=lambda side: statistics.median(measured[side]))
        ratios = [theirs / ours for ours, theirs in zip(measured[OURS], measured[fastest], strict=True)]
        print(f"{OURS} over the fastest other, {fastest}: {statistics.median(ratios):.2f}")


def check_choices(
    sides: list[str], known_sides: Iterable[str], dtypes: list[str], packages: Mapping[str, str] | None = None
) -> None:
    """Refuse what is unknown or not installed, before anything is measured.

    Args:
        packages: of sides that have another name than theirs.
    """
    for chosen, known in ((sides, list(known_sides)), (dtypes, DTYPES)):
        for name in chosen:
            if name not in known:
                raise typer.BadParameter(f"{name} is none of {', '.join(known)}")
    for side in sides:
        package = (packages or {}).get(side, side)
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"{side} is not installed: pip install {package}, or choose others by --side")
