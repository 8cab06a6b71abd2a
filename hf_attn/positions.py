"""Where a token stands: on a line or in a grid, by sinusoids for any length or size, or learned and resampled."""

import math

import torch
from torch import nn

LAYOUTS = ("interleaved", "halves", "fairseq")  # of sinusoids: the paper's, Marian's, fairseq's


def sinusoids(
    positions: torch.Tensor, dim: int, layout: str = "interleaved", temperature: float = 10000.0
) -> torch.Tensor:
    """Sine and cosine waves of geometrically growing wavelength (Vaswani et al. 2017, section 3.5).

    PE(pos, 2i) = sin(pos / temperature^(2i/dim)) and PE(pos, 2i+1) = cos(the same angle).

    Args:
        positions: (...) whole or real numbers, counted from 0.
        dim: length of each position's vector.
        layout: "interleaved" sine, cosine, sine, ... as the paper writes them; "halves" all sines, then all cosines,
            as Marian computes them; "fairseq" so, too, but with the longest wave `temperature` times the shortest,
            whereas it ends a step before in the paper's formula: so in tensor2tensor, fairseq, M2M100 and NLLB.
        temperature: ratio of the longest wave to the shortest.

    Returns:
        (..., dim) float32.

    Raises:
        ValueError: for another layout, or fewer than 4 dimensions in fairseq's.
    """
    # In float32 the angle at position 4,000 is off by 1e-4; float64 costs little and Apple's GPUs alone lack it.
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=precise) / dim
    if layout == "fairseq":
        if dim < 4:
            raise ValueError(f"positions in fairseq's layout need at least 4 dimensions, not {dim}")
        exponents = torch.linspace(0, 1, dim // 2, device=positions.device, dtype=precise)
    angles = positions.to(precise).unsqueeze(-1) * temperature**-exponents  # (..., dim/2)
    if layout == "interleaved":
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return waves[..., :dim].float()
    if layout == "halves":
        return torch.cat([angles.sin(), angles.cos()[..., : dim // 2]], dim=-1).float()
    if layout == "fairseq":
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).float()
        return nn.functional.pad(waves, (0, dim % 2))
    raise ValueError(f"position layout {layout!r} is unknown; use {', '.join(map(repr, LAYOUTS))}")


def token_positions(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """The place of each of the last `length` tokens among its sentence's own tokens, wherever the padding stands.

    Args:
        attention_mask: (batch, seen + length), 1 for a token, 0 for padding.

    Returns:
        (batch, length) whole numbers from 0; padding before the first token counts as 0.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def grid_sinusoids(rows: int, columns: int, dim: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Sine and cosine waves of the column and of the row of each place in a grid, for any grid (Beyer et al. 2022,
    "Better plain ViT baselines": big_vision's `posemb_sincos_2d`).

    Returns:
        (rows, columns, dim) float32: sines then cosines of the column, sines then cosines of the row, a quarter each.

    Raises:
        ValueError: unless `dim` is a multiple of 4 and at least 8.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"sinusoids on a grid need a multiple of 4 of at least 8 dimensions, not {dim}")
    precise = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
    frequencies = 10000.0 ** -torch.linspace(0, 1, dim // 4, device=device, dtype=precise)
    waves = []
    for places in (torch.arange(columns, device=device), torch.arange(rows, device=device)):
        angles = places.to(precise).unsqueeze(-1) * frequencies  # (places, dim/4)
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=-1).float())
    of_columns, of_rows = waves
    return torch.cat(
        [
            of_columns.unsqueeze(0).expand(rows, columns, dim // 2),
            of_rows.unsqueeze(1).expand(rows, columns, dim // 2),
        ],
        dim=-1,
    )


def fraction_sinusoids(
    fractions: torch.Tensor, dim: int, temperature: float = 10000.0, scale: float = 2 * math.pi
) -> torch.Tensor:
    """Waves of where something lies in a picture (Carion et al. 2020, section A.4; DAB-DETR, equation 5).

    Args:
        fractions: (..., n) coordinates from 0 to 1.
        dim: length of the vector of each coordinate, even.
        temperature: ratio of the longest wave to the shortest.
        scale: angle of the shortest wave at 1, in radians; 2π is one whole wave over the picture.

    Returns:
        (..., n · dim) float32: the vectors one after the other.
    """
    return sinusoids(scale * fractions, dim, temperature=temperature).flatten(-2)


def cell_fractions(rows: int, columns: int, device: torch.device | str | None = None) -> torch.Tensor:
    """(rows, columns, 2): the lower edge and the right edge of each cell, as fractions of the whole grid.

    Counted so by the authors' `PositionEmbeddingSine`, and 10⁻⁶ in the denominators is theirs.
    """
    row = torch.arange(1, rows + 1, device=device) / (rows + 1e-6)
    column = torch.arange(1, columns + 1, device=device) / (columns + 1e-6)
    return torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1)


def resample_grid(grid: torch.Tensor, rows: int, columns: int, antialias: bool = True) -> torch.Tensor:
    """Learned positions of one grid as those of another: bicubic, computed in float32 at least.

    Args:
        grid: (old rows, old columns, dim).
        antialias: as in timm. Without, torch's bicubic is another curve (a = -0.75 instead of -0.5), also upwards.

    Returns:
        (rows, columns, dim) in the grid's dtype.
    """
    precise = grid.to(torch.promote_types(grid.dtype, torch.float32))
    resampled = nn.functional.interpolate(
        precise.permute(2, 0, 1).unsqueeze(0), size=(rows, columns), mode="bicubic", antialias=antialias
    )
    return resampled.squeeze(0).permute(1, 2, 0).to(grid.dtype)


def resample_patch_kernel(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A patch embedding's kernel for patches of another size (Beyer et al. 2023, "FlexiViT", section 3.4).

    A picture resized along with its patches gets the same embeddings, as nearly as can be: the new kernel is the
    pseudo-inverse of the resizing, transposed, times the old one.

    Args:
        kernel: (out channels, in channels, old height, old width).

    Returns:
        (out channels, in channels, height, width) in the kernel's dtype.
    """
    old_pixels = kernel.shape[-2] * kernel.shape[-1]
    pictures = torch.eye(old_pixels, device=kernel.device).unflatten(-1, kernel.shape[-2:]).unsqueeze(1)
    resized = nn.functional.interpolate(pictures, size=(height, width), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1))  # (new pixels, old pixels), from (old pixels, new pixels)
    precise = kernel.to(torch.promote_types(kernel.dtype, torch.float32)).flatten(-2)
    resampled = precise @ inverse.to(precise.dtype).T
    return resampled.unflatten(-1, (height, width)).to(kernel.dtype)
