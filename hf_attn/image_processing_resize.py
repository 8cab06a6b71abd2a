"""How large a picture becomes, how it gets there, and what is cut off or added. Sizes are (height, width).

PIL resizes one picture at a time; torch a batch of equal ones, on any device, by the same weights in the same order.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .image_processing_inputs import Picture

RESIZE_MODES = ("exact", "shortest_edge", "longest_edge")
CROP_OFFSETS = ("round", "floor")
PIL_PRECISION = 22  # bits of its weights: 32, less 8 of a byte and 2 against overflow


def size_before_crop(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """The size of which the crop keeps `crop_pct` (0.9 = 90 %) of each edge, rounded down as in timm."""
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def resized_size(size: tuple[int, int], target: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """What a picture of `size` is resized to, before the crop.

    Args:
        resize_mode: "exact": to `target`; "shortest_edge": until it covers `target`, in proportion; "longest_edge":
            until it fits in. Rounded as torchvision's Resize (a square that is covered) and timm's ResizeKeepRatio
            (all others) do.

    Raises:
        ValueError: if that is more pixels than PIL opens without a warning (`Image.MAX_IMAGE_PIXELS`).
    """
    ratios = size[0] / target[0], size[1] / target[1]
    if resize_mode == "exact":
        return target
    if resize_mode == "longest_edge":
        return max(round(size[0] / max(ratios)), 1), max(round(size[1] / max(ratios)), 1)
    if target[0] == target[1]:
        longest = int(target[0] * max(size) / min(size))
        resized = (longest, target[0]) if size[0] > size[1] else (target[0], longest)
    else:
        resized = round(size[0] / min(ratios)), round(size[1] / min(ratios))
    _check_pixels(size, resized, "resize_mode='shortest_edge', use 'longest_edge'")
    return resized


def size_between_edges(size: tuple[int, int], shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """What a picture of `size` is resized to so that its shorter edge is `shortest_edge`; or, where its longer edge
    would be more than `longest_edge`, so that that one is.

    Rounded as by transformers (`get_size_with_aspect_ratio`), but never to 0. The authors (datasets/transforms.py) get
    the longer edge from the shorter one when that is rounded already, and may so exceed `longest_edge`.

    Raises:
        ValueError: if that is more pixels than PIL opens without a warning (`Image.MAX_IMAGE_PIXELS`).
    """
    shorter, longer = min(size), max(size)
    exact: float = shortest_edge
    if longest_edge is not None and longer / shorter * shortest_edge > longest_edge:
        exact = longest_edge * shorter / longer
    rounded = round(exact)
    if shorter == rounded:
        return size
    edges = max(rounded, 1), max(int(exact * longer / shorter), 1)
    resized = edges if size[0] < size[1] else edges[::-1]
    _check_pixels(size, resized, "a shortest_edge alone, give a longest_edge with it")
    return resized


def size_within_frame(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The largest size in proportion to `size` that fits in, rounded down as transformers does, but never to 0."""
    scale = min(height / size[0], width / size[1])
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def _check_pixels(size: tuple[int, int], resized: tuple[int, int], too_thin_for: str) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and resized[0] * resized[1] > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"picture of {size[0]}x{size[1]} (height x width) would become {resized[0]}x{resized[1]}, more than "
            f"{Image.MAX_IMAGE_PIXELS} pixels; it is too thin for {too_thin_for}"
        )


def resize_with_pil(picture: Picture, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """(channels, *size), uint8 or float32 in [0, 1], of a PIL picture or of a tensor like that on the CPU."""
    height, width = size
    if size_of(picture) == size:
        return to_tensor(picture)
    if isinstance(picture, Image.Image):
        return to_tensor(picture.resize((width, height), resample))
    if picture.device.type != "cpu":
        raise ValueError(
            f"picture on {picture.device}: PIL works on the CPU; load the processor with backend='torch', or give "
            "picture.cpu()"
        )
    channels = [Image.fromarray(channel.numpy()).resize((width, height), resample) for channel in picture]
    resized = torch.from_numpy(np.stack([np.array(channel) for channel in channels]))
    return resized.clamp_(0, 1) if resized.is_floating_point() else resized


def size_of(picture: Picture) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(picture, torch.Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width


def to_tensor(picture: Picture) -> torch.Tensor:
    """(channels, height, width)."""
    if isinstance(picture, torch.Tensor):
        return picture
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def resize_with_torch(pictures: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """(batch, channels, *size) of (batch, channels, height, width), uint8 or float32 in [0, 1].

    Bytes come out exactly as from PIL, except bilinear ones on the CPU: there torch's own kernel, many times as fast,
    may be one grey level off. For bicubic and Lanczos filters it would be off by dozens where they overshoot.
    """
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    if resample == Image.Resampling.NEAREST:
        rows, columns = nearest(pictures.shape[-2], size[0]), nearest(pictures.shape[-1], size[1])
        return pictures[..., rows[:, None].to(pictures.device), columns.to(pictures.device)]
    if resample == Image.Resampling.BILINEAR and pictures.dtype == torch.uint8 and pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode="bilinear", antialias=True)
    if pictures.device.type == "cpu":  # four times as fast one by one: a single picture fits into the CPU's cache
        return torch.stack([resize_like_pil(picture, size, resample) for picture in pictures])
    return resize_like_pil(pictures, size, resample)


def resize_like_pil(pictures: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """(..., *size) of (..., height, width), one edge after the other; bytes are rounded and clipped after each."""
    shrinks = pictures.shape[-2] - size[0], pictures.shape[-1] - size[1]
    rows_first = shrinks[0] > 0 and shrinks[0] > 2 * shrinks[1]  # Pillow 13, ImagingResampleInner
    for edge in (-2, -1) if rows_first else (-1, -2):
        if pictures.shape[edge] != size[edge]:
            pictures = resize_edge(pictures, edge, size[edge], resample)
    return pictures.clamp(0, 1) if pictures.is_floating_point() else pictures


def resize_edge(pictures: torch.Tensor, edge: int, length: int, resample: Image.Resampling) -> torch.Tensor:
    """The pictures with `length` pixels along dimension `edge`, each a weighted mean of the old ones near it.

    Bytes are weighted by multiples of 2^-22, as in PIL; such sums are exact in float64, in whatever order.
    """
    whole = pictures.dtype == torch.uint8
    precise = torch.float32 if pictures.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    weights = _sparse_weights(pictures.shape[edge], length, resample, whole).to(pictures.device, precise)
    lines = pictures.movedim(edge, 0)  # (old length, ..., other edge)
    resized = torch.sparse.mm(weights, lines.reshape(len(lines), -1).to(precise))
    resized = resized.view(length, *lines.shape[1:]).movedim(0, edge)
    return resized.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8) if whole else resized.float()


@lru_cache(maxsize=64)
def _sparse_weights(old: int, new: int, resample: Image.Resampling, whole: bool) -> torch.Tensor:
    """`resize_weights`, as multiples of 2^-22 for `whole` grey levels, without the zeros."""
    weights = resize_weights(old, new, resample)
    return ((weights * 2**PIL_PRECISION).round() / 2**PIL_PRECISION if whole else weights).to_sparse()


def resize_weights(old: int, new: int, resample: Image.Resampling) -> torch.Tensor:
    """(new, old) float64: how much each old pixel counts for each new one; rows sum to 1."""
    scale = old / new
    stretch = max(scale, 1.0)  # shrinking, a filter must see all pixels that become one
    reach = FILTERS[resample][0] * stretch
    centres = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * scale
    places = torch.arange(old)
    seen = (places >= (centres - reach + 0.5).long()) & (places < (centres + reach + 0.5).long())
    weights = FILTERS[resample][1]((places - centres + 0.5).abs() / stretch).where(seen, 0.0)
    return weights / weights.sum(-1, keepdim=True)


def _bilinear(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance).clamp(min=0)


def _bicubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys 1981 with a = -1/2, for distances up to 2."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, far.where(distance < 2, 0.0))


def _lanczos(distance: torch.Tensor) -> torch.Tensor:
    return (torch.sinc(distance) * torch.sinc(distance / 3)).where(distance < 3, 0.0)


FILTERS = {  # how far each reaches, in pixels, and its weight at a distance
    Image.Resampling.BILINEAR: (1, _bilinear),
    Image.Resampling.BICUBIC: (2, _bicubic),
    Image.Resampling.LANCZOS: (3, _lanczos),
}
RESAMPLING = (Image.Resampling.NEAREST, *FILTERS)


def nearest(old: int, new: int) -> torch.Tensor:
    """(new,) the index of the pixel that PIL takes for each: its centre, summed up step by step as PIL does."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return torch.from_numpy(np.cumsum(steps).astype(np.int64))


def center_crop(
    pictures: torch.Tensor, size: tuple[int, int], fill: torch.Tensor, crop_offset: str = "round"
) -> torch.Tensor:
    """(..., channels, *size): the middle of (..., channels, height, width), `fill` (channels,) around what is smaller.

    Args:
        crop_offset: which way half a pixel goes: "round" to the even neighbour (torchvision, timm), "floor" up and
            left (transformers).
    """
    height, width = pictures.shape[-2:]
    if height < size[0] or width < size[1]:
        padded = pictures.new_empty(*pictures.shape[:-2], max(height, size[0]), max(width, size[1]))
        padded[:] = fill.to(pictures).view(-1, 1, 1)
        top, left = max(size[0] - height, 0) // 2, max(size[1] - width, 0) // 2
        padded[..., top : top + height, left : left + width] = pictures
        pictures = padded
        height, width = pictures.shape[-2:]
    top, left = _half(height - size[0], crop_offset), _half(width - size[1], crop_offset)
    return pictures[..., top : top + size[0], left : left + size[1]]


def _half(pixels: int, crop_offset: str) -> int:
    return round(pixels / 2) if crop_offset == "round" else pixels // 2


def pad_pictures(
    pictures: Sequence[torch.Tensor], size: tuple[int, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of different sizes as one batch, with zeros on the right and below.

    Args:
        pictures: (channels, height, width) each.
        size: (height, width) of the batch; by default the largest height and the largest width.

    Returns:
        (batch, channels, height, width), and (batch, height, width) int64, 1 where the picture is.

    Raises:
        ValueError: if a picture is larger than `size`, or pictures differ in channels.
    """
    shapes = [tuple(picture.shape) for picture in pictures]
    if not shapes or any(len(shape) != 3 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(
            f"pictures of shapes {shapes} do not fit into one batch; give one or more of (channels, height, width), "
            "with as many channels each"
        )
    height, width = (max(shape[edge] for shape in shapes) for edge in (1, 2))
    if size is not None:
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"pictures of up to {height}x{width} (height x width) cannot be padded to {size[0]}x{size[1]}; raise "
                "pad_size, or lower the longest_edge of size"
            )
        height, width = size
    padded = pictures[0].new_zeros(len(pictures), shapes[0][0], height, width)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.long, device=padded.device)
    for row, picture in enumerate(pictures):
        padded[row, :, : picture.shape[1], : picture.shape[2]] = picture
        mask[row, : picture.shape[1], : picture.shape[2]] = 1
    return padded, mask
