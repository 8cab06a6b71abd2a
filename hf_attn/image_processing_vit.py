"""Pictures of any kind and size become the batch that the model reads.

picture → upright, RGB or grey → resize → centre crop → 0..255 to 0..1 → (value - mean) / std → (batch, channels, h, w)

Two backends do the same within one grey level: PIL, the default, bit for bit what torchvision's and timm's evaluation
transforms make of PIL pictures; and torch, which resizes pictures of one shape as one batch, on their own device.
Neither needs torchvision.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature

from .image_processing_base import PictureProcessor, check_equal_sizes, choice, same_shape
from .image_processing_conversion import from_timm_settings, from_transformers_settings
from .image_processing_inputs import Picture
from .image_processing_resize import (
    CROP_OFFSETS,
    RESIZE_MODES,
    center_crop,
    resize_with_pil,
    resize_with_torch,
    resized_size,
    size_before_crop,
    size_of,
    to_tensor,
)

SETTINGS = (
    "background",
    "crop_offset",
    "crop_pct",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "num_channels",
    "resample",
    "resize_mode",
    "size",
)


class AttnViTImageProcessor(PictureProcessor):
    """Prepares pictures with PIL.

    Each argument is also the name of an attribute, of an entry in preprocessor_config.json, and of an argument of the
    call, for that call alone. The defaults are those of google/vit-base-patch16-224, the paper's model.

    Args:
        size: of the pictures that come out: {"height", "width"}, (height, width), or one number for a square. None
            leaves pictures as large as they are, and so does do_resize=False.
        resize_mode: "exact" changes the proportions (transformers' ViT and DeiT; "squash" in timm); "shortest_edge"
            keeps them and cuts off what is too long ("center" in timm; DINOv2); "longest_edge" keeps them and fills
            what is too short with the mean ("border" in timm).
        crop_pct: how much of the resized picture's edges the centre crop keeps, above 0 and up to 1.
        crop_offset: where that crop cannot be exactly in the middle, half a pixel goes to the even neighbour with
            "round" (torchvision, timm), up and left with "floor" (transformers).
        resample: "nearest", "bilinear", "bicubic", "lanczos", or PIL's number of one of them.
        do_rescale: bring grey levels 0..255 and 16-bit levels to 0..1. Floats in [0, 1] are there already, and False
            refuses anything else.
        image_mean, image_std: of values in 0..1, one number or one for each channel.
        num_channels: 3 for RGB, 1 for grey; pictures are converted.
        background: three grey levels to lay under transparent pictures. None drops the transparency, as PIL,
            torchvision, timm and transformers' pipelines do.

    Raises:
        ValueError: for a setting that is unknown or out of range.
    """

    model_input_names = ["pixel_values"]
    settings = SETTINGS
    name = "AttnViTImageProcessor"
    translations = (
        ". Settings of transformers' own processors are translated by from_transformers, those of timm by from_timm"
    )

    def __init__(
        self,
        *,
        size: int | Sequence[int] | Mapping[str, int] | None = 224,
        do_resize: bool = True,
        resize_mode: str = "exact",
        crop_pct: float = 1.0,
        crop_offset: str = "round",
        resample: int | str = "bilinear",
        do_rescale: bool = True,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        num_channels: int = 3,
        background: Sequence[int] | None = None,
        **bookkeeping: Any,
    ) -> None:
        super().__init__(bookkeeping)
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct {crop_pct!r} must be above 0 and at most 1: 0.9 keeps 90 % of each edge")
        self.size = _size(size)
        self.resize_mode = choice("resize_mode", resize_mode, RESIZE_MODES)
        self.crop_pct = crop_pct
        self.crop_offset = choice("crop_offset", crop_offset, CROP_OFFSETS)
        self.set_values(do_resize, resample, do_rescale, do_normalize, image_mean, image_std, num_channels, background)

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> "AttnViTImageProcessor":
        """The evaluation transform of `timm.data.create_transform(**data_config)`.

        Args:
            data_config: of `timm.data.resolve_data_config`, or a model's `pretrained_cfg`; of its entries only
                input_size, interpolation, mean, std, crop_pct and crop_mode count.
        """
        return cls(**from_timm_settings(data_config))

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> "AttnViTImageProcessor":
        """The same as transformers' ViTImageProcessor, DeiTImageProcessor or BitImageProcessor (DINOv2).

        Args:
            settings: the `to_dict()` of one, or its preprocessor_config.json.

        Raises:
            ValueError: for a setting that this processor cannot express.
        """
        return cls(**from_transformers_settings(settings))

    @classmethod
    def backends(cls) -> Mapping[str, type]:
        return IMAGE_PROCESSORS

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Prepare one picture or many; this is what calling the processor does.

        Args:
            images: a picture, a batch of them, or a list, also of lists; a picture may be a path, a PIL picture, an
                array or a tensor, of any size.
            return_tensors: "pt" or "np"; None gives a list of tensors, which may differ in size.
            input_data_format: "channels_first" or "channels_last", of arrays whose shape leaves it open.
            device: where the tensors shall lie; without it, where the pictures do.
            settings: for this call alone, see the class.

        Returns:
            `pixel_values` (batch, channels, height, width), float32.

        Raises:
            ValueError: if a picture cannot be used, or sizes differ that should be one batch.
        """
        if settings:
            return self.changed(settings).preprocess(images, return_tensors, input_data_format, device)
        pictures = self.read(images, input_data_format)
        if self.do_resize and self.size is not None:
            resized = self._resize(pictures, (self.size["height"], self.size["width"]), device)
        else:
            resized = [to_tensor(picture) for picture in pictures]
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(self._standardized(resized, device))})
        check_equal_sizes(resized, "give a size to resize them to")
        return BatchFeature({"pixel_values": self._standardized(resized, device)}, tensor_type=return_tensors)

    def _resize(
        self, pictures: list[Picture], size: tuple[int, int], device: str | torch.device | None
    ) -> list[torch.Tensor]:
        """Each (channels, *size), uint8 or float32 in [0, 1]."""
        resized = []
        for picture in pictures:
            target = resized_size(size_of(picture), size_before_crop(size, self.crop_pct), self.resize_mode)
            resized.append(self._crop(resize_with_pil(picture, target, self.resample), size))
        return resized

    def _crop(self, pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(..., channels, *size) of (..., channels, height, width)."""
        fill = torch.tensor(self.image_mean)
        if not pictures.is_floating_point():
            fill = torch.tensor([round(255 * mean) for mean in self.image_mean])
        return center_crop(pictures, size, fill, self.crop_offset)


class AttnViTImageProcessorTorch(AttnViTImageProcessor):
    """`AttnViTImageProcessor` with torch: pictures of one shape are resized as one batch, on the device they are on.

    On a CPU it is about as fast as PIL for bilinear resizing, and half as fast for bicubic resizing of photographs.
    """

    backend = "torch"

    def _resize(
        self, pictures: list[Picture], size: tuple[int, int], device: str | torch.device | None
    ) -> list[torch.Tensor]:
        tensors = [to_tensor(picture).to(device) for picture in pictures]
        resized = list(tensors)
        for places in same_shape(tensors):
            batch = torch.stack([tensors[place] for place in places])
            height, width = batch.shape[-2:]
            target = resized_size((height, width), size_before_crop(size, self.crop_pct), self.resize_mode)
            batch = self._crop(resize_with_torch(batch, target, self.resample), size)
            for place, picture in zip(places, batch, strict=True):
                resized[place] = picture
        return resized


# For AutoImageProcessor.register. Where torchvision is installed, transformers asks for "torchvision" unless told
# otherwise; answering with the default keeps results independent of what else is installed, without a message.
IMAGE_PROCESSORS = {
    "pil": AttnViTImageProcessor,
    "torchvision": AttnViTImageProcessor,
    "torch": AttnViTImageProcessorTorch,
}


def _size(size: Any) -> dict[str, int] | None:
    if size is None:
        return None
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        edges = [size["height"], size["width"]]
    elif isinstance(size, Sequence) and not isinstance(size, str):
        edges = list(size)
    else:
        edges = [size, size]
    if len(edges) != 2 or not all(type(edge) is int and edge > 0 for edge in edges):
        raise ValueError(
            f"size {size!r} must be a whole number above 0, a pair (height, width) of them, or "
            "{'height': ..., 'width': ...}; proportions are kept by resize_mode='shortest_edge' or 'longest_edge'"
        )
    return {"height": edges[0], "width": edges[1]}
