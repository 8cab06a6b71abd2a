"""A picture means the same whatever it comes in: a file, a PIL picture of any mode, an array or a tensor."""

import base64

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from hf_attn.image_processing_inputs import list_pictures, read_picture
from hf_attn.image_processing_resize import to_tensor

HEIGHT, WIDTH = 6, 9


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read(picture, *args, **kwargs) -> torch.Tensor:
    return to_tensor(read_picture(picture, *args, **kwargs))


def exactly(found: torch.Tensor, expected) -> None:
    assert_close(found, torch.as_tensor(expected), rtol=0, atol=0)


# --- PIL pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_a_mode_without_transparency_is_what_pil_converts_it_to(mode):
    picture = Image.fromarray(noise(HEIGHT, WIDTH, 3)).convert(mode)
    exactly(read(picture), np.array(picture.convert("RGB")).transpose(2, 0, 1))
    exactly(read(picture, num_channels=1), np.array(picture.convert("RGB").convert("L"))[None])


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_transparency_is_dropped_as_by_the_readers_of_pil_torchvision_and_transformers(mode):
    picture = Image.fromarray(noise(HEIGHT, WIDTH, 4), "RGBA").convert(mode)
    exactly(read(picture), np.array(picture.convert("RGBA"))[..., :3].transpose(2, 0, 1))


def test_a_palette_with_transparent_colours_is_read_without_a_warning(tmp_path):
    picture = Image.fromarray(noise(HEIGHT, WIDTH, 3)).quantize(16)
    picture.save(tmp_path / "palette.png", transparency=bytes(range(0, 256, 16)))
    exactly(read(tmp_path / "palette.png"), np.array(picture.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "channels"), [("La", 2), ("RGBa", 4)])
def test_colours_multiplied_by_their_opacity_are_divided_again(mode, channels):
    colour = (60,) * (channels - 1) + (120,)
    assert read(Image.new(mode, (2, 2), colour)).unique().tolist() == [
        round(60 * 255 / 120) - 1 + (60 * 255 % 120 == 0)
    ]


def test_a_background_shows_through_what_is_transparent():
    array = noise(HEIGHT, WIDTH, 4)
    colour, opacity = array[..., :3] / 255, array[..., 3:] / 255
    background = np.array([10, 200, 255])
    expected = torch.tensor(255 * colour * opacity + background * (1 - opacity)).permute(2, 0, 1)
    for picture in (Image.fromarray(array), array, torch.tensor(array)):
        found = read(picture, background=background.tolist())
        assert found.dtype == torch.uint8
        assert_close(found.double(), expected, rtol=0, atol=1)
    floats = read(array / np.float32(255), background=background.tolist())
    assert_close(floats.double() * 255, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_keep_their_range_and_their_fineness(mode, tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH))
    levels[0, :2] = 0, 65535
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}
    picture = Image.fromarray(levels.astype(kinds[mode]))
    assert picture.mode == mode
    exactly(read(picture, num_channels=1), (levels / 65535).astype(np.float32)[None])
    assert read(picture).shape == (3, HEIGHT, WIDTH)
    picture.save(tmp_path / "levels.tiff")
    exactly(read(str(tmp_path / "levels.tiff")), read(picture))
    exactly(read(levels.astype(np.uint16)), read(picture))


def test_16_bit_levels_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match="mode I with values from -1 to 65536: they must be 16-bit levels, 0 to 65535"
    ):
        read(Image.fromarray(np.array([[-1, 65536]], dtype=np.int32)))


@pytest.mark.parametrize("scale", [1, 255])
def test_pictures_of_floats_come_in_0_to_1_or_0_to_255(scale):
    values = np.random.default_rng(0).random((HEIGHT, WIDTH)).astype(np.float32)
    values[0, 0] = 1
    found = read(Image.fromarray(values * np.float32(scale)), num_channels=1)
    assert_close(found, torch.tensor(values)[None], rtol=0, atol=0 if scale == 1 else 1e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_whichever_way_the_camera_was_held(orientation, tmp_path):
    array = noise(HEIGHT, WIDTH, 3)
    stored = {  # how the upright picture lies in the file, EXIF 2.3, section 4.6.4
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array.transpose(1, 0, 2)[::-1],
        7: array.transpose(1, 0, 2)[::-1, ::-1],
        8: array.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "picture.png", exif=exif)
    exactly(read(tmp_path / "picture.png"), array.transpose(2, 0, 1))
    with Image.open(tmp_path / "picture.png") as picture:
        before = picture.size
        exactly(read(picture), array.transpose(2, 0, 1))
        assert picture.size == before  # the user's own picture is left alone


def test_an_address_in_base64_is_read(tmp_path):
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "picture.png")
    encoded = base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    exactly(read(f"data:image/png;base64,{encoded}"), noise(HEIGHT, WIDTH, 3).transpose(2, 0, 1))


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(OSError, match=r"cannot identify image file .*words\.png"):
        read(tmp_path / "words.png")


# --- arrays and tensors ----------------------------------------------------------------------------------------------


@given(st.integers(5, 20), st.integers(5, 20), st.sampled_from([1, 3, 4]), st.sampled_from([1, 3]))
def test_arrays_and_tensors_mean_what_the_pil_picture_means(height, width, channels, num_channels):
    array = noise(height, width, channels, seed=height)
    expected = read(Image.fromarray(array.squeeze(-1) if channels == 1 else array), num_channels)
    forms = [array, array.transpose(2, 0, 1), torch.tensor(array), torch.tensor(array).permute(2, 0, 1)]
    if channels == 1:
        forms.append(array[..., 0])
    for form in forms:
        exactly(read(form, num_channels), expected)
    for kind in (np.int32, np.int64, np.uint32, np.uint64, np.int16):
        exactly(read(array.astype(kind), num_channels), expected)
    for kind in (np.float32, np.float64, np.dtype(">f4")):
        array[0, 0] = 255  # at least one value above 1, so that all are grey levels
        whole = read(array, num_channels).float() / 255
        rounding = 0.5 / 255 if channels > 1 and num_channels == 1 else 0  # of the luma of bytes
        assert_close(read(array.astype(kind), num_channels), whole, rtol=0, atol=rounding + 1e-6)
        assert_close(read((array / 255).astype(kind), num_channels), whole, rtol=0, atol=rounding + 1e-6)


def test_floats_in_0_to_1_are_left_alone():
    values = torch.rand(3, HEIGHT, WIDTH)
    exactly(read(values), values)
    exactly(read(values.double()), values)
    exactly(read(values * 0), values * 0)


def test_black_and_white_is_0_and_255():
    exactly(read(np.array([[True, False]]), num_channels=1), np.array([[[255, 0]]], dtype=np.uint8))


def test_read_only_and_reversed_arrays_are_read_and_left_alone():
    array = noise(HEIGHT, WIDTH, 3)
    expected = array.transpose(2, 0, 1).copy()
    array.flags.writeable = False
    exactly(read(array), expected)
    exactly(read(array[::-1]), expected[:, ::-1].copy())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([-0.5, 1.0], "values from -0.5 to 1: they must be grey levels, 0 to 255, or floats"),
        ([0.0, 256.0], "values from 0 to 256"),
        ([0.0, float("nan")], "values from nan to nan"),
        ([0.0, float("inf")], "values from 0 to inf"),
        ([-1, 7], "values from -1 to 7"),
        ([0, 300], "values from 0 to 300"),
        ([1j, 2], "complex"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_other_values_are_refused_with_the_numbers(values, named, kind):
    with pytest.raises(ValueError, match=named):
        read(kind([values]))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((5, 7, 2), r"shape \(5, 7, 2\): it must have 1, 3 or 4 channels"),
        ((5, 7, 9), "it must have 1, 3 or 4 channels"),
        ((7,), r"shape \(7,\): it must have 2 or 3 dimensions, and a batch 4"),
        ((1, 1, 3, 5, 7), "it must have 2 or 3 dimensions"),
        ((0, 7, 3), "picture of 0x7 .* has no pixels"),
        ((3, 5, 0), "picture of 5x0 .* has no pixels"),
        ((0, 0), "picture of 0x0 .* has no pixels"),
        ((3, 7, 3), "channels may come first or last; say input_data_format"),
    ],
)
def test_other_shapes_are_refused_with_the_numbers(shape, named):
    for picture in (np.zeros(shape, dtype=np.uint8), torch.zeros(shape)):
        with pytest.raises(ValueError, match=named):
            read(picture)


def test_an_open_shape_is_read_as_told():
    array = noise(3, 7, 3)
    exactly(read(array, input_data_format="channels_last"), array.transpose(2, 0, 1))
    exactly(read(array, input_data_format="channels_first"), array)
    with pytest.raises(ValueError, match="must have 1, 3 or 4 channels"):
        read(noise(5, 7, 3), input_data_format="channels_first")
    with pytest.raises(ValueError, match="channels_middle"):
        read(array, input_data_format="channels_middle")


def test_a_pil_picture_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match=r"picture of 5x0 .* has no pixels"):
        read(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("thing", [None, 7, {"image": 1}, b"bytes"])
def test_what_is_no_picture_is_refused(thing):
    with pytest.raises(TypeError, match=f"{type(thing).__name__} is no picture; give a path"):
        read(thing)


# --- several ---------------------------------------------------------------------------------------------------------


def test_lists_batches_and_single_pictures_become_one_list_in_order():
    one, two, three = (np.full((3, 5, 7), value, dtype=np.uint8) for value in range(3))
    for images in (
        [one, two, three],
        (one, (two, [three])),
        np.stack([one, two, three]),
        [one, np.stack([two, three])],
    ):
        assert [picture.max() for picture in list_pictures(images)] == [0, 1, 2]
    assert list_pictures(one)[0] is one
    assert len(list_pictures("picture.png")) == 1


@pytest.mark.parametrize("nothing", [[], [[], ()], np.zeros((0, 3, 5, 7))])
def test_no_pictures_at_all_are_refused(nothing):
    with pytest.raises(ValueError, match="no pictures came"):
        list_pictures(nothing)
