import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from hf_attn.visualization import (
    draw_alignment,
    draw_attention,
    draw_attention_heads,
    draw_classified,
    draw_position_similarity,
)


def test_the_picture_is_a_png_that_shows_the_weights(tmp_path):
    path = tmp_path / "alignment.png"
    draw_alignment(["Der", "Hund", "schläft."], ["The", "dog"], torch.eye(2, 3), path, title="Größe")
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 300
    dark = (picture[..., :3] < torch.tensor([0.1, 0.3, 0.6]).numpy()).all(-1).mean()
    assert dark > 0.05  # the two cells that hold a one, and the labels
    assert [file.name for file in tmp_path.iterdir()] == ["alignment.png"]


def test_a_longer_sentence_makes_a_larger_picture(tmp_path):
    sizes = []
    for words in (4, 40):
        draw_alignment(["word"] * words, ["Wort"] * words, torch.rand(words, words), tmp_path / "alignment.png")
        sizes.append(matplotlib.image.imread(tmp_path / "alignment.png").shape)
    assert sizes[1][0] > 3 * sizes[0][0] and sizes[1][1] > 3 * sizes[0][1]


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (0, 0)])
def test_weights_of_another_shape_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="2 target and 3 source words"):
        draw_alignment(["a", "b", "c"], ["x", "y"], torch.zeros(shape), tmp_path / "alignment.png")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_the_picture_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        draw_alignment(["a"], ["x"], torch.ones(1, 1), tmp_path / "missing" / "alignment.png")
    assert list(tmp_path.iterdir()) == []


# --- over a picture --------------------------------------------------------------------------------------------------


def photograph(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A colour gradient: red from left to right, green from top to bottom."""
    red = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, 0)
    green = np.linspace(0, 255, height).astype(np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], axis=-1)).convert(mode)


def drawn(path) -> np.ndarray:
    """(height, width, 3) from 0 to 1"""
    return matplotlib.image.imread(path)[..., :3]


def heated_half(path) -> np.ndarray:
    """The right of the two pictures, without the colour bar, as red minus blue, which grows with the heat."""
    picture = drawn(path)
    _, width, _ = picture.shape
    half = picture[:, int(0.46 * width) : int(0.86 * width)]
    return half[..., 0] - half[..., 2]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 5), (3, 2)])
def test_the_patch_that_was_looked_at_glows_at_its_place(tmp_path, row, column):
    heat = torch.full((4, 6), 0.001)
    heat[row, column] = 0.5
    draw_attention(photograph(), heat, tmp_path / "heat.png", title="")
    glow = heated_half(tmp_path / "heat.png") > 0.3
    rows, columns = np.nonzero(glow)
    assert 0 < glow.mean() < 0.2
    found = rows.mean() / glow.shape[0], columns.mean() / glow.shape[1]
    assert found == pytest.approx(((row + 0.5) / 4, (column + 0.5) / 6), abs=0.12)
    assert [file.name for file in tmp_path.iterdir()] == ["heat.png"]


def test_the_picture_itself_stands_beside_in_its_colours(tmp_path):
    draw_attention(photograph(), torch.rand(4, 6) / 24, tmp_path / "heat.png", title="")
    picture = drawn(tmp_path / "heat.png")
    height, width, _ = picture.shape
    plain = picture[height // 4 : height // 2, int(0.05 * width) : int(0.4 * width)]
    assert plain[:, -1, 0].mean() - plain[:, 0, 0].mean() > 0.5  # red grows to the right
    assert plain[-1, :, 1].mean() - plain[0, :, 1].mean() > 0.15  # green grows downwards


@pytest.mark.parametrize(
    ("mode", "size"),
    [("L", (28, 28)), ("RGBA", (60, 40)), ("P", (40, 60)), ("CMYK", (60, 40)), ("1", (300, 20)), ("RGB", (1, 300))],
)
def test_pictures_of_any_mode_and_size_are_drawn(tmp_path, mode, size):
    draw_attention(photograph(*size, mode=mode), torch.rand(3, 3), tmp_path / "heat.png")
    assert drawn(tmp_path / "heat.png").std() > 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_heat_may_come_from_any_model(tmp_path, dtype):
    draw_attention(photograph(), torch.rand(2, 2, requires_grad=True).to(dtype), tmp_path / "heat.png")
    assert (tmp_path / "heat.png").is_file()


def test_no_attention_at_all_is_drawn_as_such(tmp_path):
    draw_attention(photograph(), torch.zeros(4, 6), tmp_path / "heat.png")
    assert (heated_half(tmp_path / "heat.png") < 0.1).all()


def test_one_patch_does_not_drown_the_others(tmp_path):
    """On a scale up to its share, what got an eighth of it would be as dark as what got nothing."""
    heat = torch.full((10, 12), 0.001)
    heat[:, :4] = 0.06
    heat[5, 10] = 0.5
    draw_attention(photograph(), heat, tmp_path / "heat.png")
    warm = heated_half(tmp_path / "heat.png")
    warm = warm[int(0.3 * len(warm)) : int(0.8 * len(warm))]
    left, middle = warm[:, : warm.shape[1] // 4], warm[:, int(0.45 * warm.shape[1]) : int(0.7 * warm.shape[1])]
    assert left.mean() > middle.mean() + 0.15


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (torch.rand(2, 3, 4), r"the heat is \(2, 3, 4\); it must be \(rows, columns\)"),
        (torch.rand(0, 3), r"the heat is \(0, 3\)"),
        (torch.tensor([[0.5, -0.1]]), r"the heat goes from -0\.1 to 0\.5; shares of attention are finite"),
        (torch.tensor([[0.5, float("nan")]]), r"the heat goes from nan"),
    ],
)
def test_what_is_no_heat_map_is_refused(tmp_path, heat, message):
    with pytest.raises(ValueError, match=message):
        draw_attention(photograph(), heat, tmp_path / "heat.png")
    with pytest.raises(ValueError, match=r"it must be \(layers, heads, rows, columns\)"):
        draw_attention_heads(photograph(), torch.rand(2, 3), tmp_path / "heat.png")
    with pytest.raises(ValueError, match=r"maps are \(2, 3, 4, 4\) for 1 layers and 3 heads"):
        draw_attention_heads(photograph(), torch.rand(2, 3, 4, 4), tmp_path / "heat.png", layers=[11])
    assert list(tmp_path.iterdir()) == []


def test_every_head_of_every_layer_has_its_panel(tmp_path):
    sizes = {}
    for layers, heads in ((1, 2), (3, 2), (1, 4)):
        draw_attention_heads(photograph(), torch.rand(layers, heads, 4, 6), tmp_path / "heads.png")
        sizes[layers, heads] = drawn(tmp_path / "heads.png").shape
    assert sizes[3, 2][0] > 1.8 * sizes[1, 2][0] and sizes[1, 4][1] > 1.7 * sizes[1, 2][1]


def test_heads_have_a_scale_of_their_own(tmp_path):
    """A head that spreads its attention is as visible as one that does not."""
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, :, :2] = 0.001
    maps[0, 1, :, :2] = 0.9
    draw_attention_heads(photograph(40, 40), maps, tmp_path / "heads.png", title="")
    picture = drawn(tmp_path / "heads.png")
    glow = picture[..., 0] - picture[..., 2] > 0.2
    left, right = np.split(glow[:, : glow.shape[1] // 2 * 2], 2, axis=1)
    assert left.mean() == pytest.approx(right.mean(), rel=0.3) and left.mean() > 0.1


# --- positions -------------------------------------------------------------------------------------------------------


def test_a_position_is_most_like_itself(tmp_path):
    """Positions that know their row only: each map is a bright line at the height of its place."""
    positions = torch.eye(5)[:, None].expand(5, 7, 5) * 3
    draw_position_similarity(positions, tmp_path / "positions.png", title="")
    picture = drawn(tmp_path / "positions.png")
    yellow = (picture[..., 0] > 0.9) & (picture[..., 2] < 0.3)
    yellow = yellow[:, : int(0.84 * yellow.shape[1])]  # without the colour bar
    starts = np.flatnonzero(np.diff((yellow.mean(axis=1) > 0.3).astype(int)) == 1)
    assert len(starts) == 5
    assert np.diff(starts) == pytest.approx(np.diff(starts).mean(), abs=2)  # each a map and a row lower


def test_large_grids_are_thinned_out_and_rectangular_ones_keep_their_shape(tmp_path):
    shapes = []
    for rows, columns in ((4, 8), (40, 80)):
        draw_position_similarity(torch.randn(rows, columns, 6), tmp_path / "positions.png")
        shapes.append(drawn(tmp_path / "positions.png").shape)
    assert all(width > 1.5 * height for height, width, _ in shapes)
    assert shapes[1][1] == pytest.approx(shapes[0][1], rel=0.15)


def test_positions_that_are_no_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"positions are \(16, 8\); they must be \(rows, columns, hidden_size\)"):
        draw_position_similarity(torch.randn(16, 8), tmp_path / "positions.png")


def test_classified_pictures_of_any_size_are_drawn_side_by_side(tmp_path):
    pictures = [Image.new("L", (28, 28), 90), Image.new("RGB", (60, 40), "red")]
    draw_classified(pictures, ["coat:\ncoat 93%", "bag"], torch.rand(2, 7, 7), tmp_path / "sheet.png")
    assert matplotlib.image.imread(tmp_path / "sheet.png").shape[1] > 300
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with pytest.raises(ValueError, match="2 pictures, 1 captions and 2 heat maps"):
        draw_classified(pictures, ["coat"], torch.rand(2, 7, 7), tmp_path / "sheet.png")
