"""What was measured, as a table on the screen and as JSON."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from processes import quartiles
from rows import OURS, Row

LIBRARIES = ("hf_attn", "torch", "transformers", "timm", "onnxruntime", "openvino", "ctranslate2", "numpy")
MIB = 2**20


# --- one row -------------------------------------------------------------------------------------------------------


def is_ours(side: str) -> bool:
    return side.startswith(OURS)


def row_record(
    row: Row,
    turns: dict[str, list[float]],
    memory: dict[str, int],
    outputs: dict[str, dict[str, Any]],
    limits: dict[str, Any],
) -> dict[str, Any]:
    """All that is kept of a row.

    Each side has its `turns` in seconds of a call, its `speed` in units per second (median and quartiles), `memory` in
    bytes above what its process took after the imports, `peak` and `bandwidth`, the share of what the machine can
    do, and `agreement` with the first side. `ratio` is the speed of the fastest of ours over that of this one in the
    same turn, median and quartiles: above 1 ours is faster.
    """
    ours = min((side for side in turns if is_ours(side)), key=lambda side: quartiles(turns[side])[1], default=None)
    sides: dict[str, Any] = {}
    first = next((side for side in turns if outputs.get(side)), None)
    for side, taken in turns.items():
        low, median, high = quartiles(taken)
        speed = row.units / median
        record: dict[str, Any] = {
            "turns": taken,
            "speed": [row.units / high, speed, row.units / low],
            "memory": memory[side],
            "peak": _share(row.operations, median, limits.get(row.dtype)),
            "bandwidth": _share(row.bytes, median, limits["memory"]),
        }
        if ours is not None and side != ours:
            record["ratio"] = list(quartiles([b / a for a, b in zip(turns[ours], taken, strict=True)]))
        if outputs.get(side) and side != first:
            record["agreement"] = agreement(outputs[first or side], outputs[side])
        sides[side] = record
    of_row = {name: getattr(row, name) for name in ("family", "name", "dtype", "batch", "beams", "unit", "units")}
    return {**of_row, "trains": row.trains, "ours": ours, "compared_with": first, "sides": sides}


def _share(amount: float, seconds: float, limit: dict[str, Any] | None) -> float | None:
    return amount / seconds / limit["per_second"] if amount and limit else None


def agreement(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How far two sides' outputs are apart.

    Returns:
        Of numbers "difference", the largest one in relation to the largest number of the first side, by output's
        name the worst; None where one is not finite. Of tokens or texts "same" and "of", how many sentences are equal.
    """
    if "numbers" in first:
        worst = 0.0
        for name, numbers in first["numbers"].items():
            if not all(map(math.isfinite, (*numbers, *other["numbers"][name]))):
                return {"difference": None}
            apart = max(abs(a - b) for a, b in zip(numbers, other["numbers"][name], strict=True))
            worst = max(worst, apart / max(map(abs, numbers)))
        return {"difference": worst}
    [kind] = first.keys()
    same = sum(a == b for a, b in zip(first[kind], other[kind], strict=True))
    return {"same": same, "of": len(first[kind])}


# --- the table -----------------------------------------------------------------------------------------------------


def spread(three: Sequence[float], digits: int = 2) -> str:
    low, median, high = three
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def print_row(record: dict[str, Any]) -> None:
    heading = f"{record['unit']}/s"
    print(f"\n{record['name']}")
    print(f"{'':22}{heading:>30}{'ratio':>22}{'peak':>7}{'bandw.':>7}{'MiB':>7}  agreement", flush=True)
    for side, of_side in record["sides"].items():
        ratio = spread(of_side["ratio"]) if "ratio" in of_side else ""
        shares = "".join(f"{'' if share is None else f'{share:.0%}':>7}" for share in _shares(of_side))
        digits = 1 if record["unit"] == "tokens" else 2
        line = f"{side:22}{spread(of_side['speed'], digits):>30}{ratio:>22}{shares}{of_side['memory'] / MIB:>7,.0f}"
        print(f"{line}  {_in_words(of_side.get('agreement'))}".rstrip(), flush=True)


def _shares(of_side: dict[str, Any]) -> tuple[float | None, float | None]:
    return of_side["peak"], of_side["bandwidth"]


def _in_words(agreement: dict[str, Any] | None) -> str:
    if agreement is None:
        return ""
    if "of" in agreement:
        return f"{agreement['same']} of {agreement['of']} equal"
    return "not finite" if agreement["difference"] is None else f"{agreement['difference']:.1e}"


# --- the file ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What this was measured on, and by what."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instructions": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags
        ],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of this checkout, with a plus where it was changed since."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed.strip() else head


def header(**settings: Any) -> dict[str, Any]:
    """How a results file begins: what was measured where, when and by which versions."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """The file as it was or as it shall be, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
