"""Where a token stands: sinusoids on a line, for any length and any layout a released checkpoint uses."""

import torch


def sinusoids(positions: torch.Tensor, dim: int, layout: str = "interleaved") -> torch.Tensor:
    """Sine and cosine waves of geometrically growing wavelength (Vaswani et al. 2017, section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i/dim)) and PE(pos, 2i+1) = cos(the same angle).

    Args:
        positions: (...) whole or real numbers, counted from 0.
        dim: length of each position's vector.
        layout: "interleaved" sine, cosine, sine, ... as the paper writes them; "halves" all sines, then all cosines,
            as tensor2tensor and Marian compute them.

    Returns:
        (..., dim) float32.

    Raises:
        ValueError: for another layout.
    """
    # In float32 the angle at position 4,000 is off by 1e-4; float64 costs little and Apple's GPUs alone lack it.
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=precise) / dim
    angles = positions.to(precise).unsqueeze(-1) * 10000.0**-exponents  # (..., dim/2)
    if layout == "interleaved":
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return waves[..., :dim].float()
    if layout == "halves":
        return torch.cat([angles.sin(), angles.cos()[..., : dim // 2]], dim=-1).float()
    raise ValueError(f"position layout {layout!r} is unknown; use 'interleaved' (the paper) or 'halves' (Marian)")


def token_positions(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """The place of each of the last `length` tokens among its sentence's own tokens, wherever the padding stands.

    Args:
        attention_mask: (batch, seen + length), 1 for a token, 0 for padding.

    Returns:
        (batch, length) whole numbers from 0; padding before the first token counts as 0.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
