"""Pictures of what was measured."""

import math
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = {
    "hf_attn": "#b8c4ce",
    "hf_attn prepared": "#b8c4ce",
    "hf_attn, workers": "#b8c4ce",
    "timm": "#4477aa",
    "transformers": "#ee9933",
    "ONNX Runtime": "#44aa77",
    "OpenVINO": "#aa3377",
    "CTranslate2": "#cc3344",
    "CTranslate2, workers": "#772233",
}
OTHER = "#777777"


def save(figure: Figure, path: Path) -> None:
    """The picture as it was or as it shall be, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png", dpi=130)
    plt.close(figure)
    os.replace(unfinished, path)


def draw_ratios(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """One bar for each peer in each row: how many times as fast the fastest of ours is, with the quartiles."""
    rows = [row for row in rows if any("ratio" in of_side and not _ours(side) for side, of_side in _sides(row))]
    if not rows:
        return
    lines = sum(1 + sum(1 for side, of in _sides(row) if not _ours(side) and "ratio" in of) for row in rows)
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.24 * lines), layout="constrained")
    place, ticks, labels, named, highest, lowest = 0.0, [], [], set(), 1.0, 1.0
    for row in rows:
        begins = place
        for side, of_side in _sides(row):
            if _ours(side) or "ratio" not in of_side:
                continue
            low, median, high = of_side["ratio"]
            label = None if side in named else side
            named.add(side)
            axes.barh(
                place,
                median - 1,
                left=1,
                height=0.85,
                color=COLOURS.get(side.removesuffix(", compiled"), OTHER),
                hatch="//" if side.endswith(", compiled") else None,
                label=label,
            )
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            at_right = max(median, high, 1)
            axes.annotate(f"{median:.2f}", (at_right, place), (4, 0), textcoords="offset points", va="center", size=8)
            highest, lowest = max(highest, at_right), min(lowest, median, low)
            place += 1
        ticks.append((begins + place - 1) / 2)
        labels.append(row["name"])
        place += 0.8
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (math.log2(lowest) - 0.15), 2 ** (math.log2(highest) + 0.35))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_yticks(ticks, labels)
    axes.set_ylim(place - 0.3, -0.9)
    axes.set_xlabel("speed of hf_attn, its fastest way, over the other's: right of 1, hf_attn is faster")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.9 / figure.get_figheight()), ncols=3, frameon=False)
    save(figure, path)


def _sides(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(row["sides"].items())


def _ours(side: str) -> bool:
    return side.startswith("hf_attn")
