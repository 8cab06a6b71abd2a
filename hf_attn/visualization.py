"""Attention as a picture: between the words of two sentences, and over a photograph; and what positions have learned.

Each function writes one PNG, whole or not at all.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:  # matplotlib takes a second to import, and is needed by few
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL.Image import Image

MAPS_A_SIDE = 16  # of the position similarities
HEAT_PIXELS = 448  # to which a heat map's longer side is smoothed
PICTURE_PIXELS = 1200  # to which a larger picture is made smaller before it is drawn


def draw_alignment(
    source_words: Sequence[str],
    target_words: Sequence[str],
    weights: torch.Tensor,
    path: str | os.PathLike,
    title: str = "Where each word of the translation looks",
) -> None:
    """Draw a heat map: source words from left to right, target words from top to bottom.

    Args:
        source_words: the labels of the columns.
        target_words: the labels of the rows.
        weights: (target words, source words), from 0 to 1; see `TranslationPipeline.align`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if the weights have another shape than the words, or there are no words.
    """
    if tuple(weights.shape) != (len(target_words), len(source_words)) or not weights.numel():
        raise ValueError(
            f"weights are {tuple(weights.shape)} for {len(target_words)} target and {len(source_words)} source words; "
            "they must be (target words, source words), at least one of each"
        )
    figure = new_figure(2.5 + 0.45 * len(source_words), 1.8 + 0.4 * len(target_words))
    axes = figure.add_subplot()
    image = axes.imshow(weights.float().numpy(), cmap="Blues", vmin=0.0, aspect="auto")
    axes.set_xticks(range(len(source_words)), source_words, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(target_words)), target_words)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    axes.set_title(title)
    figure.colorbar(image, label="share of the attention")
    write_png(figure, path)


def draw_attention(
    picture: "Image", heat: torch.Tensor, path: str | os.PathLike, title: str = "Where the classifier looks"
) -> None:
    """Draw a picture and, beside it, the same picture under its heat map.

    Often few patches get many times more than all others (Darcet et al. 2024, "Vision Transformers Need Registers").
    So that they do not drown the rest, the colours end at the 99th percentile, but not below a fifth of the largest
    share; an arrow on the colour bar says that there is more.

    Args:
        picture: what the model saw, in any size and mode: the patches cover the whole of it.
        heat: (rows, columns), the share of the attention that each patch got; see `hf_attn.rollout`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if the heat is not (rows, columns) of finite numbers from 0 up.
    """
    check_heat(heat, "(rows, columns)", 2)
    width, height = panel_size(picture.width / picture.height, 4.0)
    figure = new_figure(2 * width + 0.1, height, layout=None)
    plain, heated = (_place(figure, left, width, height) for left in (0.0, width + 0.1))
    show_picture(plain, picture)
    show_picture(heated, picture, dimmed=True)
    image = show_heat(heated, heat, picture.size)
    clipped = heat.max().item() > image.get_clim()[1]
    bar = _color_bar(
        figure, heated, image, "share of the attention, per patch", extend="max" if clipped else "neither"
    )
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    figure.suptitle(title, y=1 + 0.12 / height, va="bottom")
    write_png(figure, path)


def draw_attention_heads(
    picture: "Image",
    maps: torch.Tensor,
    path: str | os.PathLike,
    title: str = "Where each head looks",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> None:
    """Draw the heat maps of all heads, from left to right, of all layers, from top to bottom, each on its own scale.

    Args:
        picture: what the model saw, in any size and mode.
        maps: (layers, heads, rows, columns); see `hf_attn.rollout.head_attention`.
        path: the file to write; nothing half-written is left there.
        layers: the numbers to write beside the rows; from 0 up by default.
        heads: the numbers to write over the columns; from 0 up by default.

    Raises:
        ValueError: if the maps are not (layers, heads, rows, columns) of finite numbers from 0 up.
    """
    check_heat(maps, "(layers, heads, rows, columns)", 4)
    rows = range(len(maps)) if layers is None else layers
    columns = range(maps.shape[1]) if heads is None else heads
    if (len(rows), len(columns)) != tuple(maps.shape[:2]):
        raise ValueError(f"maps are {tuple(maps.shape)} for {len(rows)} layers and {len(columns)} heads")
    width, height = panel_size(picture.width / picture.height, 1.2)
    figure = new_figure(len(columns) * width + 0.4, len(rows) * height + 0.8)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for panel, heat in zip(panels.flat, maps.flatten(0, 1), strict=True):
        show_picture(panel, picture, dimmed=True)
        show_heat(panel, heat, picture.size)
    for panel, layer in zip(panels[:, 0], rows, strict=True):
        panel.set_ylabel(f"layer {layer}", fontsize=8)
    for panel, head in zip(panels[0], columns, strict=True):
        panel.set_title(f"head {head}", fontsize=8)
    figure.suptitle(title)
    write_png(figure, path)


def draw_classified(
    pictures: Sequence["Image"],
    captions: Sequence[str],
    heats: torch.Tensor,
    path: str | os.PathLike,
    title: str = "What the classifier says, and where it looks",
) -> None:
    """Draw several pictures side by side, each under its caption and over the same picture with its heat map.

    Args:
        pictures: what the model saw, in any size and mode.
        captions: what to write over each, in a line or two.
        heats: (pictures, rows, columns), the share of the attention that each patch got; see `hf_attn.rollout`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if there are not as many captions and heat maps as pictures, or the heat maps are none.
    """
    check_heat(heats, "(pictures, rows, columns)", 3)
    if not len(pictures) == len(captions) == len(heats):
        raise ValueError(
            f"{len(pictures)} pictures, {len(captions)} captions and {len(heats)} heat maps; give as many"
        )
    figure = new_figure(1.3 * len(pictures), 3.4)
    panels = figure.subplots(2, len(pictures), squeeze=False)
    for (plain, heated), picture, caption, heat in zip(panels.T, pictures, captions, heats, strict=True):
        show_picture(plain, picture)
        plain.set_title(caption, fontsize=8)
        show_picture(heated, picture, dimmed=True)
        show_heat(heated, heat, picture.size)
    figure.suptitle(title, fontsize=10)
    write_png(figure, path)


def draw_position_similarity(
    positions: torch.Tensor,
    path: str | os.PathLike,
    title: str = "Similarity of each position embedding to all others",
) -> None:
    """Draw for each place of the grid a small map: the cosine of its learned position with those of all places.

    As in figure 7 of Dosovitskiy et al. 2021. The map of a place stands at its row and column, counted from 0; of
    large grids every second, third, ... place is shown.

    Args:
        positions: (rows, columns, hidden_size), a model's `embeddings.positions`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if the positions are no grid.
    """
    if positions.ndim != 3 or not positions.numel():
        raise ValueError(f"positions are {tuple(positions.shape)}; they must be (rows, columns, hidden_size)")
    rows, columns = positions.shape[:2]
    steps = -(-rows // MAPS_A_SIDE), -(-columns // MAPS_A_SIDE)
    directions = functional.normalize(positions.detach().float().cpu(), dim=-1)
    cosines = torch.einsum("rcd,pqd->rcpq", directions[:: steps[0], :: steps[1]], directions)
    gap = max(1, round(max(rows, columns) / 14))  # in cells, left white between the maps
    mosaic = functional.pad(cosines, (0, gap, 0, gap), value=float("nan")).transpose(1, 2).flatten(2).flatten(0, 1)

    width, height = panel_size(mosaic.shape[1] / mosaic.shape[0], 5.5)
    figure = new_figure(width, height, layout=None)
    axes = _place(figure, 0.0, width, height)
    image = axes.imshow(mosaic[:-gap, :-gap].numpy(), cmap="viridis", vmin=-1.0, vmax=1.0, interpolation="nearest")
    for axis, count, step in ((axes.yaxis, rows, steps[0]), (axes.xaxis, columns, steps[1])):
        places = range(0, count, step)
        axis.set_ticks([(count + gap) * i + (count - 1) / 2 for i in range(len(places))], map(str, places))
        axis.set_tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    axes.set_title(title)
    _color_bar(figure, axes, image, "cosine similarity", ticks=[-1.0, -0.5, 0.0, 0.5, 1.0])
    write_png(figure, path)


# --- parts of a figure ---------------------------------------------------------------------------------------------


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """A figure of this size in inches; what reaches beyond is in the PNG as well."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def panel_size(aspect: float, longer: float) -> tuple[float, float]:
    """(width, height) in inches of a panel for a picture of this aspect; the shorter side is never a mere line."""
    shorter = max(longer * min(aspect, 1 / aspect), 0.4 * longer)
    return (longer, shorter) if aspect >= 1 else (shorter, longer)


def _place(figure: "Figure", left: float, width: float, height: float) -> "Axes":
    """Axes at the bottom of a figure, in inches."""
    figure_width, figure_height = figure.get_size_inches()
    return figure.add_axes((left / figure_width, 0.0, width / figure_width, height / figure_height))


def show_picture(axes: "Axes", picture: "Image", dimmed: bool = False) -> None:
    """Fill axes with a picture, one unit a pixel; dimmed it is grey and dark, so that colour means heat."""
    width, height = picture.size
    shown = picture.convert("RGB")
    shown.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    if dimmed:
        shown = shown.convert("L").point(lambda value: 0.7 * value)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_heat(axes: "Axes", heat: torch.Tensor, size: tuple[int, int]) -> "AxesImage":
    """Lay a heat map over a picture of (width, height) pixels, the more opaque the hotter."""
    width, height = size
    values = heat.detach().float().cpu()
    largest = values.max().item()
    end = max(values.quantile(0.99).item(), largest / 5, torch.finfo(torch.float32).tiny)
    fine = [max(1, round(HEAT_PIXELS * side / max(size))) for side in (height, width)]
    values = values.clamp(max=end)[None, None]
    smooth = functional.interpolate(values, size=fine, mode="bicubic", antialias=True)[0, 0].clamp(0.0, end)
    opacity = 0.25 + 0.6 * (smooth / end).sqrt()
    extent = (0, width, height, 0)
    return axes.imshow(smooth.numpy(), cmap="inferno", vmin=0.0, vmax=end, alpha=opacity.numpy(), extent=extent)


def _color_bar(figure: "Figure", axes: "Axes", image: "AxesImage", label: str, **options: Any) -> "Colorbar":
    """A bar as high as the axes of the image, on their right."""
    box = axes.get_position(original=True)
    inch = 1 / figure.get_figwidth()
    bar_axes = figure.add_axes((box.x1 + 0.12 * inch, box.y0, 0.14 * inch, box.height))
    bar = figure.colorbar(image, cax=bar_axes, label=label, alpha=1.0, **options)
    bar.outline.set_visible(False)
    return bar


def check_heat(heat: torch.Tensor, shape: str, dimensions: int) -> None:
    if heat.ndim != dimensions or not heat.numel():
        raise ValueError(f"the heat is {tuple(heat.shape)}; it must be {shape}")
    if not (heat.isfinite() & (heat >= 0)).all():
        raise ValueError(
            f"the heat goes from {heat.min():g} to {heat.max():g}; shares of attention are finite, from 0 up"
        )


def write_png(figure: "Figure", path: str | os.PathLike, tight: bool = True) -> None:
    """Save a matplotlib figure as a PNG under a temporary name and rename it, so that no half of it is left.

    `tight` cuts it to what is drawn, and otherwise it has the figure's own size.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight" if tight else None)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
