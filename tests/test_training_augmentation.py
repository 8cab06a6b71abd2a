"""What augmentation may change and what not, and that it is the same again whoever does it, in whatever order."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine
from transformers import Trainer, TrainingArguments

from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.training.augmentation import (
    ERASED_AREA,
    BatchedAugmentation,
    PictureCollator,
    PictureTensors,
    erased_rectangles,
    label_tensor,
    shifted,
    train_transform,
    turned,
    uniform,
)
from hf_attn.training.mixup import MixupCutmixCollator
from hf_attn.training.picture_data import load_pictures
from hf_attn.training.resumable import seeded

SIZE = (12, 10)  # height, width


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def processor(num_channels: int = 3, size: tuple[int, int] = SIZE, **settings: Any) -> AttnViTImageProcessor:
    mean, std = ([0.4, 0.5, 0.3], [0.2, 0.3, 0.25]) if num_channels == 3 else ([0.3], [0.35])
    return AttnViTImageProcessor(size=size, num_channels=num_channels, image_mean=mean, image_std=std, **settings)


def picture(number: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Noise, (height, width), that is different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def rows(count: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> list[dict[str, Any]]:
    return [{"image": picture(n, size, mode), "label": n % 4, "index": 10 + n} for n in range(count)]


def dataset(count: int = 12, mode: str = "RGB") -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b", "c", "d"]),
            "index": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_list(rows(count, mode=mode), features=features)


def tensors(count: int, channels: int = 3, size: tuple[int, int] = SIZE) -> dict[str, torch.Tensor]:
    """A batch of `PictureTensors`."""
    pixels = torch.randint(256, (count, channels, *size), dtype=torch.uint8)
    return {"pixels": pixels, "labels": torch.arange(count) % 4, "index": torch.arange(10, 10 + count)}


def states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# Randomness


def test_seeded_draws_are_the_same_again_and_leave_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    before = states()
    with seeded(1, 2, 3):
        first = draw()
    assert states() == before
    with seeded(1, 2, 3):
        again = draw()
    with seeded(1, 2, 4):
        other = draw()
    assert first == again and not set(first) & set(other)
    with pytest.raises(RuntimeError, match="stop"), seeded(1):
        random.random()
        raise RuntimeError("stop")
    assert states() == before


@given(
    st.lists(st.integers(0, 2**40), min_size=1, unique=True), st.integers(0, 2**31), st.integers(0, 1000), st.randoms()
)
@settings(max_examples=50)
def test_uniform_numbers_belong_to_a_picture_not_to_a_batch(
    pictures: list[int], seed: int, epoch: int, order: random.Random
) -> None:
    draws = dict(zip(pictures, uniform(seed, epoch, torch.tensor(pictures), 7).tolist(), strict=True))
    order.shuffle(pictures)
    for number in pictures:
        assert uniform(seed, epoch, torch.tensor([number]), 7).tolist() == [draws[number]]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    draws = torch.cat([uniform(seed, epoch, torch.arange(2000), 4) for seed in (0, 1) for epoch in (0, 1)], dim=1)
    assert draws.min() >= 0 and draws.max() < 1
    assert_close(draws.mean(0), torch.full((16,), 0.5), atol=0.03, rtol=0)
    assert_close(draws.var(0), torch.full((16,), 1 / 12), atol=0.01, rtol=0)
    assert_close(torch.corrcoef(draws.T), torch.eye(16), atol=0.1, rtol=0)  # over seeds, epochs and draws
    assert_close(torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]])), torch.eye(2), atol=0.1, rtol=0)


# Picture by picture


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [SIZE, (25, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transform_that_changes_nothing_gives_what_the_processor_gives(
    mode: str, size: tuple[int, int], channels: int
) -> None:
    prepare = processor(channels, crop_pct=0.9, resize_mode="shortest_edge")
    nothing = train_transform(prepare, crop=None, flip=False)
    data = rows(3, size, mode)
    assert_close(PictureCollator(prepare, nothing)(data), PictureCollator(prepare)(data), rtol=0, atol=1e-6)


def test_16_bit_pictures_come_within_a_grey_level() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    data = [{"image": Image.fromarray(levels), "index": 0}]
    prepare = processor(1)
    for crop in (None, "inception"):
        transform = train_transform(prepare, crop=crop, crop_area=(1, 1), flip=False)
        changed = PictureCollator(prepare, transform)(data)["pixel_values"]
        assert changed.shape == (1, 1, *SIZE)
    transform = train_transform(prepare, crop=None, flip=False)
    changed, expected = (PictureCollator(prepare, t)(data)["pixel_values"] for t in (transform, None))
    assert_close(changed, expected, rtol=0, atol=0.51 / 255 / prepare.image_std[0])


def test_a_flip_is_the_picture_or_its_mirror_image() -> None:
    flip, image = train_transform(processor(), crop=None), picture(0)
    results = []
    for seed in range(100):
        with seeded(seed):
            results.append(np.array(flip(image)))
    kept = [np.array_equal(result, np.array(image)) for result in results]
    mirrored = [np.array_equal(result, np.array(image)[:, ::-1]) for result in results]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True)) and 30 < sum(kept) < 70


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_and_cutting_shifts_the_picture(channels: int) -> None:
    shift = train_transform(processor(channels), crop="pad", padding=2, flip=False)
    image = picture(0, mode="L" if channels == 1 else "RGB")
    padded = np.pad(np.array(image), [(2, 2), (2, 2)] + [(0, 0)] * (channels > 1))
    windows = {
        padded[top : top + SIZE[0], left : left + SIZE[1]].tobytes(): (top, left)
        for top in range(5)
        for left in range(5)
    }
    places = set()
    for seed in range(200):
        with seeded(seed):
            places.add(windows[np.array(shift(image)).tobytes()])
    assert len(places) == 25


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_an_inception_crop_is_a_resized_part_of_the_picture(resample: str) -> None:
    prepare = processor(resample=resample)
    rows_and_columns = np.stack([*np.mgrid[0:40, 0:60] * 4, np.zeros((40, 60))], axis=-1).astype(np.uint8)
    crop = train_transform(prepare, flip=False, crop_area=(0.3, 0.6))
    for seed in range(20):
        with seeded(seed):
            part = np.array(crop(Image.fromarray(rows_and_columns))).astype(float)
        assert part.shape == (*SIZE, 3)
        height, width = (part[-1, 0, 0] - part[0, 0, 0]) / 4, (part[0, -1, 1] - part[0, 0, 1]) / 4
        height, width = height * SIZE[0] / (SIZE[0] - 1), width * SIZE[1] / (SIZE[1] - 1)
        assert 0.3 * 0.75 < height * width / 2400 < 0.6 * 1.25
        assert 3 / 4 * 0.8 < width / height < 4 / 3 * 1.25


@pytest.mark.parametrize(("mode", "channels", "fill"), [("L", 1, 76), ("RGB", 3, (102, 128, 76))])
def test_randaugment_is_that_of_timm_with_the_mean_colour(mode: str, channels: int, fill: Any) -> None:
    ours = train_transform(processor(channels), crop=None, flip=False, randaugment=(2, 9))
    theirs = rand_augment_transform("rand-m9-n2", {"img_mean": fill})
    changed = 0
    for number in range(80):
        image = picture(number, mode=mode)
        with seeded(number):
            expected = theirs(image)
        with seeded(number):
            result = ours(image)
        assert result.mode == mode and result.tobytes() == expected.tobytes()
        changed += result.tobytes() != image.tobytes()
    assert 40 < changed < 80  # each of two operations is done half of the time


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_operation_of_randaugment_takes_grey_and_colour(mode: str) -> None:
    augment = train_transform(processor(1 if mode == "L" else 3), crop=None, flip=False, randaugment=(1, 10))
    operations = augment.transforms[-1].ops
    assert len(operations) == 15
    for operation in operations:
        result = operation.aug_fn(
            picture(0, mode=mode), *(operation.level_fn(7, {}) if operation.level_fn else ()), **operation.kwargs
        )
        assert (result.mode, result.size) == (mode, SIZE[::-1]), operation.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "centre"}, "crop 'centre' is not known; there are 'inception', 'pad' and None"),
        ({"crop_area": (0.5, 0.2)}, "must be two shares of the picture"),
        ({"randaugment": (2, 11)}, r"randaugment \(2, 11\): at least 1 layer and a magnitude from 0 to 10"),
        ({"randaugment": (0, 5)}, r"at least 1 layer"),
    ],
)
def test_settings_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(processor(), **arguments)


def test_a_processor_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves pictures in their own sizes; for training give it a size"):
        train_transform(AttnViTImageProcessor(size=None))


def test_erasing_paints_a_rectangle_in_the_mean_colour() -> None:
    prepare = processor(size=(30, 30))
    data = rows(20, (30, 30))
    clean = PictureCollator(prepare)(data)["pixel_values"]
    erased = PictureCollator(prepare, erase=1.0)(data)["pixel_values"]
    for before, after in zip(clean, erased, strict=True):
        gone = (after == 0).all(0)
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        height, width = int(gone.any(1).sum()), int(gone.any(0).sum())
        assert height * width == gone.sum()  # a rectangle
        assert ERASED_AREA[0] * 0.6 < gone.float().mean() < ERASED_AREA[1] * 1.2
    with pytest.raises(ValueError, match=r"erase 1.5 must be a share, from 0 to 1"):
        PictureCollator(prepare, erase=1.5)


# Reproducible


def photo_collator(seed: int = 0) -> PictureCollator:
    prepare = processor()
    return PictureCollator(prepare, train_transform(prepare, randaugment=(2, 10)), erase=0.5, seed=seed)


def tensor_collator(seed: int = 0) -> BatchedAugmentation:
    return BatchedAugmentation(processor(), flip=True, padding=2, rotation=20, zoom=0.2, erase=0.5, seed=seed)


def photo_data() -> datasets.Dataset:
    return dataset()


def tensor_data() -> PictureTensors:
    return PictureTensors.from_dataset(dataset(), processor())


PATHS: dict[str, tuple[Callable, Callable]] = {
    "photos": (photo_collator, photo_data),
    "tensors": (tensor_collator, tensor_data),
}


def by_label_order(loader: DataLoader) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in loader])


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("mixed", [False, True])
def test_workers_change_nothing_and_persistent_ones_follow_the_epochs(kind: str, mixed: bool) -> None:
    make, data = PATHS[kind][0], PATHS[kind][1]()
    epochs = {}
    for workers in (0, 2):
        collator = make()
        if mixed:
            collator = MixupCutmixCollator(collator, num_classes=4, mixup_alpha=0.5, cutmix_alpha=0.5)
        loader = DataLoader(
            data, batch_size=5, collate_fn=collator, num_workers=workers, persistent_workers=workers > 0
        )
        epochs[workers] = []
        for epoch in (0, 1, 0):
            collator.set_epoch(epoch)
            epochs[workers].append(by_label_order(loader))
    for alone, shared in zip(epochs[0], epochs[2], strict=True):
        assert torch.equal(alone, shared)
    assert torch.equal(epochs[0][0], epochs[0][2]) and not torch.equal(epochs[0][0], epochs[0][1])


@pytest.mark.parametrize("kind", PATHS)
def test_a_picture_changes_alike_in_any_batch_and_leaves_no_trace(kind: str) -> None:
    make, data = PATHS[kind][0], PATHS[kind][1]()
    before = states()
    together = by_label_order(DataLoader(data, batch_size=12, collate_fn=make()))
    order = [7, 0, 3, 11]
    some = by_label_order(DataLoader(data, batch_size=3, sampler=order, collate_fn=make()))
    assert torch.equal(some, together[order])
    other = by_label_order(DataLoader(data, batch_size=12, collate_fn=make(seed=1)))
    assert not any(torch.equal(*pair) for pair in zip(together, other, strict=True))
    after = states()
    assert after[:2] == before[:2]  # a DataLoader itself draws from torch's


@pytest.mark.parametrize(
    "collator",
    [
        photo_collator(),
        PictureCollator(processor(), erase=1.0),
        MixupCutmixCollator(photo_collator(), num_classes=4, probability=0.0),
    ],
    ids=["transform", "erasing alone", "inside of a mixture"],
)
def test_every_epoch_draws_anew(collator: PictureCollator | MixupCutmixCollator) -> None:
    epochs = []
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        epochs.append(collator(rows(4))["pixel_values"])
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("kind", PATHS)
def test_equal_pictures_with_other_numbers_change_differently(kind: str) -> None:
    make = PATHS[kind][0]
    if kind == "photos":
        data = [{"image": picture(0), "index": n} for n in range(10)]
        values = make()(data)["pixel_values"]
    else:
        pixels = tensors(1)["pixels"].expand(10, -1, -1, -1)
        values = make()({"pixels": pixels, "labels": torch.zeros(10), "index": torch.arange(10)})["pixel_values"]
    assert len({value.numpy().tobytes() for value in values}) > 8


def test_rows_without_numbers_are_refused_with_the_remedy() -> None:
    data = [{"image": picture(0), "label": 0}]
    with pytest.raises(ValueError, match=r'no "index".*add_column\("index", range\(len\(dataset\)\)\)'):
        photo_collator()(data)
    assert PictureCollator(processor())(data)["pixel_values"].shape == (1, 3, *SIZE)
    with pytest.raises(ValueError, match="seed -1 is negative"):
        PictureCollator(processor(), seed=-1)


# Labels


def test_labels_are_numbers_or_zeros_and_ones() -> None:
    assert torch.equal(label_tensor([2, 0, 1]), torch.tensor([2, 0, 1]))
    expected = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert torch.equal(label_tensor([[0, 2], [], [1]], 3), expected)
    with pytest.raises(ValueError, match="several labels each need num_labels"):
        label_tensor([[0, 2]])


def test_rows_without_labels_make_batches_without() -> None:
    assert list(PictureCollator(processor())([{"image": picture(0)}])) == ["pixel_values"]


# Many small pictures at a time


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [SIZE, (20, 15)])
def test_tensors_unchanged_are_what_the_processor_makes(channels: int, size: tuple[int, int]) -> None:
    prepare, data = processor(channels, size), dataset(mode="L" if channels == 1 else "RGB")
    held = PictureTensors.from_dataset(data, prepare)
    batch = BatchedAugmentation(prepare)(held.__getitems__([3, 0, 5]))
    expected = PictureCollator(prepare)([data[row] for row in (3, 0, 5)])
    assert_close(batch, expected, rtol=0, atol=1e-6)
    assert len(held) == 12 and held[3]["index"] == 13


def test_loaded_pictures_go_straight_into_tensors(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            picture(number + 100 * len(name) + ord(name[0])).save(tmp_path / name / f"{number}.png")
    splits, _ = load_pictures(tmp_path)
    held = PictureTensors.from_dataset(splits["train"], processor())
    assert held.index.tolist() == splits["train"]["index"][:]
    assert held.labels.tolist() == splits["train"]["label"][:]


def test_tensors_of_pictures_with_several_labels() -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))}
    )
    data = datasets.Dataset.from_dict({"image": [picture(0), picture(1)], "label": [[0, 2], []]}, features=features)
    held = PictureTensors.from_dataset(data, processor())
    assert torch.equal(held.labels, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))


def test_batched_changes_are_shifts_of_the_picture_or_its_mirror_image() -> None:
    batch = tensors(200, 1)
    batch["pixels"][:] = batch["pixels"][0]
    collator = BatchedAugmentation(AttnViTImageProcessor(size=SIZE, num_channels=1), flip=True, padding=1)
    levels = ((collator(batch)["pixel_values"] * 0.5 + 0.5) * 255).round().to(torch.uint8)
    image = batch["pixels"][0, 0].numpy()
    possible = {}
    for flipped in (False, True):
        padded = np.pad(image[:, ::-1] if flipped else image, 1)
        for top in range(3):
            for left in range(3):
                possible[padded[top : top + SIZE[0], left : left + SIZE[1]].tobytes()] = (flipped, top, left)
    assert {possible[result[0].numpy().tobytes()] for result in levels} == set(possible.values())


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=30)
def test_shifting_cuts_the_windows_that_were_drawn(
    count: int, channels: int, height: int, width: int, padding: int
) -> None:
    pixels = torch.randint(256, (count, channels, height, width), dtype=torch.uint8)
    draws = torch.rand(2, count)
    padded = np.pad(pixels.numpy(), [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    for number, result in enumerate(shifted(pixels, padding, draws)):
        top, left = (int(draw * (2 * padding + 1)) for draw in draws[:, number])
        assert np.array_equal(result.numpy(), padded[number, :, top : top + height, left : left + width])


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_turning_and_scaling_is_that_of_torchvision(size: tuple[int, int]) -> None:
    values = torch.rand(4, 3, *size)
    angles, scales = torch.tensor([0.0, 0.4, -1.2, 3.0]), torch.tensor([1.0, 1.3, 0.8, 1.0])
    for value, angle, scale, result in zip(values, angles, scales, turned(values, angles, scales), strict=True):
        degrees, bilinear = torch.rad2deg(angle).item(), InterpolationMode.BILINEAR
        expected = affine(value, -degrees, [0, 0], scale.item(), [0.0, 0.0], bilinear)
        assert_close(result, expected, rtol=0, atol=1e-4)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 2**32))
@settings(max_examples=30)
def test_erased_rectangles_are_rectangles_inside_of_the_area(height: int, width: int, seed: int) -> None:
    draws = torch.rand(4, 20, generator=torch.Generator().manual_seed(seed))
    for rectangle in erased_rectangles((height, width), draws):
        rows, columns = rectangle.any(1), rectangle.any(0)
        assert torch.equal(rectangle, rows[:, None] & columns)
        for edge in (rows, columns):
            places = edge.nonzero().flatten()
            assert len(places) == places[-1] - places[0] + 1
        assert 0 < rectangle.float().mean() < ERASED_AREA[1] + 1 / height + 1 / width + 1 / (height * width)


def test_the_share_of_erased_pictures() -> None:
    batch = tensors(1000)
    prepare = processor()
    clean = BatchedAugmentation(prepare)(batch)["pixel_values"]
    erased = BatchedAugmentation(prepare, erase=0.3)(batch)["pixel_values"]
    touched = (clean != erased).flatten(1).any(1)
    assert 0.25 < touched.float().mean() < 0.35
    assert (erased[clean != erased] == 0).all()


def test_augmentation_does_not_change_the_data_in_memory() -> None:
    held = tensor_data()
    before = copy.deepcopy(held.pixels)
    tensor_collator()(held.__getitems__(list(range(12))))
    MixupCutmixCollator(tensor_collator(), 4)(held.__getitems__(list(range(12))))
    assert torch.equal(held.pixels, before)


def test_tensors_that_cannot_be_held() -> None:
    with pytest.raises(ValueError, match=r"12 pictures of \(3, 12, 10\) need 0 MB of memory, more than 0.001; raise"):
        PictureTensors.from_dataset(dataset(), processor(), max_megabytes=0.001)
    with pytest.raises(ValueError, match=r"of torch.float32 with 2 labels; needed is uint8 of shape \(pictures"):
        PictureTensors(torch.zeros(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"padding -1 and rotation 0.0 must not be negative, zoom 0.0 in \[0, 1\)"):
        BatchedAugmentation(processor(), padding=-1)


# Mixup and CutMix


def mixing(batch: dict[str, torch.Tensor], num_classes: int, **settings: Any) -> tuple[torch.Tensor, ...]:
    """(pictures before, pictures after, labels after)"""
    inner = BatchedAugmentation(processor())
    mixed = MixupCutmixCollator(inner, num_classes, **settings)(batch)
    return inner(batch)["pixel_values"], mixed["pixel_values"], mixed["labels"]


def each_its_own_class(count: int) -> dict[str, torch.Tensor]:
    return {**tensors(count), "labels": torch.arange(count)}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_sum_to_one(count: int, alphas: tuple[float, float], smoothing: float) -> None:
    *_, labels = mixing(tensors(count), 4, mixup_alpha=alphas[0], cutmix_alpha=alphas[1], label_smoothing=smoothing)
    assert labels.dtype == torch.float32 and labels.shape == (count, 4)
    assert labels.min() >= smoothing / 4 - 1e-6
    assert_close(labels.sum(1), torch.ones(count))


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_mixup_mixes_pictures_as_it_mixes_labels(count: int) -> None:
    before, after, labels = mixing(each_its_own_class(count), count, mixup_alpha=1.0)
    assert_close(after, torch.einsum("ij,jchw->ichw", labels, before), rtol=0, atol=1e-5)
    shares = labels.diagonal()
    assert_close(shares, shares[:1].expand(count)) and 0 < shares[0] < 1
    assert ((labels > 0).sum(1) == 2).all()


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_cutmix_puts_in_a_rectangle_of_the_share_in_the_labels(count: int) -> None:
    batch = each_its_own_class(count)
    boxes = 0
    for epoch in range(5):
        inner = BatchedAugmentation(processor())
        collator = MixupCutmixCollator(inner, count, mixup_alpha=0.0, cutmix_alpha=1.0)
        collator.set_epoch(epoch)
        before, mixed = inner(batch)["pixel_values"], collator(batch)
        for row in range(count):
            changed = (mixed["pixel_values"][row] != before[row]).any(0)
            partner = (row - 1) % count
            assert torch.equal(mixed["pixel_values"][row][:, changed], before[partner][:, changed])
            assert torch.equal(changed, changed.any(1)[:, None] & changed.any(0))
            assert_close(mixed["labels"][row, partner], changed.float().mean(), rtol=0, atol=1e-6)
            boxes += bool(changed.any())
    assert boxes > count


def test_a_batch_of_one_picture_stays_as_it_is() -> None:
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        before, after, labels = mixing(tensors(1), 4, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
        assert_close(before, after)
        assert_close(labels, torch.tensor([[1.0, 0, 0, 0]]))


def test_pictures_with_several_labels_mix_too() -> None:
    many = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
    _, own = mixing(each_its_own_class(4), 4, mixup_alpha=1.0)[1:]
    *_, labels = mixing({**tensors(4), "labels": many}, 3, mixup_alpha=1.0)
    assert_close(labels, own @ many)
    *_, smoothed = mixing({**tensors(4), "labels": many}, 3, mixup_alpha=1.0, label_smoothing=0.2)
    assert_close(smoothed, labels * 0.8 + 0.1)


def test_smoothed_labels_of_an_unmixed_batch_give_the_loss_of_torch() -> None:
    batch, logits = tensors(6), torch.randn(6, 4)
    before, after, labels = mixing(batch, 4, probability=0.0, label_smoothing=0.1)
    assert torch.equal(before, after)
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
    assert_close(torch.nn.functional.cross_entropy(logits, labels), expected)


def test_mixing_happens_as_often_and_in_the_way_asked_for() -> None:
    batch, count = each_its_own_class(3), {"none": 0, "mixup": 0, "cutmix": 0}
    inner = BatchedAugmentation(processor())
    collator = MixupCutmixCollator(inner, 3, mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.6)
    before = inner(batch)["pixel_values"]
    for epoch in range(200):
        collator.set_epoch(epoch)
        kept = (collator(batch)["pixel_values"] == before).float().mean()
        count["none" if kept == 1 else "mixup" if kept < 0.01 else "cutmix"] += 1
    assert 60 < count["none"] < 120 and 40 < count["mixup"] < 80 and 30 < count["cutmix"] < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": 0.0}, r"mixup_alpha 0.0 and cutmix_alpha 0.0: one above 0, none below"),
        ({"cutmix_alpha": -1.0}, r"one above 0, none below"),
        ({"probability": 1.2}, r"probability 1.2 must be in .0, 1., label_smoothing 0.0 in"),
        ({"label_smoothing": 1.0}, r"probability 1.0 must be in .0, 1., label_smoothing 1.0 in"),
    ],
)
def test_mixing_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixupCutmixCollator(PictureCollator(processor()), 4, **arguments)


# In the Trainer


class Linear(torch.nn.Module):
    """Classifies pixels, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * SIZE[0] * SIZE[1], 4)
        self.seen: list[torch.Tensor] = []

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(self.layer(pixel_values.flatten(1)), labels)}


@pytest.mark.parametrize("kind", PATHS)
def test_collators_plug_into_the_trainer(kind: str, tmp_path: Path) -> None:
    collator = MixupCutmixCollator(PATHS[kind][0](), num_classes=4, cutmix_alpha=1.0)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=5,
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )
    model = Linear()
    Trainer(model, arguments, data_collator=collator, train_dataset=PATHS[kind][1]()).train()
    assert [len(pixels) for pixels in model.seen] == [5, 5, 2, 5, 5, 2]
