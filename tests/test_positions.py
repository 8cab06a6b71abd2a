"""Sinusoids are the paper's formula at any position; a token's place is its place among its sentence's own tokens."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from hf_attn.positions import sinusoids, token_positions

FAR = [0, 1, 2, 17, 511, 4095, 100_000]


def wave(position: float, dim: int, i: int) -> float:
    """PE(position, i) of Vaswani et al. 2017, section 3.5: even entries are sines, odd ones cosines."""
    angle = position / 10000 ** (2 * (i // 2) / dim)
    return math.sin(angle) if i % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 512])
def test_interleaved_is_the_paper_s_formula(dim):
    expected = torch.tensor([[wave(position, dim, i) for i in range(dim)] for position in FAR])
    assert_close(sinusoids(torch.tensor(FAR), dim), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 512])
def test_halves_are_the_same_waves_with_the_sines_first(dim):
    order = [*range(0, dim, 2), *range(1, dim, 2)]
    expected = sinusoids(torch.tensor(FAR), dim, "interleaved")[:, order]
    assert_close(sinusoids(torch.tensor(FAR), dim, "halves"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [7, 16, 512])
def test_halves_equal_marian_s_table(dim):
    table = MarianSinusoidalPositionalEmbedding(4096, dim).create_weight()
    assert_close(sinusoids(torch.arange(4096), dim, "halves"), table, rtol=0, atol=1e-6)


def test_any_shape_and_real_positions():
    positions = torch.tensor([[0.5, 2.0, 3.25]])
    found = sinusoids(positions, 6)
    assert found.shape == (1, 3, 6)
    assert found.dtype == torch.float32
    assert_close(found[0, 2], torch.tensor([wave(3.25, 6, i) for i in range(6)]))
    assert sinusoids(torch.arange(0), 6).shape == (0, 6)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="position layout 'sines' is unknown; use 'interleaved'"):
        sinusoids(torch.arange(3), 4, "sines")


@pytest.mark.parametrize(
    ("mask", "length", "expected"),
    [
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
        ([1, 1, 0, 0], 4, [0, 1, 1, 1]),  # padding on the right: no token's place changes
        ([0, 0, 1, 1], 4, [0, 0, 0, 1]),  # padding on the left: the first token still stands at 0
        ([0, 1, 0, 1], 4, [0, 0, 0, 1]),
        ([0, 0, 0], 3, [0, 0, 0]),
        ([0, 1, 1, 1, 1], 2, [2, 3]),  # two new tokens after two seen ones
        ([1], 1, [0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_a_token_is_counted_among_the_tokens_of_its_sentence(mask, length, expected, dtype):
    positions = token_positions(torch.tensor([mask]).to(dtype), length)
    assert positions.dtype == torch.long
    assert positions.tolist() == [expected]
