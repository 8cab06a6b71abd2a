"""Boxes on pictures: what a detector found, what was there to be found, and where the detector looked.

A detection is a dictionary: `label`, a name; `box`, (x0, y0, x1, y1) in pixels of the picture; and `score`, from 0 to
1, which may be missing or None. Each function `draw_*` writes one PNG, whole or not at all.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional

from hf_attn.drawing_boxes import FONT_SHARE, Colour, Mark, Rectangle, overlap, put_boxes, sans_serif, shortened
from hf_attn.image_processing_inputs import read_picture
from hf_attn.visualization import (
    PICTURE_PIXELS,
    check_heat,
    new_figure,
    panel_size,
    show_heat,
    show_picture,
    write_png,
)

Detection = Mapping[str, Any]

SMALLEST_SIDE = 480  # pixels: pictures whose longer side is below are drawn larger, by a whole factor
PANEL_SIDE = 420  # pixels of the longer side of a picture on a sheet
GAP = 12  # pixels between the pictures of a sheet
FOUND = 0.5  # intersection over union from which a truth counts as found
WHITE = (255, 255, 255)
PALETTE = (  # after Sasha Trubetskoy's "List of 20 simple, distinct colors" (2017), the dark ones brightened
    *("#f5304d", "#3cb44b", "#4f7dff", "#ffe119", "#f032e6", "#42d4f4", "#ff7f0e", "#a6f03c", "#a04dff", "#169e8f"),
    *("#fabed4", "#b0692f", "#c9c0ff", "#aaffc3", "#a8a800", "#8fa3ad"),
)


def draw_boxes(
    picture: Image.Image,
    detections: Sequence[Detection],
    path: str | os.PathLike,
    title: str | None = None,
    names: Sequence[str] | None = None,
    truths: Sequence[Detection] | None = None,
) -> None:
    """Draw boxes with their labels and scores on a picture of any size and mode, at its own size.

    Args:
        picture: upright, as the boxes are.
        path: the file to write; nothing half-written is left there.
        title: to write above the picture.
        names, truths: see `annotate`.

    Raises:
        ValueError: if a box is not four finite numbers.
    """
    drawn = annotate(picture, detections, names, truths)
    if title is not None:
        drawn = _under_a_title(drawn, title)
    _save_png(drawn, path)


def annotate(
    picture: Image.Image,
    detections: Sequence[Detection],
    names: Sequence[str] | None = None,
    truths: Sequence[Detection] | None = None,
) -> Image.Image:
    """A copy of a picture with boxes, their labels and scores on it; small pictures are made larger.

    Args:
        names: of all classes, in order, so that each has the same colour in every picture; by default those that are
            there, in the order of the alphabet.
        truths: what was there to be found, drawn in dashes: thin and white where a detection of the class lies on it
            (intersection over union of at least one half), else in the class's colour, by name.

    Raises:
        ValueError: if a box is not four finite numbers.
    """
    factor = _enlargement(picture)
    colours = class_colours(names, [*detections, *(truths or ())])
    return put_boxes(_resized(picture, factor), _marks(detections, truths, colours, factor))


def draw_detections(
    pictures: Sequence[Image.Image],
    detections: Sequence[Sequence[Detection]],
    path: str | os.PathLike,
    truths: Sequence[Sequence[Detection]] | None = None,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> None:
    """Draw many pictures with their boxes on one sheet, in rows.

    Args:
        detections: of each picture.
        path: the file to write; nothing half-written is left there.
        truths: what was there to be found, of each picture; see `annotate`.
        names: of all classes, in order; see `annotate`.
        titles: to write under each picture.

    Raises:
        ValueError: if there are no pictures or not as many of anything as pictures, or a box is not four finite
            numbers.
    """
    for what, given in {"detections": detections, "truths": truths, "titles": titles}.items():
        if not pictures or (given is not None and len(given) != len(pictures)):
            raise ValueError(f"{len(pictures)} pictures and {what} of {len(given or ())}; give as many, at least one")
    colours = class_colours(names, [one for some in [*detections, *(truths or ())] for one in some])
    panels = []
    for number, picture in enumerate(pictures):
        factor = PANEL_SIDE / max(picture.size)
        marks = _marks(detections[number], None if truths is None else truths[number], colours, factor)
        panels.append(put_boxes(_resized(picture, factor), marks))
    legend = None if truths is None else "solid: found    dashed: there to be found, with a name where it was missed"
    _save_png(_on_a_sheet(panels, titles or [""] * len(panels), legend), path)


def class_colours(names: Sequence[str] | None, detections: Sequence[Detection]) -> dict[str, Colour]:
    """A colour for each class: of `names` in order, then of other labels in the order of the alphabet."""
    labels = sorted({str(detection["label"]) for detection in detections})
    return {name: palette_colour(number) for number, name in enumerate(dict.fromkeys([*(names or ()), *labels]))}


def palette_colour(number: int) -> Colour:
    """The colours of the palette, then the same ones again."""
    code = PALETTE[number % len(PALETTE)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


# --- where it looked -------------------------------------------------------------------------------------------------


def draw_query_attention(
    picture: Image.Image,
    detections: Sequence[Detection],
    maps: torch.Tensor,
    path: str | os.PathLike,
    title: str | None = None,
) -> None:
    """Draw where the decoder looked for each detection, in a colour of its own, as figure 6 of Carion et al. 2020.

    Each map is brightest at its own largest share, so that one that is spread wide can be seen as well; what got no
    more than an even share does not shine.

    Args:
        picture: upright, as the boxes are.
        maps: (detections, rows, columns) from 0 up; see `hf_attn.detr_attention.query_attention`.
        path: the file to write; nothing half-written is left there.
        title: to write above the picture.

    Raises:
        ValueError: if there are not as many maps as detections, at least one, or they are none.
    """
    check_heat(maps, "(queries, rows, columns)", 3)
    if len(maps) != len(detections):
        raise ValueError(f"{len(maps)} maps for {len(detections)} detections; give as many")
    factor = min(_enlargement(picture), PICTURE_PIXELS / max(picture.size))
    colours = [palette_colour(number) for number in range(len(maps))]
    glowing = _glow(_resized(picture, factor), maps, colours)
    marks = [
        mark._replace(colour=colour)
        for mark, colour in zip(_found_marks(detections, {}, factor), colours, strict=True)
    ]
    drawn = put_boxes(glowing, marks)
    _save_png(drawn if title is None else _under_a_title(drawn, title), path)


def draw_point_attention(
    picture: Image.Image,
    points: Sequence[tuple[float, float]],
    maps: torch.Tensor,
    path: str | os.PathLike,
    title: str = "What the encoder reads at each point",
) -> None:
    """Draw which places the encoder read at some points of a picture, as figure 3 of Carion et al. 2020.

    Args:
        picture: upright, in any size and mode.
        points: (x, y) of each, as fractions of the picture's width and height.
        maps: (points, rows, columns) from 0 up; see `hf_attn.detr_attention.encoder_attention`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if there are not as many maps as points, at least one, or they are none.
    """
    check_heat(maps, "(points, rows, columns)", 3)
    if len(maps) != len(points):
        raise ValueError(f"{len(maps)} maps for {len(points)} points; give as many")
    picture = _resized(picture, _enlargement(picture))
    rows = 1 if len(maps) == 1 else 2
    columns = math.ceil(len(maps) / rows)
    width, height = panel_size(picture.width / picture.height, 4.0)
    figure = new_figure(width * (1 + columns / rows) + 0.2, height + 0.5)
    grid = figure.add_gridspec(rows, rows + columns)
    whole = figure.add_subplot(grid[:, :rows])
    show_picture(whole, picture)
    for number, ((x, y), heat) in enumerate(zip(points, maps, strict=True)):
        colour = tuple(level / 255 for level in palette_colour(number))
        panel = figure.add_subplot(grid[number % rows, rows + number // rows])
        show_picture(panel, picture, dimmed=True)
        show_heat(panel, heat, picture.size)
        panel.spines[:].set(visible=True, color=colour, linewidth=2.5)
        place = x * picture.width, y * picture.height
        for axes, size in ((whole, 11), (panel, 8)):
            axes.plot(*place, "o", color=colour, markersize=size, markeredgecolor="white", markeredgewidth=1.5)
    figure.suptitle(title, parse_math=False)
    write_png(figure, path)


def _glow(picture: Image.Image, maps: torch.Tensor, colours: Sequence[Colour]) -> Image.Image:
    """A grey, darkened picture on which each map shines in its colour where it is above its mean."""
    height, width = picture.height, picture.width
    grey = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32))[..., None] / 255
    heat = maps.detach().float().cpu()
    even = heat.mean(dim=(1, 2), keepdim=True)
    surplus = (heat - even).clamp(min=0)
    heat = surplus / surplus.amax(dim=(1, 2), keepdim=True).maximum(even).clamp(min=torch.finfo(torch.float32).tiny)
    heat = functional.interpolate(heat[None], size=(height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
    light = 0.95 * heat.sqrt()
    share = light / light.sum(dim=0).clamp(min=1e-6)
    tint = torch.einsum("qhw,qc->hwc", share, torch.tensor(colours, dtype=torch.float32))
    opacity = (1 - (1 - light).prod(dim=0))[..., None]
    # The colour takes its light from the picture, so that what was looked at is still to be seen
    mixed = (1 - opacity) * 160 * grey + opacity * tint * (0.5 + 0.5 * grey)
    return Image.fromarray(mixed.round().clamp(0, 255).byte().numpy())


# --- marks -----------------------------------------------------------------------------------------------------------


def _marks(
    detections: Sequence[Detection],
    truths: Sequence[Detection] | None,
    colours: Mapping[str, Colour],
    factor: float,
) -> list[Mark]:
    """What was there to be found, where that is known, on top of what was found."""
    found = _found_marks(detections, colours, factor)
    return found if truths is None else _truth_marks(truths, detections, colours, factor) + found


def _found_marks(detections: Sequence[Detection], colours: Mapping[str, Colour], factor: float) -> list[Mark]:
    """The boxes on a picture that was enlarged by `factor`, the best first."""
    marks = []
    for detection in detections:
        score = detection.get("score")
        text = " ".join(str(detection["label"]).split())
        text = text if score is None else f"{text} {float(score):.2f}"
        colour = colours.get(str(detection["label"]), palette_colour(0))
        marks.append(Mark(_rectangle(detection["box"], factor), text, colour))
    return marks


def _truth_marks(
    truths: Sequence[Detection], found: Sequence[Detection], colours: Mapping[str, Colour], factor: float
) -> list[Mark]:
    """In dashes; white and without words where a detection of the class lies on them."""
    marks = []
    for mark, truth in zip(_found_marks(truths, colours, factor), truths, strict=True):
        same = [_rectangle(other["box"], factor) for other in found if other["label"] == truth["label"]]
        was_found = any(overlap(mark.box, other) >= FOUND for other in same)
        marks.append(mark._replace(text="", colour=WHITE, dashed=True) if was_found else mark._replace(dashed=True))
    return marks


def _rectangle(box: Any, factor: float) -> Rectangle:
    numbers = [float(number) for number in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"a box is {numbers}; it must be four finite numbers: x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = (factor * number for number in numbers)
    return x0, y0, x1, y1


# --- pictures, sheets and files --------------------------------------------------------------------------------------


def _enlargement(picture: Image.Image) -> int:
    return max(1, math.ceil(SMALLEST_SIDE / max(picture.size)))


def _resized(picture: Image.Image, factor: float) -> Image.Image:
    """A copy in RGB, upright."""
    pixels = read_picture(picture)
    if isinstance(pixels, torch.Tensor):  # of more than 8 bits: (3, height, width) in [0, 1]
        pixels = Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy())
    size = max(1, round(factor * pixels.width)), max(1, round(factor * pixels.height))
    return pixels.resize(size, Image.Resampling.BICUBIC) if size != pixels.size else pixels.copy()


def _under_a_title(picture: Image.Image, title: str) -> Image.Image:
    font = sans_serif(max(14, round(1.2 * FONT_SHARE * math.sqrt(picture.width * picture.height))))
    height = round(2 * font.size)
    titled = Image.new("RGB", (picture.width, picture.height + height), "white")
    titled.paste(picture, (0, height))
    text = shortened(title, font, picture.width)
    ImageDraw.Draw(titled).text((picture.width / 2, height / 2), text, font=font, fill="black", anchor="mm")
    return titled


def _on_a_sheet(panels: Sequence[Image.Image], titles: Sequence[str], legend: str | None) -> Image.Image:
    """Panels in rows of about as many as there are rows, wider than high."""
    columns = math.ceil(math.sqrt(1.3 * len(panels))) if len(panels) > 2 else len(panels)
    rows = [slice(start, start + columns) for start in range(0, len(panels), columns)]
    font = sans_serif(14)
    under = 24 if any(titles) else 0
    heights = [max(panel.height for panel in panels[row]) + under for row in rows]
    width = columns * PANEL_SIDE + (columns + 1) * GAP
    height = sum(heights) + (len(rows) + 1) * GAP + (24 if legend else 0)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, (panel, title) in enumerate(zip(panels[row], titles[row], strict=True)):
            left = GAP + column * (PANEL_SIDE + GAP)
            sheet.paste(panel, (left + (PANEL_SIDE - panel.width) // 2, top + row_height - under - panel.height))
            text = shortened(title, font, PANEL_SIDE)
            pen.text((left + PANEL_SIDE / 2, top + row_height - 10), text, font=font, fill="black", anchor="mm")
        top += row_height + GAP
    if legend:
        pen.text((width / 2, height - 16), legend, font=font, fill=(90, 90, 90), anchor="mm")
    return sheet


def _save_png(picture: Image.Image, path: str | os.PathLike) -> None:
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        picture.save(unfinished, format="PNG")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
