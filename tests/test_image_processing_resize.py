"""torch resizes as PIL does, whatever the sizes; the crop keeps the middle, and padding is on the right and below."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from hf_attn.image_processing_resize import (
    RESAMPLING,
    center_crop,
    pad_pictures,
    resize_like_pil,
    resize_weights,
    resize_with_pil,
    resize_with_torch,
    resized_size,
    size_before_crop,
    size_between_edges,
    size_within_frame,
)

FILTERS = [resample for resample in RESAMPLING if resample != Image.Resampling.NEAREST]
EDGES = st.integers(1, 70)


def noise(height: int, width: int, batch: int = 1, contrast: bool = False) -> torch.Tensor:
    """(batch, 3, height, width) bytes; with contrast only 0 and 255, where filters overshoot most."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    values = torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    return (values > 127).to(torch.uint8) * 255 if contrast else values


def with_pil(picture: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(image.resize(size[::-1], resample))).permute(2, 0, 1)


@pytest.mark.parametrize("resample", RESAMPLING)
@given(EDGES, EDGES, EDGES, EDGES, st.booleans())
@settings(max_examples=60)
def test_the_written_out_filters_give_pil_s_bytes(resample, height, width, new_height, new_width, contrast):
    pictures, size = noise(height, width, 2, contrast), (new_height, new_width)
    resize = resize_with_torch if resample == Image.Resampling.NEAREST else resize_like_pil
    found = resize(pictures, size, resample)
    assert found.dtype == torch.uint8
    for picture, resized in zip(pictures, found, strict=True):
        assert_close(resized, with_pil(picture, size, resample), rtol=0, atol=0)


@pytest.mark.parametrize("resample", RESAMPLING)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((224, 300), (224, 224)),
        ((301, 127), (96, 96)),
        ((33, 500), (64, 48)),
        ((28, 28), (224, 224)),
        ((500, 40), (32, 99)),
    ],
)
def test_the_kernel_that_is_used_stays_within_one_grey_level(resample, old, new):
    pictures = noise(*old)
    found = resize_with_torch(pictures, new, resample)[0]
    assert_close(found.int(), with_pil(pictures[0], new, resample).int(), rtol=0, atol=1)


@pytest.mark.parametrize("resample", RESAMPLING)
@given(EDGES, EDGES, EDGES, EDGES)
@settings(max_examples=30)
def test_floats_are_resized_alike_without_becoming_bytes(resample, height, width, new_height, new_width):
    picture = noise(height, width)[0].float() / 255
    size = (new_height, new_width)
    by_pil = resize_with_pil(picture, size, resample)
    by_torch = resize_with_torch(picture[None], size, resample)[0]
    assert by_pil.dtype == by_torch.dtype == torch.float32
    assert_close(by_torch, by_pil, rtol=0, atol=1e-5)
    assert by_torch.min() >= 0 and by_torch.max() <= 1


@pytest.mark.parametrize("resample", FILTERS)
@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=30)
def test_each_new_pixel_is_a_mean_of_old_ones_and_the_same_size_is_the_identity(resample, old, new):
    weights = resize_weights(old, new, resample)
    assert weights.shape == (new, old)
    assert_close(weights.sum(1), torch.ones(new, dtype=torch.float64))
    assert_close(resize_weights(old, old, resample), torch.eye(old, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_picture_of_the_right_size_is_left_as_it_is():
    pictures = noise(8, 9)
    assert resize_with_torch(pictures, (8, 9), Image.Resampling.BICUBIC) is pictures


@given(EDGES, EDGES, EDGES, EDGES)
def test_covering_and_fitting_in_keep_proportions(height, width, target_height, target_width):
    target = (target_height, target_width)
    covered = resized_size((height, width), target, "shortest_edge")
    assert covered[0] >= target[0] and covered[1] >= target[1]
    assert covered[0] == target[0] or covered[1] == target[1]
    fitted = resized_size((height, width), target, "longest_edge")
    assert 1 <= fitted[0] <= target[0] and 1 <= fitted[1] <= target[1]
    assert fitted[0] == target[0] or fitted[1] == target[1]
    for resized in (covered, fitted):  # off by less than a pixel
        assert abs(resized[0] * width - resized[1] * height) <= max(height, width)
    assert resized_size((height, width), target, "exact") == target


def test_a_picture_too_thin_to_cover_a_square_is_refused():
    with pytest.raises(ValueError, match=r"picture of 1x100000 .* would become 248x24800000, .*'longest_edge'"):
        resized_size((1, 100_000), (248, 248), "shortest_edge")
    assert resized_size((1, 100_000), (248, 248), "longest_edge") == (1, 248)


MANY_PIXELS = st.integers(1, 6000)


@given(MANY_PIXELS, MANY_PIXELS, st.integers(1, 1500), st.none() | st.integers(1, 2000))
@settings(max_examples=500)
def test_sizes_between_edges_are_those_of_transformers(height, width, shortest_edge, longest_edge):
    expected = get_size_with_aspect_ratio((height, width), shortest_edge, longest_edge)
    if expected[0] * expected[1] <= Image.MAX_IMAGE_PIXELS:
        assert size_between_edges((height, width), shortest_edge, longest_edge) == (
            max(expected[0], 1),
            max(expected[1], 1),
        )


@given(MANY_PIXELS, MANY_PIXELS, st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=300)
def test_sizes_within_a_frame_are_those_of_transformers(height, width, max_height, max_width):
    expected = get_image_size_for_max_height_width((height, width), max_height, max_width)
    assert size_within_frame((height, width), max_height, max_width) == (max(expected[0], 1), max(expected[1], 1))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((400, 1600), (333, 1333)),
        ((800, 1200), (800, 1200)),
        ((500, 500), (800, 800)),
        ((1, 5000), (1, 1333)),  # transformers': 0 rows
    ],
)
def test_the_shortest_edge_unless_the_longest_were_exceeded(size, expected):
    assert size_between_edges(size, 800, 1333) == expected


def test_a_picture_too_thin_for_a_shortest_edge_alone_is_refused():
    with pytest.raises(ValueError, match=r"picture of 1x100000 .* would become 248x24800000, .*give a longest_edge"):
        size_between_edges((1, 100_000), 248)


@pytest.mark.parametrize(
    ("size", "crop_pct", "expected"),
    [((224, 224), 0.9, (248, 248)), ((224, 112), 0.875, (256, 128)), ((7, 7), 1.0, (7, 7))],
)
def test_the_size_before_the_crop_is_rounded_down(size, crop_pct, expected):
    assert size_before_crop(size, crop_pct) == expected


@given(EDGES, EDGES, EDGES, EDGES, st.sampled_from(["round", "floor"]))
def test_the_crop_keeps_the_middle_and_fills_the_rest(height, width, new_height, new_width, crop_offset):
    pictures = torch.ones(2, 3, height, width)
    pictures[..., height // 2, width // 2] = 5
    fill = torch.tensor([2.0, 3.0, 4.0])
    cropped = center_crop(pictures, (new_height, new_width), fill, crop_offset)
    assert cropped.shape == (2, 3, new_height, new_width)
    seen = min(height, new_height) * min(width, new_width)
    for channel, value in enumerate([2.0, 3.0, 4.0]):
        assert (cropped[:, channel] == value).sum() == 2 * (new_height * new_width - seen)
    if new_height > 1 and new_width > 1:
        row, column = (cropped[0, 0] == 5).nonzero()[0].tolist()
        assert abs(row - new_height / 2) <= 1 and abs(column - new_width / 2) <= 1


@pytest.mark.parametrize(("crop_offset", "first"), [("round", [0, 0, 1, 2, 2, 2]), ("floor", [0, 0, 1, 1, 2, 2])])
def test_half_a_pixel_goes_to_the_even_neighbour_or_up_and_left(crop_offset, first):
    for surplus, expected in enumerate(first):
        line = torch.arange(4 + surplus).float().view(1, 1, -1)
        assert center_crop(line, (1, 4), torch.zeros(1), crop_offset)[0, 0, 0] == expected


@given(st.lists(st.tuples(EDGES, EDGES), min_size=1, max_size=4), st.none() | st.tuples(EDGES, EDGES))
def test_padding_is_on_the_right_and_below_and_not_in_the_mask(sizes, padded_size):
    pictures = [torch.rand(2, *size) + 1 for size in sizes]
    height, width = (max(edges) for edges in zip(*sizes, strict=True))
    if padded_size is not None and (padded_size[0] < height or padded_size[1] < width):
        named = f"up to {height}x{width} .* cannot be padded to {padded_size[0]}x{padded_size[1]}; raise pad_size"
        with pytest.raises(ValueError, match=named):
            pad_pictures(pictures, padded_size)
        return
    padded, mask = pad_pictures(pictures, padded_size)
    assert padded.shape == (len(sizes), 2, *(padded_size or (height, width)))
    assert mask.dtype == torch.int64
    for picture, values, visible in zip(pictures, padded, mask, strict=True):
        assert_close(values[:, : picture.shape[1], : picture.shape[2]], picture, rtol=0, atol=0)
        assert torch.equal(values[0] > 0, visible == 1)


@pytest.mark.parametrize("pictures", [[], [torch.zeros(3, 4)], [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)]])
def test_what_cannot_be_one_batch_is_not_padded(pictures):
    with pytest.raises(
        ValueError, match=r"do not fit into one batch; give one or more of \(channels, height, width\)"
    ):
        pad_pictures(pictures)
