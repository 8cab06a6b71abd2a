"""Boxes with tags on a picture: lines that can be seen on anything, words that do not hide each other."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

FONT_SHARE = 0.025  # height of the letters, as a share of the side of a square as large as the picture
LINE_SHARE = 0.0055  # width of a box's line, as a share of the same
TAGS_SHARE = 0.05  # of the picture that tags may hide before their letters become smaller
TAG_WIDTH = 0.6  # of the picture that a tag may be wide, unless its box is wider


class Mark(NamedTuple):
    """A box on a picture, with or without words."""

    box: Rectangle
    text: str
    colour: Colour
    dashed: bool = False


def put_boxes(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Boxes on a picture, the first ones on top; tags on top of all boxes."""
    pen = ImageDraw.Draw(picture, "RGBA")
    side = math.sqrt(picture.width * picture.height)
    line = max(2, round(LINE_SHARE * side))
    boxes = [_inside(mark.box, picture.size, line) for mark in marks]
    for mark, box in reversed(list(zip(marks, boxes, strict=True))):
        shorter = min(box[2] - box[0], box[3] - box[1])
        thin = max(1, line // 2) if mark.dashed and not mark.text else max(2, min(line, round(shorter / 7)))
        _draw_box(pen, box, mark, thin)
    tags = place_tags(marks, boxes, picture.size, side)
    for tag in reversed(tags):
        _draw_tag(pen, tag)
    return picture


def _inside(box: Rectangle, size: tuple[int, int], line: int) -> Rectangle:
    """The middle of a box's line, so that no part of it is outside of the picture."""
    half = line / 2
    right, bottom = max(size[0] - 1 - half, half), max(size[1] - 1 - half, half)
    x0, x1 = (min(max(x, half), right) for x in (box[0], box[2]))
    y0, y1 = (min(max(y, half), bottom) for y in (box[1], box[3]))
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _draw_box(pen: ImageDraw.ImageDraw, box: Rectangle, mark: Mark, line: int) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    before, after = line // 2, line - line // 2 - 1  # pixels of the line before and after its middle
    sides = (
        (x0 - before, y0 - before, x1 + after, y0 + after),
        (x0 - before, y1 - before, x1 + after, y1 + after),
        (x0 - before, y0 - before, x0 + after, y1 + after),
        (x1 - before, y0 - before, x1 + after, y1 + after),
    )
    pieces = [piece for one in sides for piece in (_dashes(one, 3 * line) if mark.dashed else [one])]
    for left, top, right, bottom in pieces:  # dark edges, so that it can be seen on anything
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=(0, 0, 0, 90))
    for piece in pieces:
        pen.rectangle(piece, fill=mark.colour)


def _dashes(side: tuple[int, int, int, int], length: int) -> Iterator[tuple[int, int, int, int]]:
    """A side in an odd number of parts of about this length, every second one; so both ends have a dash."""
    x0, y0, x1, y1 = side
    along = max(x1 - x0, y1 - y0) + 1
    parts = max(1, 2 * round((along / length - 1) / 2) + 1)
    for part in range(0, parts, 2):
        begin, end = round(part * along / parts), round((part + 1) * along / parts) - 1
        yield (x0 + begin, y0, x0 + end, y1) if x1 - x0 >= y1 - y0 else (x0, y0 + begin, x1, y0 + end)


# --- tags ------------------------------------------------------------------------------------------------------------


class Tag(NamedTuple):
    """The words of a box, on a ground of its colour."""

    place: Rectangle
    text: str
    font: ImageFont.FreeTypeFont
    colour: Colour
    dashed: bool


def place_tags(marks: Sequence[Mark], boxes: Sequence[Rectangle], size: tuple[int, int], side: float) -> list[Tag]:
    """A tag at each box that has words: within the picture, and off the other tags where there is room."""
    letters = max(14.0, FONT_SHARE * side)
    hidden = sum(_tag_size(mark.text, sans_serif(round(letters)))[0] for mark in marks if mark.text) * 1.4 * letters
    letters = max(11.0, letters * min(1.0, math.sqrt(TAGS_SHARE * side**2 / max(hidden, 1.0))))
    font = sans_serif(round(letters))
    tags: list[Tag] = []
    for mark, box in zip(marks, boxes, strict=True):
        text = shortened(mark.text, font, round(max(TAG_WIDTH * size[0], box[2] - box[0])))
        if text:
            width, height = _tag_size(text, font)
            others = [other for other in boxes if other is not box]
            place = _free_place(box, (width, height), size, [tag.place for tag in tags], others)
            tags.append(Tag(place, text, font, mark.colour, mark.dashed))
    return tags


def _free_place(
    box: Rectangle,
    tag: tuple[int, int],
    size: tuple[int, int],
    taken: Sequence[Rectangle],
    others: Sequence[Rectangle],
) -> Rectangle:
    """Where a tag of (width, height) goes: the first usual place that hides no tag, and little of other boxes."""
    width, height = tag
    x0, y0, x1, y1 = box
    above, below = y0 - height, y1
    corners = [(x0, above), (x1 - width, above), (x0, y0), (x0, below), (x1 - width, below), (x1 - width, y0)]
    corners += [(x0, y1 - height), (x1 - width, y1 - height), (x1, y0), (x0 - width, y0)]
    corners += [(x0, above - step * height) for step in (1, 2, 3)] + [(x0, below + step * height) for step in (1, 2)]
    best, least = None, math.inf
    for rank, (left, top) in enumerate(corners):
        left, top = min(max(left, 0), max(size[0] - width, 0)), min(max(top, 0), max(size[1] - height, 0))
        place = (left, top, left + width, top + height)
        hidden_tags = sum(common_area(place, other) for other in taken) / (width * height)
        hidden_boxes = sum(common_area(place, other) / max(_area(other), 1.0) for other in others)
        cost = 10 * hidden_tags + min(hidden_boxes, 2.0) + 0.03 * rank
        if cost < least:
            best, least = place, cost
    assert best is not None
    return best


def _draw_tag(pen: ImageDraw.ImageDraw, tag: Tag) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in tag.place)
    bright = sum(weight * level for weight, level in zip((0.299, 0.587, 0.114), tag.colour, strict=True)) > 140
    ground, ink = (tag.colour, (0, 0, 0) if bright else (255, 255, 255))
    if tag.dashed:
        ground, ink = (0, 0, 0), tag.colour
    pen.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius=max(2, (y1 - y0) // 6), fill=(*ground, 225))
    pen.text((x0 + _margin(tag.font), (y0 + y1) / 2), tag.text, font=tag.font, fill=ink, anchor="lm")


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return round(0.35 * font.size)


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + 2 * _margin(font), round(1.45 * font.size)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, with its middle left out where it is too wide for the picture; nothing if no letter fits."""
    if not text or _tag_size(text, font)[0] <= width:
        return text
    for kept in range(len(text) - 2, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if _tag_size(shorter, font)[0] <= width:
            return shorter
    return ""


@cache
def sans_serif(size: int) -> ImageFont.FreeTypeFont:
    """The sans-serif font that matplotlib ships, which has most of the world's alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


# --- rectangles ------------------------------------------------------------------------------------------------------


def _area(box: Rectangle) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def common_area(one: Rectangle, other: Rectangle) -> float:
    """Pixels that two rectangles have in common."""
    corners = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return _area(corners)


def overlap(one: Rectangle, other: Rectangle) -> float:
    """Intersection over union."""
    common = common_area(one, other)
    return common / max(_area(one) + _area(other) - common, 1e-9)
