import matplotlib.image
import pytest
import torch

from hf_attn.visualization import draw_alignment


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
