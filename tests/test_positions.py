"""Sinusoids are the papers' formulas at any position; a token's place is its place among its sentence's own tokens;
learned grids and patch kernels are resampled as timm resamples them."""

import math

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch.testing import assert_close
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from hf_attn.positions import grid_sinusoids, resample_grid, resample_patch_kernel, sinusoids, token_positions

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


@pytest.mark.parametrize("dim", [7, 16, 512])
def test_fairseq_s_equal_m2m100_s_table(dim):
    table = M2M100SinusoidalPositionalEmbedding.get_embedding(64, dim)
    assert_close(sinusoids(torch.arange(64), dim, "fairseq"), table, rtol=0, atol=1e-5)


def test_fairseq_s_longest_wave_needs_a_shortest():
    with pytest.raises(ValueError, match="at least 4 dimensions, not 3"):
        sinusoids(torch.arange(3), 3, "fairseq")


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


# --- on a grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns", "dim"), [(14, 14, 768), (3, 5, 16), (1, 1, 8)])
def test_grid_sinusoids_are_those_of_big_vision(rows, columns, dim):
    y, x = np.mgrid[:rows, :columns]
    frequencies = 1.0 / 10_000 ** (np.arange(dim // 4) / (dim // 4 - 1))
    y, x = np.einsum("m,d->md", y.flatten(), frequencies), np.einsum("m,d->md", x.flatten(), frequencies)
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).reshape(rows, columns, dim)
    assert_close(grid_sinusoids(rows, columns, dim), torch.from_numpy(expected).float())


@pytest.mark.parametrize("dim", [4, 10])
def test_grid_sinusoids_refuse_dimensions_that_they_cannot_quarter(dim):
    with pytest.raises(ValueError, match=f"not {dim}"):
        grid_sinusoids(2, 2, dim)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((4, 6), (7, 3)), ((7, 7), (7, 9)), ((8, 8), (4, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grids_are_resampled_as_timm_does(old, new, dtype):
    grid = torch.randn(*old, 12).to(dtype)
    expected = resample_abs_pos_embed(grid.flatten(0, 1)[None], list(new), list(old), num_prefix_tokens=0)
    resampled = resample_grid(grid, *new)
    assert resampled.dtype == dtype
    assert_close(resampled.flatten(0, 1), expected[0])


def test_a_grid_resampled_to_its_own_size_is_itself():
    grid = torch.randn(5, 6, 8)
    assert_close(resample_grid(grid, 5, 6), grid)


@pytest.mark.parametrize(("old", "new"), [((16, 16), (32, 32)), ((8, 8), (6, 6)), ((4, 8), (8, 4))])
def test_patch_kernels_are_resampled_as_timm_does(old, new):
    kernel = torch.randn(5, 3, *old)
    expected = resample_patch_embed(kernel, list(new))
    assert_close(resample_patch_kernel(kernel, *new), expected, atol=1e-5, rtol=1e-4)


def test_a_resampled_kernel_sees_in_an_enlarged_patch_what_the_old_one_saw_in_the_patch():
    kernel, patch = torch.randn(5, 3, 8, 8), torch.randn(1, 3, 8, 8)
    enlarged = torch.nn.functional.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    seen = torch.einsum("ochw,bchw->bo", resample_patch_kernel(kernel, 16, 16), enlarged)
    assert_close(seen, torch.einsum("ochw,bchw->bo", kernel, patch), atol=1e-4, rtol=1e-4)
