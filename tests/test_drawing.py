"""Boxes, tags, sheets and attention over pictures: what must be where, in which colour, and what is left alone."""

import math
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_attn.drawing import (
    PALETTE,
    PANEL_SIDE,
    SMALLEST_SIDE,
    annotate,
    class_colours,
    draw_boxes,
    draw_detections,
    draw_point_attention,
    draw_query_attention,
    palette_colour,
)
from hf_attn.drawing_boxes import Mark, common_area, overlap, place_tags, sans_serif, shortened

NAMES = ["cat", "dog", "wild boar"]


def found(label: str, box: tuple[float, ...], score: float | None = 0.9) -> dict:
    return {"label": label, "box": box, "score": score}


def grey(width: int = 600, height: int = 500, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100)).convert(mode)


def pixels(picture: Image.Image) -> np.ndarray:
    """(height, width, 3) whole numbers"""
    return np.asarray(picture.convert("RGB")).astype(int)


def drawn(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return pixels(picture)


def places_of(colour: tuple[int, int, int], shown: np.ndarray) -> np.ndarray:
    """(height, width) True where the picture has this colour."""
    return (abs(shown - np.array(colour)) <= 8).all(-1)


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_a_line_in_its_colour_around_its_pixels_and_nothing_else():
    shown = pixels(annotate(grey(), [found("dog", (100, 200, 400, 450))]))
    line = places_of(palette_colour(0), shown)
    rows, columns = np.nonzero(line[200:])  # the tag stands above
    assert (columns.min(), columns.max()) == pytest.approx((100, 400), abs=3)
    assert rows.max() == pytest.approx(250, abs=3)
    assert (
        line[300:400, 99:102].all(0).any() and line[300:400, 399:402].all(0).any() and line[449:452].any(0).sum() > 295
    )
    assert (shown[210:440, 110:390] == 100).all() and (shown[460:] == 100).all()


@pytest.mark.parametrize("size", [(SMALLEST_SIDE, 100), (1300, 900), (300, 2000)])
def test_a_picture_keeps_its_own_size(size):
    picture = grey(*size)
    assert annotate(picture, []).size == size
    assert (pixels(picture) == 100).all()


@pytest.mark.parametrize(("size", "factor"), [((96, 96), 5), ((32, 20), 15), ((300, 479), 2)])
def test_small_pictures_and_their_boxes_become_larger_by_a_whole_factor(size, factor):
    shown = annotate(grey(*size), [found("dog", (size[0] / 2, size[1] / 2, size[0], size[1]), score=None)])
    assert shown.size == (factor * size[0], factor * size[1])
    rows, columns = np.nonzero(places_of(palette_colour(0), pixels(shown)))
    assert columns.min() == pytest.approx(shown.width / 2, abs=3) and columns.max() >= shown.width - 4
    assert rows.max() >= shown.height - 4


def test_a_class_has_the_same_colour_in_every_picture():
    assert class_colours(NAMES, [found("dog", (0, 0, 1, 1))])["dog"] == palette_colour(1)
    assert class_colours(NAMES, [found("eel", (0, 0, 1, 1))])["eel"] == palette_colour(3)
    assert class_colours(None, [found("dog", (0, 0, 1, 1)), found("cat", (0, 0, 1, 1))])["cat"] == palette_colour(0)
    shown = pixels(annotate(grey(), [found("wild boar", (50, 100, 300, 400))], NAMES))
    assert places_of(palette_colour(2), shown).sum() > 500 and not places_of(palette_colour(0), shown).any()


def test_colours_can_be_told_apart_and_seen():
    colours = [palette_colour(number) for number in range(len(PALETTE))]
    assert min(math.dist(*pair) for pair in combinations(colours, 2)) > 60
    assert min(math.dist(*pair) for pair in combinations(colours[:8], 2)) > 85
    assert all(max(colour) > 140 for colour in colours)
    assert palette_colour(len(PALETTE)) == palette_colour(0)


@pytest.mark.parametrize(
    "box", [(-50, -20, 900, 700), (590, 490, 599, 499), (300, 300, 300, 300), (400, 300, 100, 100)]
)
def test_boxes_that_reach_outside_have_no_size_or_are_turned_around_are_drawn_inside(box):
    shown = pixels(annotate(grey(), [found("dog", box)]))
    assert shown.shape == (500, 600, 3) and places_of(palette_colour(0), shown).any()


@pytest.mark.parametrize("box", [(1, 2, 3), (0, 0, math.nan, 5), (0, 0, math.inf, 5)])
def test_what_is_no_box_is_refused(box, tmp_path):
    with pytest.raises(ValueError, match=r"a box is .* four finite numbers: x0, y0, x1, y1 in pixels"):
        draw_boxes(grey(), [found("dog", box)], tmp_path / "dog.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "size"),
    [("L", (60, 40)), ("RGBA", (40, 60)), ("P", (40, 60)), ("CMYK", (60, 40)), ("1", (700, 20)), ("RGB", (1, 300))],
)
def test_pictures_of_any_mode_and_shape_are_drawn(tmp_path, mode, size):
    detections = [
        found("a name that is longer than the picture is wide", (0, 0, size[0], size[1])),
        found("ж ö 猫", (0, 0, 5, 5)),
    ]
    draw_boxes(grey(*size, mode=mode), detections, tmp_path / "drawn.png", title="Größe")
    assert drawn(tmp_path / "drawn.png").std() > 5


def test_sixteen_bits_keep_their_levels_and_cameras_are_held_upright():
    deep = Image.fromarray(np.full((500, 600), 100 * 257, dtype=np.uint16))
    assert (pixels(annotate(deep, [])) == 100).all()
    turned = grey(600, 500)
    turned.getexif()[0x0112] = 6
    assert annotate(turned, []).size == (500, 600)


def test_a_title_stands_above_the_picture(tmp_path):
    draw_boxes(grey(), [], tmp_path / "plain.png")
    draw_boxes(grey(), [], tmp_path / "titled.png", title="What DETR found")
    plain, titled = drawn(tmp_path / "plain.png"), drawn(tmp_path / "titled.png")
    strip = len(titled) - len(plain)
    assert (titled[strip:] == plain).all() and 15 < strip < 60
    assert titled[:strip].max() == 255 and titled[:strip].min() < 60


def test_nothing_is_left_where_the_picture_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        draw_boxes(grey(), [], tmp_path / "missing" / "drawn.png")
    draw_boxes(grey(), [], tmp_path / "drawn.png")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]


# --- tags ------------------------------------------------------------------------------------------------------------

edges = st.tuples(st.integers(-50, 650), st.integers(-50, 550), st.integers(-50, 650), st.integers(-50, 550))


@given(st.lists(edges, max_size=12))
def test_tags_are_inside_of_the_picture(boxes):
    marks = [Mark(box, f"thing {number} 0.87", (255, 0, 0)) for number, box in enumerate(boxes)]
    tags = place_tags(marks, boxes, (600, 500), math.sqrt(600 * 500))
    assert [tag.text for tag in tags] == [mark.text for mark in marks]
    for tag in tags:
        left, top, right, bottom = tag.place
        assert 0 <= left < right <= 600 and 0 <= top < bottom <= 500


def test_tags_do_not_hide_each_other_where_there_is_room():
    same = [(100, 100, 300, 300)] * 4 + [(110, 90, 310, 290), (0, 0, 599, 499), (0, 0, 590, 490)]
    tags = place_tags([Mark(box, "person 0.99", (255, 0, 0)) for box in same], same, (600, 500), 548.0)
    assert len(tags) == 7
    assert all(common_area(one.place, other.place) == 0 for one, other in combinations(tags, 2))


def test_many_tags_are_written_smaller():
    few, many = ([(20 * n, 20 * n, 20 * n + 10, 20 * n + 10) for n in range(number)] for number in (2, 20))
    sizes = [
        place_tags([Mark(box, "person 0.99", (255, 0, 0)) for box in boxes], boxes, (1200, 900), 1039.0)[0].font.size
        for boxes in (few, many)
    ]
    assert 11 <= sizes[1] < sizes[0]


def test_long_names_lose_their_middle():
    font = sans_serif(20)
    text = shortened("a very long name of a class 0.87", font, 200)
    assert text.startswith("a ve") and text.endswith("0.87") and "…" in text
    assert font.getlength(text) <= 200
    assert shortened("dog", font, 200) == "dog" and shortened("dog", font, 3) == ""


@given(edges, edges)
def test_overlap_is_a_share_and_symmetric(one, other):
    assert 0 <= overlap(one, other) == overlap(other, one) <= 1


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_a_sheet_holds_all_pictures_in_rows(tmp_path):
    pictures = [Image.new("RGB", (60, 40), palette_colour(number)) for number in range(6)]
    draw_detections(pictures, [[]] * 6, tmp_path / "sheet.png", titles=[f"{number}.png" for number in range(6)])
    shown = drawn(tmp_path / "sheet.png")
    middles = []
    for number in range(6):
        rows, columns = np.nonzero(places_of(palette_colour(number), shown))
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (PANEL_SIDE, PANEL_SIDE * 40 // 60)
        middles.append((round(rows.mean()), round(columns.mean())))
    assert middles == sorted(middles) and len({row for row, _ in middles}) == 2


def test_truths_are_dashed_white_where_found_and_named_in_their_colour_where_missed(tmp_path):
    detections = [found("dog", (50, 100, 300, 400))]
    truths = [found("dog", (52, 105, 305, 395), None), found("cat", (350, 100, 580, 400), None)]
    draw_detections([grey()], [detections], tmp_path / "sheet.png", truths=[truths], names=NAMES)
    shown = drawn(tmp_path / "sheet.png")
    panel = shown[: int(len(shown) * 0.9), 15:-15]
    left, right = panel[:, : panel.shape[1] // 2], panel[:, panel.shape[1] // 2 :]
    for part, colour in ((left, (255, 255, 255)), (right, palette_colour(0))):
        dashed = places_of(colour, part[40:-20])
        edge = dashed[:, dashed.sum(0).argmax()]
        assert 0.3 < edge[edge.nonzero()[0][0] : edge.nonzero()[0][-1]].mean() < 0.8
    assert (right < 30).all(-1).sum() > 200  # the ground of the name
    assert (left < 30).all(-1).sum() < 20


@pytest.mark.parametrize(
    ("detections", "more"),
    [([[]], {}), ([[], []], {"truths": [[]]}), ([[], []], {"titles": ["a", "b", "c"]})],
)
def test_a_sheet_wants_as_much_of_everything_as_pictures(tmp_path, detections, more):
    with pytest.raises(ValueError, match=r"2 pictures and .*; give as many"):
        draw_detections([grey(), grey()], detections, tmp_path / "sheet.png", **more)
    with pytest.raises(ValueError, match="at least one"):
        draw_detections([], [], tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(600, 450), (96, 72), (2400, 1800)])
def test_each_query_glows_in_its_colour_where_it_looked(tmp_path, size):
    maps = torch.full((2, 6, 8), 0.002)
    maps[0, 1, 1] = maps[1, 4, 6] = 0.9
    middle = size[0] / 2 - 2, size[1] / 2 - 2, size[0] / 2 + 2, size[1] / 2 + 2
    detections = [found("", middle, None), found("", middle, None)]
    draw_query_attention(grey(*size), detections, maps, tmp_path / "queries.png")
    shown = drawn(tmp_path / "queries.png")
    height, width, _ = shown.shape
    assert SMALLEST_SIDE <= width <= 1200
    for number, (row, column) in enumerate([(1, 1), (4, 6)]):
        at = shown[int((row + 0.5) / 6 * height), int((column + 0.5) / 8 * width)]
        tinted = at / at.max() - np.array(palette_colour(number)) / max(palette_colour(number))
        assert abs(tinted).max() < 0.2
    away = shown[int(0.9 * height), int(0.1 * width)]
    assert np.ptp(away) <= 2  # grey


def test_an_even_map_does_not_glow(tmp_path):
    maps = torch.full((1, 6, 8), 1 / 48)
    draw_query_attention(grey(), [found("", (0, 0, 2, 2), None)], maps, tmp_path / "queries.png", title="even")
    assert np.ptp(drawn(tmp_path / "queries.png")[100:], axis=-1).max() <= 2


@pytest.mark.parametrize("points", [1, 2, 3, 6])
def test_every_point_has_its_panel_beside_the_picture(tmp_path, points):
    places = [(number / points, 0.5) for number in range(points)]
    picture = Image.new("RGB", (60, 45), (200, 255, 255))  # which no heat has
    draw_point_attention(picture, places, torch.rand(points, 3, 4), tmp_path / "points.png")
    shown = (255 * matplotlib.image.imread(tmp_path / "points.png")[..., :3]).round().astype(int)
    for number in range(points):
        assert places_of(palette_colour(number), shown).sum() > 1000
    rows, columns = np.nonzero(places_of((200, 255, 255), shown))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(60 / 45, rel=0.05)
    assert np.ptp(columns) < 0.7 * shown.shape[1]


def test_attention_of_others_is_refused(tmp_path):
    one = [found("dog", (0, 0, 5, 5))]
    with pytest.raises(ValueError, match="2 maps for 1 detections"):
        draw_query_attention(grey(), one, torch.rand(2, 3, 4), tmp_path / "queries.png")
    with pytest.raises(ValueError, match=r"the heat is \(0, 3, 4\); it must be \(queries, rows, columns\)"):
        draw_query_attention(grey(), [], torch.rand(0, 3, 4), tmp_path / "queries.png")
    with pytest.raises(ValueError, match="1 maps for 2 points"):
        draw_point_attention(grey(), [(0, 0), (1, 1)], torch.rand(1, 3, 4), tmp_path / "points.png")
    with pytest.raises(ValueError, match="shares of attention are finite, from 0 up"):
        draw_point_attention(grey(), [(0, 0)], torch.full((1, 3, 4), math.nan), tmp_path / "points.png")
    assert list(tmp_path.iterdir()) == []
