"""Where a detector looks: the maps are those of the model's own attention, under any kernel, at the right places."""

import pytest
import torch

from hf_attn.detr_attention import encoder_attention, query_attention
from tests.tiny import tiny_detr, tiny_vit


def pixels(height: int = 64, width: int = 96, number: int = 1) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_queries_look_where_the_cross_attention_of_the_layer_says(kernel, conditional):
    model = tiny_detr(conditional_attention=conditional)
    model.set_attn_implementation(kernel)
    rows, columns = model.model.feature_grid(64, 96)
    maps = query_attention(model, pixels(), [3, 0])
    assert maps.shape == (2, rows, columns)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))

    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(pixels(), output_attentions=True).cross_attentions
    expected = weights[-1][0].mean(0).unflatten(-1, (rows, columns))
    torch.testing.assert_close(maps, expected[[3, 0]], atol=1e-5, rtol=0)
    first = query_attention(model, pixels(), [1], layer=0)
    torch.testing.assert_close(first[0], weights[0][0, :, 1].mean(0).unflatten(-1, (rows, columns)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_points_read_what_the_self_attention_of_their_token_says(kernel):
    model = tiny_detr()
    model.set_attn_implementation(kernel)
    rows, columns = model.model.feature_grid(64, 96)
    cells = [(0, 0), (rows - 1, columns - 1), (0, columns - 1)]
    points = [((column + 0.5) / columns, (row + 0.5) / rows) for row, column in cells] + [(1.0, 1.0)]
    maps = encoder_attention(model, pixels(), points)
    assert maps.shape == (4, rows, columns)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(4))
    torch.testing.assert_close(maps[3], maps[1])  # the last corner belongs to the last cell

    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(pixels(), output_attentions=True).encoder_attentions[-1][0].mean(0)
    for (row, column), shown in zip(cells, maps, strict=False):
        expected = weights[row * columns + column].unflatten(-1, (rows, columns))
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


def test_the_body_without_a_head_answers_the_same():
    model = tiny_detr()
    torch.testing.assert_close(query_attention(model.model, pixels(), [2]), query_attention(model, pixels(), [2]))


def test_questions_that_make_no_sense_are_refused():
    model = tiny_detr()
    with pytest.raises(ValueError, match=r"query 99 is out of range"):
        query_attention(model, pixels(), [99])
    with pytest.raises(ValueError, match="layer 7 is out of range"):
        encoder_attention(model, pixels(), [(0.5, 0.5)], layer=7)
    with pytest.raises(ValueError, match=r"point \(1.2, 0.5\) is not in the picture; give x and y as fractions"):
        encoder_attention(model, pixels(), [(1.2, 0.5)])
    with pytest.raises(ValueError, match=r"pixel_values are \(2, 3, 64, 96\); give one picture"):
        query_attention(model, pixels(number=2), [0])
    with pytest.raises(ValueError, match="in training mode"):
        query_attention(model.train(), pixels(), [0])

    with pytest.raises(ValueError, match="AttnViTForImageClassification is no DETR of this package"):
        query_attention(tiny_vit(), pixels(), [0])
