"""Pictures with boxes changed at random for training, alike whenever seed, epoch and number of the picture are alike.

`detection_transform` is the recipe of DETR (Carion et al. 2020, appendix A.4, and datasets/coco.py of the authors):
mirror, then resize to a random scale, half of the time what a random crop leaves. `DetectionCollator` makes batches.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.image_processing_inputs import read_picture
from hf_attn.training.augmentation import FollowsEpochs, as_8_bits, row_numbers

AUTHORS_SCALES = tuple(range(480, 801, 32))  # shortest edges
AUTHORS_LONGEST = 1333
AUTHORS_CROP = (384, 600)  # pixels of each side of the part that is cut out
AUTHORS_CROP_SCALES = (400, 500, 600)  # shortest edges of the picture that it is cut out of


class Framed(NamedTuple):
    """A picture and its boxes after a change."""

    picture: Image.Image
    boxes: np.ndarray  # (kept, 4) float64 [x, y, width, height] in pixels
    kept: np.ndarray  # (kept,) the places of these objects among those before


# Changes a picture with (n, 4) boxes [x, y, width, height], both upright and in pixels, by the random numbers given
DetectionTransform = Callable[[Image.Image, np.ndarray, random.Random], Framed]


class Region(NamedTuple):
    """A part of a picture, which becomes a picture of `size`."""

    left: float  # edges in pixels of the whole picture
    top: float
    right: float
    bottom: float
    size: tuple[int, int]  # (width, height)


def detection_transform(
    *,
    scales: Sequence[int] | None = AUTHORS_SCALES,
    longest_edge: int | None = AUTHORS_LONGEST,
    crop: bool | tuple[int, int] | tuple[float, float] = True,
    crop_scales: Sequence[int] | None = AUTHORS_CROP_SCALES,
    flip: bool = True,
    colour_jitter: float | tuple[float, float, float] = 0.0,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> "DetectionTransform":
    """A random change of a picture and its boxes; the defaults are the recipe of the paper.

    Args:
        scales: shortest edges in pixels, of which one is drawn for each picture to be resized to. None: pictures keep
            their size.
        longest_edge: pixels that the other edge may have; where it would be longer, the scale is smaller.
        crop: cut out a part half of the time, before resizing: with sides of this many pixels, drawn for each side
            (two whole numbers), or of this share of the picture's (two floats, up to 1.0). True is (384, 600).
        crop_scales: shortest edges to which the picture is resized before pixels are cut out, one of them drawn; None
            cuts them out of the picture as it is. Both resizings are done in one, from the original picture.
        flip: mirror left and right half of the time.
        colour_jitter: change brightness, contrast and saturation by up to this share, in random order (0.4: from 0.6
            to 1.4 times), one share for each or for all.
        resample: the filter to resize with.

    Boxes follow exactly. Those of which nothing is in the part that was cut out are dropped, the others end at its
    edge. A part without any object is not cut out of a picture that has some; the authors would do that.

    Raises ValueError for settings that are out of range.
    """
    jitter = colour_jitter if isinstance(colour_jitter, tuple) else (colour_jitter,) * 3
    return RandomFraming(
        scales, longest_edge, AUTHORS_CROP if crop is True else crop, crop_scales, flip, jitter, resample
    )


class RandomFraming:
    """`detection_transform` explains it."""

    def __init__(
        self,
        scales: Sequence[int] | None,
        longest_edge: int | None,
        crop: Sequence[float] | bool,
        crop_scales: Sequence[int] | None,
        flip: bool,
        colour_jitter: Sequence[float],
        resample: Image.Resampling,
    ):
        for name, edges in {"scales": scales, "crop_scales": crop_scales}.items():
            if edges is not None and (not len(edges) or min(edges) < 1):
                raise ValueError(
                    f"{name} {tuple(edges)} must be one or more shortest edges of at least 1 pixel, or None"
                )
        if longest_edge is not None and longest_edge < max(scales or [1]):
            raise ValueError(f"longest_edge {longest_edge} is shorter than the scale {max(scales or [1])}; raise it")
        if len(colour_jitter) != 3 or not all(0 <= share < 1 for share in colour_jitter):
            raise ValueError(f"colour_jitter {colour_jitter} must be a share in [0, 1), or three of them")
        self.crop = _checked_crop(crop)
        self.scales = [_scale(edge, longest_edge) for edge in scales or ()]
        self.crop_scales = [_scale(edge) for edge in crop_scales or ()]
        self.flip = flip
        self.colour_jitter = tuple(colour_jitter)
        self.resample = resample

    def __call__(self, picture: Image.Image, boxes: np.ndarray, draw: random.Random) -> Framed:
        flipped = self.flip and draw.random() < 0.5
        region = self._region(picture.size, boxes, draw)
        inside, kept = framed_boxes(boxes, region)
        picture = _framed(picture, region, self.resample)
        if flipped:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            inside[:, 0] = np.maximum(picture.width - inside[:, 0] - inside[:, 2], 0)
        return Framed(self._jittered(picture, draw), inside, kept)

    def _region(self, size: tuple[int, int], boxes: np.ndarray, draw: random.Random) -> Region:
        """The whole picture or a part of it, and the size that it gets."""
        whole = Region(0, 0, *size, self._resized(size, draw))
        if not self.crop or draw.random() < 0.5:
            return whole
        edges, part_size = self._part(size, draw)
        region = Region(*edges, self._resized(part_size, draw))
        return region if len(framed_boxes(boxes, region)[1]) or not len(boxes) else whole

    def _part(
        self, size: tuple[int, int], draw: random.Random
    ) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """The edges of a part in pixels of a picture of `size`, and its size in pixels of what it is cut out of."""
        least, most = self.crop or (1.0, 1.0)
        before = size
        if isinstance(least, int) and self.crop_scales:
            before = _resized(size, draw.choice(self.crop_scales))
        edges, part_size = [], []
        for side, original in zip(before, size, strict=True):
            if isinstance(least, int):
                length = draw.randint(min(least, side), min(int(most), side))
            else:
                length = max(round(side * draw.uniform(least, most)), 1)
            start = draw.randint(0, side - length)
            edges += [(start * original / side, min((start + length) * original / side, original))]
            part_size.append(length)
        (left, right), (top, bottom) = edges
        return (left, top, right, bottom), (part_size[0], part_size[1])

    def _resized(self, size: tuple[int, int], draw: random.Random) -> tuple[int, int]:
        return _resized(size, draw.choice(self.scales)) if self.scales else size

    def _jittered(self, picture: Image.Image, draw: random.Random) -> Image.Image:
        changes = [pair for pair in zip((_black, _mean_grey, _grey), self.colour_jitter, strict=True) if pair[1]]
        draw.shuffle(changes)
        for without, share in changes:
            picture = Image.blend(without(picture), picture, draw.uniform(1 - share, 1 + share))
        return picture


# What brightness, contrast and saturation are measured from, as in PIL's ImageEnhance, which takes 1.6 times as long


def _black(picture: Image.Image) -> Image.Image:
    return Image.new(picture.mode, picture.size)


def _mean_grey(picture: Image.Image) -> Image.Image:
    mean = int(np.asarray(picture.convert("L")).mean() + 0.5)
    return Image.new(picture.mode, picture.size, (mean,) * len(picture.getbands()))


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert(picture.mode)


def _checked_crop(crop: Sequence[float] | bool) -> Sequence[float] | None:
    if isinstance(crop, bool):
        return AUTHORS_CROP if crop else None
    pixels, shares = (all(isinstance(side, kind) for side in crop) for kind in (int, float))
    if len(crop) != 2 or not 0 < crop[0] <= crop[1] or not (pixels or (shares and crop[1] <= 1)):
        raise ValueError(
            f"crop {crop} must be two sides, smaller and larger: whole numbers of pixels, or shares of the picture up "
            "to 1.0"
        )
    return crop


def _scale(shortest_edge: int, longest_edge: int | None = None) -> AttnDetrImageProcessor:
    """A processor, for the size that it gives to pictures: so that training and evaluation cannot differ in it."""
    edges = {"shortest_edge": shortest_edge, **({} if longest_edge is None else {"longest_edge": longest_edge})}
    return AttnDetrImageProcessor(size=edges)


def _resized(size: tuple[int, int], scale: AttnDetrImageProcessor) -> tuple[int, int]:
    """(width, height) of (width, height)."""
    height, width = scale.resized_size(size[::-1])
    return width, height


def framed_boxes(boxes: np.ndarray, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """(kept, 4) boxes in pixels of the picture that the region becomes, and (kept,) the places of these boxes."""
    left, top, right, bottom, (new_width, new_height) = region
    across, down = new_width / (right - left), new_height / (bottom - top)
    inside, kept = [], []
    for place, (x, y, width, height) in enumerate(boxes.tolist()):  # six times as fast as arrays for a few boxes
        first, last = max(x, left), min(x + width, right)
        upper, lower = max(y, top), min(y + height, bottom)
        if last > first and lower > upper:
            sides = (last - first) * across, (lower - upper) * down
            inside.append([(first - left) * across, (upper - top) * down, *sides])
            kept.append(place)
    return np.array(inside, dtype=np.float64).reshape(-1, 4), np.array(kept, dtype=np.int64)


def _framed(picture: Image.Image, region: Region, resample: Image.Resampling) -> Image.Image:
    edges, size = region[:4], region.size
    if edges == (0, 0, *picture.size) and size == picture.size:
        return picture
    if size == (edges[2] - edges[0], edges[3] - edges[1]) and all(float(edge).is_integer() for edge in edges):
        return picture.crop(edges)
    return picture.resize(size, resample, box=edges)


# Batches


class DetectionCollator(FollowsEpochs):
    """Rows of `load_detections` to `pixel_values`, `pixel_mask` and `labels`, as `processor` makes them.

    pixel_values: (batch, channels, height, width) float32; smaller pictures stand at the top left.
    pixel_mask: (batch, height, width) int64, 1 where the picture is.
    labels: a dict for each picture, with `class_labels` (n,) int64, `boxes` (n, 4) cxcywh in fractions of the picture,
        and what else the processor gives; none for rows without `objects`.

    Without a transform, pictures are resized as `processor` does, as in evaluation; `transform` is one of
    `detection_transform`, which leaves nothing to resize. Crowds teach nothing, and the processor leaves them out.

    All randomness of a picture comes from (`seed`, epoch, `index` of its row): it does not depend on the workers of a
    data loader, nor on the batch, and a resumed run draws the same.
    """

    def __init__(self, processor: AttnDetrImageProcessor, transform: DetectionTransform | None = None, seed: int = 0):
        super().__init__(seed)
        self.processor = processor
        self.transform = transform

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        annotations = [annotations_of(row) for row in rows] if "objects" in rows[0] else None
        pictures = [row["image"] for row in rows]
        if self.transform is None:
            return dict(self.processor(pictures, annotations, return_tensors="pt"))
        epoch = self.epoch
        for place, number in enumerate(row_numbers(rows).tolist()):
            draw = random.Random(f"{self.seed} {epoch} {number}")  # hashed, as a text is
            upright = as_8_bits(read_picture(pictures[place], self.processor.num_channels, self.processor.background))
            if annotations is None:
                pictures[place] = self.transform(upright, np.zeros((0, 4)), draw).picture
            else:
                pictures[place], annotations[place] = self._changed(upright, annotations[place], draw)
        return dict(self.processor(pictures, annotations, do_resize=False, return_tensors="pt"))

    def _changed(
        self, picture: Image.Image, annotations: dict[str, Any], draw: random.Random
    ) -> tuple[Image.Image, dict[str, Any]]:
        objects = annotations["annotations"]
        boxes = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
        framed = self.transform(picture, boxes, draw)  # type: ignore[misc]
        changed = []
        for place, box in zip(framed.kept.tolist(), framed.boxes.tolist(), strict=True):
            before = objects[place]
            area = before["area"] * (box[2] * box[3]) / (before["bbox"][2] * before["bbox"][3])
            changed.append({**before, "bbox": box, "area": area})
        return framed.picture, {**annotations, "annotations": changed}


def annotations_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `load_detections` in the words of the processor, those of COCO."""
    objects = row["objects"]
    count = len(objects["bbox"])
    areas = objects.get("area") or [box[2] * box[3] for box in objects["bbox"]]
    crowds = objects.get("iscrowd") or [False] * count
    entries = [
        {"bbox": box, "category_id": category, "area": area, "iscrowd": int(crowd)}
        for box, category, area, crowd in zip(objects["bbox"], objects["category"], areas, crowds, strict=True)
    ]
    return {"image_id": row.get("image_id", row.get("index", 0)), "annotations": entries}
