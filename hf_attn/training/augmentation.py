"""Pictures changed at random for training, alike whenever seed, epoch and number of the picture are alike.

Two ways lead to the same batch of `pixel_values` and `labels`:

- `PictureCollator` changes picture by picture with timm's transforms (`train_transform`): for photos of any size;
- `PictureTensors` holds small pictures in memory, and `BatchedAugmentation` changes a whole batch of them in a few
  operations on tensors: for tens of thousands of pictures a second on one core.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import nn
from torchvision import transforms  # type: ignore[import-untyped]

from hf_attn.image_processing_inputs import Picture, read_picture
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.training.resumable import seeded

ERASED_AREA = (0.02, 1 / 3)  # of the picture, and the sides' ratio: Zhong et al. 2020, as in timm
ERASED_RATIO = (0.3, 1 / 0.3)

Transform = Callable[[Image.Image], Image.Image]
Batch = dict[str, torch.Tensor]


# Reproducible randomness


def uniform(seed: int, epoch: int, pictures: torch.Tensor, draws: int) -> torch.Tensor:
    """(batch, draws) numbers in [0, 1), a function of the seed, the epoch and the (batch,) numbers of the pictures.

    SplitMix64 (Steele, Lea and Flood 2014) as a hash: no generator could start anew for each picture fast enough.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    state = np.full((len(pictures), 1), seed, dtype=np.uint64)
    for number in (np.uint64(epoch), pictures.numpy().astype(np.uint64)[:, None], np.arange(draws, dtype=np.uint64)):
        state = _mix(state * gamma + number + np.uint64(1))
    return torch.from_numpy((state >> np.uint64(11)) * 2.0**-53).float()


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class FollowsEpochs:
    """Base of the collators that draw anew in every epoch, the same in every worker of a data loader.

    `ViTTrainer` calls `set_epoch`; with another trainer do so before each epoch, not in the middle of one, or all
    epochs will be alike. The number lies in shared memory, where all workers see it change, persistent ones too.
    """

    def __init__(self, seed: int):
        if seed < 0:
            raise ValueError(f"seed {seed} is negative; give 0 or more")
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of the epoch that begins."""
        self._epoch.fill_(epoch)


# Picture by picture


def train_transform(
    processor: AttnViTImageProcessor,
    *,
    crop: str | None = "inception",
    crop_area: tuple[float, float] = (0.05, 1.0),
    padding: int = 4,
    flip: bool = True,
    randaugment: tuple[int, float] | None = None,
) -> Transform:
    """A random change of one picture into another of the size and channels that `processor` makes.

    crop: "inception" cuts a random part, `crop_area` of the picture with sides between 3:4 and 4:3 (Szegedy et al.
        2015), and resizes it; big_vision takes 5 % to 100 %, others from 8 %. "pad" resizes as `processor` does, adds
        `padding` black pixels on each side and cuts the size out again. None only resizes.
    flip: mirror left and right half of the time.
    randaugment: number of operations, each done half of the time, and their magnitude from 0 to 10 (Cubuk et al.
        2020), (2, 10) in big_vision's recipe for small ViTs. What they uncover has the mean colour of `processor`.

    The random numbers are those of Python, NumPy and torch; `PictureCollator` seeds them for each picture.
    Raises ValueError for another crop, and for an area or a magnitude out of its range.
    """
    if crop not in ("inception", "pad", None):
        raise ValueError(f"crop {crop!r} is not known; there are 'inception', 'pad' and None")
    if not 0 < crop_area[0] <= crop_area[1] <= 1:
        raise ValueError(f"crop_area {crop_area} must be two shares of the picture, 0 < smaller <= larger <= 1")
    _, height, width = output_shape(processor)
    steps: list[Callable] = [_Upright(processor, resize=crop != "inception")]
    if crop == "inception":
        interpolation = Image.Resampling(processor.resample).name.lower()
        steps += [RandomResizedCropAndInterpolation((height, width), crop_area, interpolation=interpolation)]
    if crop == "pad":
        steps += [transforms.RandomCrop((height, width), padding=padding)]
    if flip:
        steps += [transforms.RandomHorizontalFlip()]
    if randaugment:
        steps += [_randaugment(*randaugment, processor)]
    return transforms.Compose(steps)


def output_shape(processor: AttnViTImageProcessor) -> tuple[int, int, int]:
    """(channels, height, width) of what a processor makes of any picture.

    Raises ValueError for one that leaves pictures in their own sizes.
    """
    if processor.size is None or not processor.do_resize:
        raise ValueError("the image processor leaves pictures in their own sizes; for training give it a size")
    return processor.num_channels, processor.size["height"], processor.size["width"]


class _Upright:
    """Pictures of any kind as upright PIL pictures of 8 bits in the processor's channels, and resized as it does."""

    def __init__(self, processor: AttnViTImageProcessor, resize: bool):
        self.processor = processor
        self.resize = resize

    def __call__(self, picture: Image.Image) -> Image.Image:
        upright = read_picture(picture, self.processor.num_channels, self.processor.background)
        if self.resize and not self._is_done(upright):
            return _as_pil(resized_grey_levels(self.processor, [picture])[0])
        return as_8_bits(upright)

    def _is_done(self, picture: Image.Image | torch.Tensor) -> bool:
        """Whether resizing would change nothing; asking the processor takes longer than all else for small ones."""
        _, height, width = output_shape(self.processor)
        size = picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])
        return size == (width, height) and self.processor.crop_pct == 1


def resized_grey_levels(processor: AttnViTImageProcessor, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(pictures, channels, height, width) uint8: what the processor makes, before normalisation."""
    return _grey_levels(processor(pictures, do_normalize=False, return_tensors="pt")["pixel_values"])


def _grey_levels(shares: torch.Tensor) -> torch.Tensor:
    """Values from 0 to 1 as uint8, exactly what they were if they came from 8 bits."""
    return (255 * shares).round().to(torch.uint8)


def as_8_bits(picture: Picture) -> Image.Image:
    """What `read_picture` gives, as a PIL picture."""
    return picture if isinstance(picture, Image.Image) else _as_pil(_grey_levels(picture))


def _as_pil(pixels: torch.Tensor) -> Image.Image:
    """The picture of (channels, height, width) uint8."""
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy())


def _randaugment(layers: int, magnitude: float, processor: AttnViTImageProcessor) -> Transform:
    if layers < 1 or not 0 <= magnitude <= 10:
        raise ValueError(f"randaugment ({layers}, {magnitude}): at least 1 layer and a magnitude from 0 to 10")
    fill = tuple(round(255 * mean) for mean in processor.image_mean)
    augment = rand_augment_transform(f"rand-n{layers}", {"img_mean": fill if len(fill) > 1 else fill[0]})
    for operation in augment.ops:
        operation.magnitude = magnitude  # timm's text form holds whole numbers only
    return augment


class PictureCollator(FollowsEpochs):
    """Rows with `image` (PIL), `label` and `index` to `pixel_values` (batch, channels, height, width) and `labels`.

    `labels` are (batch,) int64, or with `num_labels` and rows whose label is a list of class numbers (batch,
    num_labels) float32 of zeros and ones. Without a transform, pictures become what `processor` makes of them, as in
    evaluation; `transform` is one of `train_transform`, and `erase` the share of pictures of which a random rectangle
    is painted over with the mean colour (timm's RandomErasing).

    All randomness of a picture comes from (`seed`, epoch, `index` of its row): it does not depend on the workers of a
    data loader, nor on the batch, and a resumed run draws the same. `load_pictures` gives the rows their `index`.
    """

    def __init__(
        self,
        processor: AttnViTImageProcessor,
        transform: Transform | None = None,
        *,
        erase: float = 0.0,
        num_labels: int | None = None,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.processor = processor
        self.transform = transform
        self.num_labels = num_labels
        self.erasing = RandomErasing(_share("erase", erase), *ERASED_AREA, *ERASED_RATIO, device="cpu")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        pictures = [row["image"] for row in rows]
        if self.transform is None:
            pixel_values = self.processor(pictures, return_tensors="pt")["pixel_values"]
        else:
            pixel_values = self._normalised([self._changed(row) for row in rows])
        if self.erasing.probability:
            for pixels, index in zip(pixel_values, row_numbers(rows).tolist(), strict=True):
                with seeded(self.seed, self.epoch, index, 1):
                    self.erasing(pixels)
        batch = {"pixel_values": pixel_values}
        if "label" in rows[0]:
            batch["labels"] = label_tensor([row["label"] for row in rows], self.num_labels)
        return batch

    def _changed(self, row: Mapping[str, Any]) -> Image.Image:
        with seeded(self.seed, self.epoch, int(row_numbers([row]))):
            return self.transform(row["image"])  # type: ignore[misc]

    def _normalised(self, pictures: list[Image.Image]) -> torch.Tensor:
        return self.processor(pictures, do_resize=False, return_tensors="pt")["pixel_values"]


def row_numbers(rows: Sequence[Mapping[str, Any]] | Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(batch,) the `index` of each row, of rows or of a batch of them.

    Raises ValueError if they have none: without it, random changes could not be the same again.
    """
    if isinstance(rows, Mapping):
        return rows["index"]
    if any("index" not in row for row in rows):
        raise ValueError(
            'the rows have no "index", from which random changes are drawn; take the data from load_pictures or '
            'load_detections, or add it: dataset.add_column("index", range(len(dataset)))'
        )
    return torch.tensor([row["index"] for row in rows])


def label_tensor(labels: Sequence[Any], num_labels: int | None = None) -> torch.Tensor:
    """(batch,) int64 of class numbers, or (batch, num_labels) float32 with a one for each class of each picture."""
    if not isinstance(labels[0], Sequence):
        return torch.tensor(labels)
    if num_labels is None:
        raise ValueError("pictures with several labels each need num_labels, the number of classes")
    rows = torch.tensor([row for row, classes in enumerate(labels) for _ in classes], dtype=torch.long)
    columns = torch.tensor([number for classes in labels for number in classes], dtype=torch.long)
    return torch.zeros(len(labels), num_labels).index_put_((rows, columns), torch.ones(()))


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value} must be a share, from 0 to 1")
    return value


# Many small pictures at a time


class PictureTensors(torch.utils.data.Dataset):
    """Pictures of one size in memory, as the processor resizes them, before normalisation.

    A data loader takes a whole batch at once: `pixels` (batch, channels, height, width) uint8, `labels` as
    `label_tensor` makes them, `index` (batch,). `BatchedAugmentation` is the collator for it.
    """

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None):
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError(
                f"pixels {tuple(pixels.shape)} of {pixels.dtype} with {len(labels)} labels; needed is uint8 of shape "
                "(pictures, channels, height, width) and a label for each picture"
            )
        self.pixels = pixels
        self.labels = labels
        self.index = torch.arange(len(pixels)) if index is None else index

    @classmethod
    def from_dataset(
        cls, dataset: datasets.Dataset, processor: AttnViTImageProcessor, max_megabytes: float = 2000
    ) -> "PictureTensors":
        """Decode the pictures of a split of `load_pictures`.

        Raises ValueError if they would need more than `max_megabytes`.
        """
        shape = output_shape(processor)
        megabytes = len(dataset) * math.prod(shape) / 1e6
        if megabytes > max_megabytes:
            raise ValueError(
                f"{len(dataset):,} pictures of {shape} need {megabytes:,.0f} MB of memory, more than "
                f"{max_megabytes:,}; raise max_megabytes or read them from disk with PictureCollator"
            )
        pixels = torch.empty(len(dataset), *shape, dtype=torch.uint8)
        batches = dataset.select_columns("image").iter(batch_size=256)
        progress = datasets.utils.tqdm(batches, total=math.ceil(len(dataset) / 256), desc="Decoding pictures")
        for number, batch in enumerate(progress):
            decoded = resized_grey_levels(processor, batch["image"])
            pixels[256 * number : 256 * number + len(decoded)] = decoded
        feature = getattr(dataset.features["label"], "feature", dataset.features["label"])
        labels = label_tensor(dataset["label"][:], feature.num_classes)
        index = torch.tensor(dataset["index"][:]) if "index" in dataset.column_names else None
        return cls(pixels, labels, index)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Batch:
        return {"pixels": self.pixels[row], "labels": self.labels[row], "index": self.index[row]}

    def __getitems__(self, rows: list[int]) -> Batch:
        chosen = torch.tensor(rows)
        return {"pixels": self.pixels[chosen], "labels": self.labels[chosen], "index": self.index[chosen]}


class BatchedAugmentation(FollowsEpochs):
    """A batch of `PictureTensors` to `pixel_values` and `labels`, changed at random by operations on whole tensors.

    All changes are off by default, as in evaluation: then the pictures are only normalised, as `processor` does.

    flip: mirror left and right half of the time.
    padding: shift by up to so many pixels each way; what comes in is black.
    rotation, zoom: turn by up to so many degrees, and scale by up to this share (0.1: from 0.9 to 1.1).
    erase: share of pictures of which a random rectangle is painted over with the mean colour.

    All randomness of a picture comes from (`seed`, epoch, `index`), as in `PictureCollator`.
    """

    def __init__(
        self,
        processor: AttnViTImageProcessor,
        *,
        flip: bool = False,
        padding: int = 0,
        rotation: float = 0.0,
        zoom: float = 0.0,
        erase: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(seed)
        if padding < 0 or rotation < 0 or not 0 <= zoom < 1:
            raise ValueError(f"padding {padding} and rotation {rotation} must not be negative, zoom {zoom} in [0, 1)")
        self.mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
        self.std = torch.tensor(processor.image_std).view(-1, 1, 1)
        self.flip = flip
        self.padding = padding
        self.rotation = rotation
        self.zoom = zoom
        self.erase = _share("erase", erase)

    def __call__(self, batch: Batch) -> Batch:
        pixels = batch["pixels"]
        draws = uniform(self.seed, self.epoch, batch["index"], 10).T  # (10, batch)
        if self.flip:
            pixels = torch.where((draws[0] < 0.5).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        if self.padding:
            pixels = shifted(pixels, self.padding, draws[1:3])
        pixel_values = pixels.float() / 255
        if self.rotation or self.zoom:
            angles = torch.deg2rad(self.rotation * (2 * draws[3] - 1))
            pixel_values = turned(pixel_values, angles, 1 + self.zoom * (2 * draws[4] - 1))
        pixel_values = pixel_values.sub_(self.mean).div_(self.std)
        if self.erase:
            rectangles = erased_rectangles(pixels.shape[-2:], draws[6:10]) & (draws[5] < self.erase).view(-1, 1, 1)
            pixel_values.masked_fill_(rectangles[:, None], 0.0)  # the mean colour
        return {"pixel_values": pixel_values, "labels": batch["labels"]}


def shifted(pixels: torch.Tensor, padding: int, draws: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) cut out of the padded pictures at places chosen by (2, batch) draws."""
    height, width = pixels.shape[-2:]
    padded = nn.functional.pad(pixels, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (batch, channels, top, left, height, width), a view
    top, left = (draws * (2 * padding + 1)).long()
    return windows[torch.arange(len(pixels)), :, top, left]


def turned(pixel_values: torch.Tensor, angles: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) turned left by (batch,) radians and scaled by (batch,); black comes in."""
    height, width = pixel_values.shape[-2:]
    cosine, sine, zero = angles.cos() / scales, angles.sin() / scales, torch.zeros_like(angles)
    # grid_sample measures both axes from -1 to 1, whatever the sides
    rows = [cosine, -sine * height / width, zero], [sine * width / height, cosine, zero]
    matrices = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    grid = nn.functional.affine_grid(matrices, list(pixel_values.shape), align_corners=False)
    return nn.functional.grid_sample(pixel_values, grid, align_corners=False)


def erased_rectangles(size: Sequence[int], draws: torch.Tensor) -> torch.Tensor:
    """(batch, height, width) True in a rectangle whose area, ratio of sides, top and left (4, batch) draws choose."""
    height, width = size
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * draws[0]
    ratio = torch.exp(math.log(ERASED_RATIO[0]) * (1 - draws[1]) + math.log(ERASED_RATIO[1]) * draws[1])
    rectangle_height = (area * ratio).sqrt().mul(height).round().clamp(1, height)
    rectangle_width = (area / ratio).sqrt().mul(width).round().clamp(1, width)
    top = (draws[2] * (height - rectangle_height + 1)).floor().view(-1, 1)
    left = (draws[3] * (width - rectangle_width + 1)).floor().view(-1, 1)
    row, column = torch.arange(height), torch.arange(width)
    inside_rows = (row >= top) & (row < top + rectangle_height.view(-1, 1))
    inside_columns = (column >= left) & (column < left + rectangle_width.view(-1, 1))
    return inside_rows[:, :, None] & inside_columns[:, None, :]
