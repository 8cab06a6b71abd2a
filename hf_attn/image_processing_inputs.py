"""What may come as a picture, and what it becomes before it is resized.

file, PIL picture, array or tensor → upright → grey levels → one channel or three

Pictures of 8 bits stay 8 bits, 0 to 255. Everything finer (16-bit pictures, floats) becomes float32 in [0, 1].
"""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import ChannelDimension, load_image

# A PIL picture of mode RGB or L stays one. All others: (channels, height, width), uint8 or float32 in [0, 1].
Picture: TypeAlias = Image.Image | torch.Tensor

FINER_THAN_BYTES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # PIL modes that convert() would clip at 255
CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGB and transparency
EXIF_ORIENTATION = 0x0112
LARGEST_16_BIT = 65535
LUMA = (19595, 38470, 7471)  # ITU-R 601 in units of 1/65536, the whole numbers that PIL's convert("L") uses


def list_pictures(images: Any) -> list[Any]:
    """The single pictures in one picture, a batch (4 dimensions), or lists of either, in order.

    Raises:
        ValueError: if there is none.
    """
    pictures = list(_flat(images))
    if not pictures:
        raise ValueError("no pictures came; give a picture, a batch of them, or a list")
    return pictures


def _flat(images: Any) -> Any:
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        for image in images:
            yield from _flat(image)
    else:
        yield images


def read_picture(
    picture: Any,
    num_channels: int = 3,
    background: Sequence[int] | None = None,
    input_data_format: str | None = None,
) -> Picture:
    """One picture, upright, in `num_channels` channels.

    Args:
        picture: a path, an address, a PIL picture of any mode, or an array or tensor (height, width),
            (height, width, channels) or (channels, height, width) of grey levels, of 16-bit levels (uint16) or of
            floats. Floats up to 1 are taken as [0, 1], others as [0, 255]. 16 bits are scaled by 1/65535.
        num_channels: 3 for RGB, 1 for grey (ITU-R 601 luma, as in PIL).
        background: three grey levels to lay under a transparent picture. Without them transparency is dropped, as PIL,
            torchvision's and timm's readers and transformers' pipelines do.
        input_data_format: "channels_first" or "channels_last", where the shape leaves it open.

    Raises:
        ValueError: for a picture of no pixels, an unusual number of channels, or values outside those ranges.
        TypeError: for what is no picture.
    """
    if isinstance(picture, (str, os.PathLike)):
        picture = open_picture(picture)
    if isinstance(picture, Image.Image):
        picture = upright(picture)
        _check_size(picture.height, picture.width)
        if picture.mode not in FINER_THAN_BYTES:
            return _convert(picture, "L" if num_channels == 1 else "RGB", background)
        picture = _finer_levels(picture)
    if not isinstance(picture, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"{type(picture).__name__} is no picture; give a path, a PIL picture, a numpy array or a torch tensor"
        )
    pixels = picture if isinstance(picture, torch.Tensor) else _tensor(picture)
    pixels = _channels_first(pixels, input_data_format)
    return _in_channels(_grey_levels(pixels), num_channels, background)


def open_picture(place: str | os.PathLike) -> Image.Image:
    """The picture in a file, in its own mode; or at an address or in base64, which transformers reads as RGB."""
    if isinstance(place, str) and not os.path.isfile(place):
        return load_image(place)
    with Image.open(place) as picture:
        picture.load()
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture as a camera's EXIF orientation says that it should be seen."""
    if picture.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return picture  # exif_transpose would copy it
    return ImageOps.exif_transpose(picture)


def _check_size(height: int, width: int) -> None:
    if height == 0 or width == 0:
        raise ValueError(f"picture of {height}x{width} (height x width) has no pixels")


def _convert(picture: Image.Image, mode: str, background: Sequence[int] | None) -> Image.Image:
    if picture.has_transparency_data:
        if picture.mode == "La":  # premultiplied, which PIL takes back only by this way
            picture = picture.convert("LA")
        picture = picture.convert("RGBA")  # a palette of transparent colours, too
        if background is not None:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)
    if picture.mode not in ("1", "L", "RGB"):
        picture = picture.convert("RGB")  # first, so that grey is the same from every way of storing colours
    return picture if picture.mode == mode else picture.convert(mode)


def _finer_levels(picture: Image.Image) -> np.ndarray:
    """(height, width): uint16 for a picture of 16 bits, floats for one of floats."""
    levels = np.array(picture)
    if picture.mode == "F":
        return levels
    if levels.min() < 0 or levels.max() > LARGEST_16_BIT:
        raise ValueError(
            f"picture of mode {picture.mode} with values from {levels.min()} to {levels.max()}: they must be 16-bit "
            f"levels, 0 to {LARGEST_16_BIT}; scale the picture first"
        )
    return levels.astype(np.uint16)


def _tensor(array: np.ndarray) -> torch.Tensor:
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _channels_first(pixels: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
    """(channels, height, width)."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim != 3:
        raise ValueError(f"picture of shape {shape}: it must have 2 or 3 dimensions, and a batch 4")
    elif _channels_are_last(shape, input_data_format):
        pixels = pixels.permute(2, 0, 1)
    _check_size(*pixels.shape[1:])
    return pixels


def _channels_are_last(shape: Sequence[int], input_data_format: str | None) -> bool:
    first, last = shape[0] in CHANNEL_COUNTS, shape[-1] in CHANNEL_COUNTS
    if input_data_format is not None:
        last = ChannelDimension(input_data_format) is ChannelDimension.LAST
        first = not last
    elif first and last:
        raise ValueError(
            f"picture of shape {tuple(shape)}: channels may come first or last; say "
            "input_data_format='channels_first' or 'channels_last'"
        )
    if not (first or last) or shape[-1 if last else 0] not in CHANNEL_COUNTS:
        raise ValueError(
            f"picture of shape {tuple(shape)}: it must have 1, 3 or 4 channels (grey, RGB, RGB and transparency), "
            "first or last"
        )
    return last


def _grey_levels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8, or float32 in [0, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return pixels.float() / LARGEST_16_BIT
    if pixels.is_complex():
        raise ValueError(f"picture of {pixels.dtype}: grey levels are real numbers")
    pixels = pixels.float() if pixels.is_floating_point() else pixels.long()
    lowest, highest = torch.stack(pixels.aminmax()).tolist()
    if not (lowest >= 0 and highest <= 255):  # not-a-number fails, too
        raise ValueError(
            f"picture with values from {lowest:g} to {highest:g}: they must be grey levels, 0 to 255, or floats in "
            "[0, 1]; was it normalised already?"
        )
    if not pixels.is_floating_point():
        return pixels.to(torch.uint8)
    return pixels if highest <= 1 else pixels / 255


def _in_channels(pixels: torch.Tensor, num_channels: int, background: Sequence[int] | None) -> torch.Tensor:
    """(num_channels, height, width)."""
    if len(pixels) == 4:
        pixels = pixels[:3] if background is None else _composite(pixels, background)
    if len(pixels) == 3 and num_channels == 1:
        return _luma(pixels)
    return pixels.expand(num_channels, -1, -1)


def _composite(pixels: torch.Tensor, background: Sequence[int]) -> torch.Tensor:
    """(3, height, width): the colours over the background, as opaque as the fourth channel says."""
    largest = 1 if pixels.is_floating_point() else 255
    opacity = pixels[3:].float() / largest
    behind = torch.tensor(background, device=pixels.device).view(3, 1, 1) / 255 * largest
    mixed = pixels[:3] * opacity + behind * (1 - opacity)
    return mixed if pixels.is_floating_point() else (mixed + 0.5).floor().to(torch.uint8)


def _luma(pixels: torch.Tensor) -> torch.Tensor:
    """(1, height, width)."""
    red, green, blue = LUMA
    if pixels.is_floating_point():
        return (pixels[:1] * red + pixels[1:2] * green + pixels[2:] * blue) / 65536
    wide = pixels.int()
    return ((wide[:1] * red + wide[1:2] * green + wide[2:] * blue + 32768) >> 16).to(torch.uint8)
