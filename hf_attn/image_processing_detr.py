"""Pictures of any kind and size, and boxes on them, become the batch that a detector reads; and back again.

picture → upright, RGB → resize, proportions kept → 0..1 → (value - mean) / std → padded right and below
→ (batch, channels, h, w) and the mask of what is picture; boxes in pixels → cxcywh in fractions of the visible picture
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature

from .image_processing_annotations import Label, fractions_of_boxes, read_annotations
from .image_processing_base import PictureProcessor, choice, same_shape
from .image_processing_inputs import Picture
from .image_processing_resize import resize_with_pil, resize_with_torch, to_tensor

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
EDGES = ({"shortest_edge", "longest_edge"}, {"shortest_edge"}, {"longest_edge"}, {"height", "width"})
# Entries of transformers' files that say nothing about the result, or what is always so here
TRANSFORMERS_BOOKKEEPING = (
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_annotations",
    "do_convert_rgb",
    "format",
    "input_data_format",
    "pad_and_return_pixel_mask",
    "return_segmentation_masks",
    "return_tensors",
)


class AttnDetrImageProcessor(PictureProcessor):
    """Prepares pictures with PIL, and labels. The defaults are the authors'.

    Each argument is also the name of an attribute, of an entry in preprocessor_config.json, and of an argument of the
    call, for that call alone.

    Args:
        size: {"shortest_edge", "longest_edge"}: the shorter edge becomes the one, unless the longer would become more
            than the other; each may be left out. {"height", "width"} changes the proportions. None, or
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
        self.size = None if size is None else _edges("size", size, EDGES)
        self.do_pad = choice("do_pad", do_pad, (True, False))
        self.pad_size = None if pad_size is None else _edges("pad_size", pad_size, EDGES[-1:])
        grey = num_channels == 1
        self.set_values(
            do_resize,
            resample,
            do_rescale,
            do_normalize,
            (0.449 if grey else (0.485, 0.456, 0.406)) if image_mean is None else image_mean,
            (0.226 if grey else (0.229, 0.224, 0.225)) if image_std is None else image_std,
            num_channels,
            background,
        )

    @classmethod
    def understood(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of transformers' DetrImageProcessor, or of DetrFeatureExtractor of old.

        Raises:
            ValueError: for a setting that this processor cannot express.
        """
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "the processor"
        given = {name: value for name, value in settings.items() if value is not None}
        if settings.get("format", "coco_detection") not in ("coco_detection", "AnnotationFormat.COCO_DETECTION"):
            raise ValueError(f"{kind} reads annotations of format {settings['format']!r}; here they are of detection")
        if abs(given.pop("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError("values must be rescaled by 1/255; these settings do not, so the result would be another")
        size, longest = given.pop("size", None), given.pop("max_size", None)
        if isinstance(size, int):
            given["size"] = {"shortest_edge": size, "longest_edge": longest or 1333}
        elif size is not None:
            given["size"] = {**size, **({"longest_edge": longest} if longest and "longest_edge" not in size else {})}
            if set(given["size"]) == {"max_height", "max_width"}:
                raise ValueError(f"{kind}'s size {size} is a frame to fit in, which cannot be expressed here")
        for name in (*TRANSFORMERS_BOOKKEEPING, "image_processor_type", "feature_extractor_type", "processor_class"):
            given.pop(name, None)
        unknown = sorted(set(given) - set(SETTINGS) - {"auto_map"})
        if unknown:
            raise ValueError(f"{kind}'s {', '.join(unknown)} cannot be expressed here")
        return given

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
        originals = [_height_and_width(picture) for picture in pictures]
        labels = None if annotations is None else read_annotations(annotations, originals)
        targets = [self.resized_size(size) for size in originals]
        resized = self._resize(pictures, targets, device)
        values = list(self._standardized(resized, device))
        batch: dict[str, Any] = {"pixel_values": values}
        if self.do_pad and (return_tensors is not None or self.pad_size is not None):
            size = None if self.pad_size is None else (self.pad_size["height"], self.pad_size["width"])
            batch["pixel_values"], batch["pixel_mask"] = pad_pictures(values, size)
        if labels is not None:
            batch["labels"] = [
                fractions_of_boxes(label, original, target)
                for label, original, target in zip(labels, originals, targets, strict=True)
            ]
        if return_tensors is not None and not isinstance(batch["pixel_values"], torch.Tensor):
            batch["pixel_values"] = _stacked(values)
        return _as_feature(batch, return_tensors)

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of this (height, width) gets.

        With a shortest edge it is rounded down as in the authors' code and in transformers.
        """
        if not self.do_resize or self.size is None:
            return size
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        shorter, longer = min(size), max(size)
        longest = self.size.get("longest_edge")
        wanted = self.size.get("shortest_edge")
        if wanted is None:
            scale = longest / longer  # type: ignore[operator]
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        exact: float = wanted
        if longest is not None and longer / shorter * wanted > longest:
            exact = longest * shorter / longer
            wanted = round(exact)
        if shorter == wanted:
            return size
        other = int(exact * longer / shorter)
        wanted = max(1, wanted)
        return (wanted, other) if size[0] < size[1] else (other, wanted)

    def _resize(
        self, pictures: list[Picture], targets: list[tuple[int, int]], device: str | torch.device | None
    ) -> list[torch.Tensor]:
        """Each (channels, *its target), uint8 or float32 in [0, 1]."""
        for picture in pictures:
            if isinstance(picture, torch.Tensor) and picture.device.type != "cpu":
                raise ValueError(
                    f"picture on {picture.device}: PIL works on the CPU; load the processor with backend='torch', or "
                    "give picture.cpu()"
                )
        return [
            to_tensor(picture)
            if _height_and_width(picture) == target
            else resize_with_pil(picture, target, self.resample)
            for picture, target in zip(pictures, targets, strict=True)
        ]

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """The likeliest class of each query, where it is likelier than the threshold, and its box.

        Args:
            outputs: of a detector: `pred_boxes` (batch, queries, 4) cxcywh in fractions of the visible picture, and
                `scores` (batch, queries, classes), or else `logits` with one more class for "no object".
            threshold: probability.
            target_sizes: (batch, 2) height and width of the pictures in pixels; without them boxes are fractions.

        Returns:
            For each picture `scores` (k,), `labels` (k,) and `boxes` (k, 4): left, top, right, bottom; in the order of
            the queries, as transformers gives them.

        Raises:
            ValueError: if there are not as many sizes as pictures, or they are not two numbers each.
        """
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else getattr(outputs, "scores", None)
        logits, boxes = outputs["logits"], outputs["pred_boxes"]
        if scores is None:
            scores = logits.softmax(dim=-1)[..., :-1]
        best, classes = scores.max(dim=-1)
        edges = xyxy_in_pixels(boxes, target_sizes)
        return [
            {"scores": score[score > threshold], "labels": label[score > threshold], "boxes": box[score > threshold]}
            for score, label, box in zip(best, classes, edges, strict=True)
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


def pad_pictures(
    pictures: Sequence[torch.Tensor], size: tuple[int, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of different sizes as one batch, with zeros on the right and below.

    Args:
        pictures: (channels, height, width) each.
        size: (height, width) of the batch; by default the largest of each.

    Returns:
        (batch, channels, height, width), and (batch, height, width) int64, 1 where the picture is.

    Raises:
        ValueError: if a picture is larger than `size`.
    """
    height = max(picture.shape[-2] for picture in pictures)
    width = max(picture.shape[-1] for picture in pictures)
    if size is not None:
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"pad_size {size[0]}x{size[1]} (height x width) is too small for pictures of up to {height}x{width}; "
                "raise it, or lower the longest_edge of size"
            )
        height, width = size
    first = pictures[0]
    if all(picture.shape[-2:] == (height, width) for picture in pictures):
        return torch.stack(list(pictures)), torch.ones(
            len(pictures), height, width, dtype=torch.long, device=first.device
        )
    padded = first.new_zeros(len(pictures), first.shape[0], height, width)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.long, device=first.device)
    for row, picture in enumerate(pictures):
        padded[row, :, : picture.shape[-2], : picture.shape[-1]] = picture
        mask[row, : picture.shape[-2], : picture.shape[-1]] = 1
    return padded, mask


def xyxy_in_pixels(boxes: torch.Tensor, target_sizes: Any = None) -> torch.Tensor:
    """(batch, n, 4) cxcywh in fractions → left, top, right, bottom, in pixels of (batch, 2) heights and widths."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    edges = torch.cat([centre - half, centre + half], dim=-1)
    if target_sizes is None:
        return edges
    sizes = torch.as_tensor(target_sizes if isinstance(target_sizes, torch.Tensor) else np.array(target_sizes))
    if sizes.shape != (len(boxes), 2):
        raise ValueError(
            f"target_sizes are {tuple(sizes.shape)} for {len(boxes)} pictures; they must be ({len(boxes)}, 2): height "
            "and width of each picture"
        )
    return edges * sizes.flip(-1).repeat(1, 2).unsqueeze(1).to(edges)


def _height_and_width(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, torch.Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width


def _edges(name: str, size: Any, known: Sequence[set[str]]) -> dict[str, int]:
    forms = " or ".join("{" + ", ".join(sorted(names)) + "}" for names in known)
    if not isinstance(size, Mapping) or set(size) not in known:
        raise ValueError(f"{name} {size!r} must be a dictionary {forms}")
    edges = {edge: size[edge] for edge in sorted(size)}
    if not all(type(edge) is int and edge > 0 for edge in edges.values()):
        raise ValueError(f"{name} {size!r} must be whole numbers of pixels above 0")
    return edges


def _stacked(pictures: list[torch.Tensor]) -> torch.Tensor:
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
    if len(sizes) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in sizes[:5]) + (", ..." if len(sizes) > 5 else "")
        raise ValueError(
            f"pictures of {len(sizes)} sizes ({named}, height x width) do not fit into one tensor; leave do_pad on, "
            "or leave return_tensors out"
        )
    return torch.stack(pictures)


def _as_feature(batch: dict[str, Any], return_tensors: str | None) -> BatchFeature:
    """`labels` stay a list with a dictionary for each picture."""
    labels: list[Label] | None = batch.pop("labels", None)
    feature = BatchFeature(batch, tensor_type=return_tensors)
    if labels is not None:
        if return_tensors == "np":
            feature["labels"] = [{name: value.numpy() for name, value in label.items()} for label in labels]
        else:
            feature["labels"] = labels
    return feature
