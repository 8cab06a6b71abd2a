"""Pictures of any kind and size, and boxes on them, become the batch that a detector reads; and back again.

picture → upright, RGB → resize, proportions kept → 0..1 → (value - mean) / std → padded right and below
→ (batch, channels, h, w) and the mask of what is picture; boxes in pixels → cxcywh in fractions of the visible picture
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature

from .boxes import cxcywh_to_xyxy
from .image_processing_annotations import fractions_of_boxes, read_annotations
from .image_processing_base import PictureProcessor, check_equal_sizes, choice, same_shape
from .image_processing_conversion import from_detr_settings
from .image_processing_inputs import Picture
from .image_processing_resize import (
    pad_pictures,
    resize_with_pil,
    resize_with_torch,
    resized_size,
    size_between_edges,
    size_of,
    size_within_frame,
    to_tensor,
)

SETTINGS = (
    "background",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "num_channels",
    "pad_size",
    "resample",
    "size",
)
AUTHORS_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
EXACT_SIZE = ("height", "width")
FORMS_OF_SIZE = (
    ("shortest_edge", "longest_edge"),
    ("shortest_edge",),
    ("longest_edge",),
    ("max_height", "max_width"),
    EXACT_SIZE,
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_GREY = 0.449, 0.226  # the means of those


class AttnDetrImageProcessor(PictureProcessor):
    """Prepares pictures with PIL, and labels. The defaults are the authors'.

    Each argument is also the name of an attribute, of an entry in preprocessor_config.json, and of an argument of the
    call, for that call alone.

    Args:
        size: of the picture in a padded batch, one of {"shortest_edge", "longest_edge"}: the shorter edge becomes the
            one, unless the longer would then be more than the other; either of them alone; {"max_height",
            "max_width"}: as large as fits in; {"height", "width"}: that size, whatever the proportions. None, or
            do_resize=False, leaves pictures as large as they are.
        resample: "nearest", "bilinear", "bicubic", "lanczos", or PIL's number of one of them.
        do_rescale: bring grey levels 0..255 and 16-bit levels to 0..1. Floats in [0, 1] are there already, and False
            refuses anything else.
        image_mean, image_std: of values in 0..1, one number or one for each channel; ImageNet's by default.
        do_pad: pad the pictures of a batch with zeros, right and below, to one size.
        pad_size: {"height", "width"} of that size; by default that of the largest picture.
        num_channels: 3 for RGB, 1 for grey; pictures are converted.
        background: three grey levels to lay under transparent pictures. None drops the transparency.

    Raises:
        ValueError: for a setting that is unknown or out of range.
    """

    model_input_names = ["pixel_values", "pixel_mask"]
    settings = SETTINGS
    name = "AttnDetrImageProcessor"
    translations = ". Settings of transformers' DetrImageProcessor are translated by from_transformers"

    def __init__(
        self,
        *,
        size: Mapping[str, int] | None = AUTHORS_SIZE,
        do_resize: bool = True,
        resample: int | str = "bilinear",
        do_rescale: bool = True,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_pad: bool = True,
        pad_size: Mapping[str, int] | None = None,
        num_channels: int = 3,
        background: Sequence[int] | None = None,
        **bookkeeping: Any,
    ) -> None:
        super().__init__(bookkeeping)
        self.size = None if size is None else _edges("size", size, FORMS_OF_SIZE)
        self.do_pad = choice("do_pad", do_pad, (True, False))
        self.pad_size = None if pad_size is None else _edges("pad_size", pad_size, (EXACT_SIZE,))
        mean, std = IMAGENET_GREY if num_channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        image_mean = mean if image_mean is None else image_mean
        image_std = std if image_std is None else image_std
        self.set_values(do_resize, resample, do_rescale, do_normalize, image_mean, image_std, num_channels, background)

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> "AttnDetrImageProcessor":
        """The same as transformers' DetrImageProcessor, or its DetrFeatureExtractor of old, but for labels, which are
        fractions of the visible picture here.

        Args:
            settings: the `to_dict()` of one, or its preprocessor_config.json.

        Raises:
            ValueError: for a setting that this processor cannot express.
        """
        return cls(**from_detr_settings(settings))

    @classmethod
    def backends(cls) -> Mapping[str, type]:
        return IMAGE_PROCESSORS

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Prepare one picture or many; this is what calling the processor does.

        Args:
            images: a picture, a batch of them, or a list; a picture may be a path, a PIL picture, an array or a
                tensor, of any size.
            annotations: of each picture in COCO's form: {"image_id": 7, "annotations": [{"bbox": [x, y, width,
                height], "category_id": 0, "area": 12.5, "iscrowd": 0}, ...]}, boxes in pixels of the upright picture,
                categories from 0. Boxes end at the picture's edge; crowds, and boxes without area, are left out, as
                the authors do.
            return_tensors: "pt" or "np"; None gives lists of tensors, not padded unless pad_size says how far.
            input_data_format: "channels_first" or "channels_last", of arrays whose shape leaves it open.
            device: where the tensors shall lie; without it, where the pictures do.
            settings: for this call alone, see the class.

        Returns:
            `pixel_values` (batch, channels, height, width), float32; where pictures are padded `pixel_mask` (batch,
            height, width), 1 where the picture is; with annotations `labels`, for each picture `class_labels` (n,),
            `boxes` (n, 4) cxcywh in fractions of the visible picture, `area` (n,) in its pixels, `iscrowd` (n,),
            `image_id` (1,), `orig_size` and `size` (2,): height and width, before and after resizing.

        Raises:
            ValueError: if a picture or an annotation cannot be used, or sizes differ that should be one batch.
        """
        if settings:
            return self.changed(settings).preprocess(images, annotations, return_tensors, input_data_format, device)
        pictures = self.read(images, input_data_format)
        originals = [size_of(picture) for picture in pictures]
        labels = None if annotations is None else read_annotations(annotations, originals)
        targets = [self.resized_size(size) for size in originals]
        values: Any = self._standardized(self._resize(pictures, targets, device), device)
        batch = BatchFeature({"pixel_values": list(values)})
        if self.do_pad and (return_tensors is not None or self.pad_size is not None):
            size = None if self.pad_size is None else (self.pad_size["height"], self.pad_size["width"])
            batch["pixel_values"], batch["pixel_mask"] = pad_pictures(values, size)
        elif return_tensors is not None:
            check_equal_sizes(values, "leave do_pad on")
            batch["pixel_values"] = torch.stack(list(values))
        batch.convert_to_tensors(return_tensors)
        if labels is not None:
            convert = (lambda value: value.numpy()) if return_tensors == "np" else (lambda value: value.to(device))
            batch["labels"] = [
                {name: convert(value) for name, value in fractions_of_boxes(*of_one).items()}
                for of_one in zip(labels, originals, targets, strict=True)
            ]
        return batch

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of this (height, width) gets."""
        if not self.do_resize or self.size is None:
            return size
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        if "max_height" in self.size:
            return size_within_frame(size, self.size["max_height"], self.size["max_width"])
        if "shortest_edge" in self.size:
            return size_between_edges(size, self.size["shortest_edge"], self.size.get("longest_edge"))
        return resized_size(size, (self.size["longest_edge"],) * 2, "longest_edge")

    def _resize(
        self, pictures: list[Picture], targets: list[tuple[int, int]], device: str | torch.device | None
    ) -> list[torch.Tensor]:
        """Each (channels, *its target), uint8 or float32 in [0, 1]."""
        return [
            resize_with_pil(picture, target, self.resample) for picture, target in zip(pictures, targets, strict=True)
        ]

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """The likeliest class of each query, where it is likelier than the threshold, and its box.

        Args:
            outputs: of a detector, or a dictionary: `pred_boxes` (batch, queries, 4) cxcywh in fractions of the
                visible picture, and `scores` (batch, queries, classes), or else `logits`, with a last class more for
                "no object".
            threshold: probability.
            target_sizes: (batch, 2) height and width of the pictures in pixels; without them boxes are fractions.

        Returns:
            For each picture `scores` (k,), `labels` (k,) and `boxes` (k, 4): left, top, right, bottom, which may lie
            outside of the picture; in the order of the queries, as transformers gives them.

        Raises:
            ValueError: if there are not as many sizes as pictures, or they are not two numbers each.
        """
        scores = _field(outputs, "scores")
        if scores is None:
            scores = _field(outputs, "logits").softmax(dim=-1)[..., :-1]
        best, classes = scores.max(dim=-1)
        boxes = xyxy_in_pixels(_field(outputs, "pred_boxes"), target_sizes)
        kept = best > threshold
        return [
            {"scores": best[row, queries], "labels": classes[row, queries], "boxes": boxes[row, queries]}
            for row, queries in enumerate(kept)
        ]


class AttnDetrImageProcessorTorch(AttnDetrImageProcessor):
    """`AttnDetrImageProcessor` with torch: pictures of one shape are resized as one batch, on their own device."""

    backend = "torch"

    def _resize(
        self, pictures: list[Picture], targets: list[tuple[int, int]], device: str | torch.device | None
    ) -> list[torch.Tensor]:
        tensors = [to_tensor(picture).to(device) for picture in pictures]
        resized = list(tensors)
        for places in same_shape(tensors):
            batch = resize_with_torch(torch.stack([tensors[p] for p in places]), targets[places[0]], self.resample)
            for place, picture in zip(places, batch, strict=True):
                resized[place] = picture
        return resized


# As in image_processing_vit: the default stays the default, whatever else is installed.
IMAGE_PROCESSORS = {
    "pil": AttnDetrImageProcessor,
    "torchvision": AttnDetrImageProcessor,
    "torch": AttnDetrImageProcessorTorch,
}


def xyxy_in_pixels(boxes: torch.Tensor, target_sizes: Any = None) -> torch.Tensor:
    """(batch, n, 4) cxcywh in fractions → left, top, right, bottom, in pixels of (batch, 2) heights and widths."""
    edges = cxcywh_to_xyxy(boxes)
    if target_sizes is None:
        return edges
    listed = target_sizes.tolist() if isinstance(target_sizes, (torch.Tensor, np.ndarray)) else target_sizes
    sizes = [[float(edge) for edge in size] if isinstance(size, Iterable) else [] for size in listed]
    if [len(size) for size in sizes] != [2] * len(boxes):
        raise ValueError(f"target_sizes {listed} must be a height and a width for each of {len(boxes)} pictures")
    scale = torch.tensor(sizes, device=boxes.device).view(-1, 2).flip(-1).repeat(1, 2)
    return edges * scale.unsqueeze(1)


def _field(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _edges(name: str, size: Any, forms: Sequence[tuple[str, ...]]) -> dict[str, int]:
    edges = dict(size) if isinstance(size, Mapping) else {}
    if set(edges) not in map(set, forms) or not all(type(edge) is int and edge > 0 for edge in edges.values()):
        known = " or ".join("{" + ", ".join(f"{edge!r}: ..." for edge in form) + "}" for form in forms)
        raise ValueError(f"{name} {size!r} must be {known}, in whole pixels above 0")
    return edges
