"""A picture of any size, everywhere and without a flag: positions and patch kernels are resampled, not begun anew."""

import copy
import threading

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import interpolate
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForImageClassification

from hf_attn import (
    AttnViTBackbone,
    AttnViTConfig,
    AttnViTForImageClassification,
    AttnViTForMaskedImageModeling,
    AttnViTModel,
)
from tests.tiny import randomise, tiny_vit

SIZES = [(32, 32), (48, 48), (16, 16), (24, 40), (40, 24), (8, 8), (32, 64)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def pictures(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def positions_by_timm(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(old rows, old columns, hidden) → (rows, columns, hidden)"""
    old = positions.shape[:2]
    flat = positions.detach().flatten(0, 1).unsqueeze(0)
    resampled = resample_abs_pos_embed(flat, [rows, columns], list(old), num_prefix_tokens=0)
    return resampled.reshape(rows, columns, -1)


def places(model: AttnViTForImageClassification, height: int, width: int) -> torch.Tensor:
    """(rows, columns, hidden): what the model adds to the patches of a picture without anything on it."""
    embeddings = model.model.embeddings
    empty = torch.zeros(1, 3, height, width)
    tokens = embeddings(empty)[0, model.config.num_prefix_tokens :]
    return (tokens - embeddings.patch_embedding.bias).unflatten(0, model.model.patch_grid(height, width))


# --- forward ---------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("native", [32, (16, 48)], ids=str)
@torch.no_grad()
def test_positions_are_resampled_as_in_timm(native, size):
    model = tiny_vit(image_size=native)
    expected = positions_by_timm(model.model.embeddings.positions, size[0] // 8, size[1] // 8)
    for _ in range(2):  # made, then taken from where they are kept
        assert_close(places(model, *size), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_half_precision_positions_are_resampled_in_float32():
    positions = tiny_vit(image_size=56).model.embeddings.positions.to(torch.bfloat16)
    model = tiny_vit(image_size=56).to(torch.bfloat16)
    model.model.embeddings.patch_embedding.weight.zero_()
    model.model.embeddings.patch_embedding.bias.zero_()
    expected = positions_by_timm(positions, 4, 6)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(places(model, 32, 48), expected)


@sizes
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoids", "none"])
@torch.no_grad()
def test_any_multiple_of_the_patch_is_a_size(position_embedding, size):
    model = tiny_vit(position_embedding=position_embedding)
    outputs = model(pictures(*size), output_hidden_states=True, output_attentions=True)
    rows, columns = size[0] // 8, size[1] // 8
    assert model.model.patch_grid(*size) == (rows, columns)
    assert outputs.logits.shape == (2, 3)
    assert outputs.hidden_states[-1].shape == (2, 1 + rows * columns, 16)
    assert outputs.attentions[-1].shape == (2, 2, 1 + rows * columns, 1 + rows * columns)


@torch.no_grad()
def test_patches_lie_row_by_row():
    model = tiny_vit(position_embedding="none")
    picture = torch.zeros(1, 3, 24, 40)
    picture[:, :, 8:16, 32:40] = 1.0  # second row, last column
    tokens = model.model.embeddings(picture)[0, 1:]
    different = (tokens != tokens[0]).any(dim=-1)
    assert different.nonzero().tolist() == [[1 * 5 + 4]]


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
@torch.no_grad()
def test_sinusoids_are_big_vision_s(shape):
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    omega = 1.0 / 10_000.0 ** (np.arange(16 // 4) / (16 // 4 - 1))
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    found = places(tiny_vit(position_embedding="sinusoids"), rows * 8, columns * 8)
    assert_close(found.flatten(0, 1), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


# --- what is kept stays true -----------------------------------------------------------------------------------------


def moved_by_optimizer(positions: torch.nn.Parameter) -> None:
    positions.grad = torch.ones_like(positions)
    torch.optim.SGD([positions], lr=1.0).step()


def moved_by_data(positions: torch.nn.Parameter) -> None:
    positions.data.mul_(3.0)  # as averages of weights are often swapped in


def exchanged(positions: torch.nn.Parameter) -> None:
    positions.data = positions.data * 3.0


def moved_in_place(positions: torch.nn.Parameter) -> None:
    positions.mul_(3.0)


@pytest.mark.parametrize("move", [moved_by_optimizer, moved_by_data, exchanged, moved_in_place])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_resampled_positions_follow_the_weights(move, guard):
    model = tiny_vit()
    with guard():
        before = places(model, 48, 24)
    with torch.no_grad():
        move(model.model.embeddings.positions)
    with guard():
        after = places(model, 48, 24)
    assert_close(after, positions_by_timm(model.model.embeddings.positions, 6, 3), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=0.1)


def test_resampled_positions_follow_loaded_weights_and_another_precision():
    model, other = tiny_vit(), tiny_vit(seed=1)
    with torch.no_grad():
        model(pictures(48, 24))
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(pictures(48, 24)).logits, other(pictures(48, 24)).logits)
        model.double()
        assert_close(model(pictures(48, 24)).logits.float(), other(pictures(48, 24)).logits)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_training_goes_on_after_looking_without_gradients(guard):
    model = tiny_vit()
    with guard():
        expected = model(pictures(48, 24)).logits
    logits = model.train()(pictures(48, 24)).logits
    logits.square().sum().backward()
    assert_close(logits.detach(), expected)
    assert (model.model.embeddings.positions.grad.abs() > 0).all()
    assert_close(model.eval()(pictures(48, 24)).logits.detach(), expected)


@torch.no_grad()
def test_a_copy_keeps_nothing_of_the_other_model():
    model = tiny_vit()
    expected = model(pictures(48, 24)).logits
    copied = copy.deepcopy(model)
    assert torch.equal(copied(pictures(48, 24)).logits, expected)
    copied.model.embeddings.positions.zero_()
    assert not torch.allclose(copied(pictures(48, 24)).logits, expected, atol=1e-3)
    assert torch.equal(model(pictures(48, 24)).logits, expected)


@torch.no_grad()
def test_what_is_kept_is_not_saved_and_does_not_grow_without_end(tmp_path):
    model = tiny_vit()
    before = list(model.state_dict())
    for columns in range(1, 60):
        model(pictures(8, 8 * columns, batch=1))
    assert list(model.state_dict()) == before
    assert len(model.model.embeddings.resampled.kept) <= 16


@torch.no_grad()
def test_two_threads_with_two_sizes_do_not_mix_them_up():
    model = tiny_vit()
    wanted = {size: model(pictures(*size)).logits for size in SIZES}
    wrong: list[tuple[int, int]] = []

    def look(size: tuple[int, int]) -> None:
        with torch.no_grad():
            if any(not torch.equal(model(pictures(*size)).logits, wanted[size]) for _ in range(20)):
                wrong.append(size)

    threads = [threading.Thread(target=look, args=(size,)) for size in SIZES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what the patches do not fill ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_class", [AttnViTForImageClassification, AttnViTForMaskedImageModeling, AttnViTBackbone]
)
@pytest.mark.parametrize("size", [(44, 50), (32, 33), (7, 8)], ids=str)
def test_a_size_that_the_patches_do_not_fill_is_named(model_class, size):
    model = model_class(tiny_vit().config)
    message = f"{size[0]}x{size[1]} .*is not a multiple of patch_size 8x8; .*pad_to_patch=True"
    with pytest.raises(ValueError, match=message):
        model(pictures(*size))


@pytest.mark.parametrize(("size", "padded"), [((44, 50), (48, 56)), ((32, 32), (32, 32)), ((1, 9), (8, 16))], ids=str)
@torch.no_grad()
def test_or_it_is_padded_on_the_right_and_below(size, padded):
    model, strict = tiny_vit(pad_to_patch=True), tiny_vit()
    whole = torch.zeros(2, 3, *padded)
    whole[..., : size[0], : size[1]] = pictures(*size)
    assert torch.equal(model(pictures(*size)).logits, strict(whole).logits)
    assert model.model.patch_grid(*size) == (padded[0] // 8, padded[1] // 8)


@pytest.mark.parametrize("size", [(44, 50), (32, 32)], ids=str)
def test_padding_is_not_reconstructed_and_does_not_count(size):
    config = tiny_vit(pad_to_patch=True).config
    model = randomise(AttnViTForMaskedImageModeling(config)).eval()
    rows, columns = model.model.patch_grid(*size)
    masked = torch.ones(2, rows * columns, dtype=torch.bool)
    outputs = model(pictures(*size), bool_masked_pos=masked)
    assert outputs.reconstruction.shape == (2, 3, *size)
    assert_close(outputs.loss, (outputs.reconstruction - pictures(*size)).abs().mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\), but must be \(batch, channels, height, width\) with 3 channels"),
        (torch.zeros(1, 4, 32, 32), r"\(1, 4, 32, 32\).* with 3 channels"),
        (torch.zeros(1, 32, 32, 3), r"\(1, 32, 32, 3\).* with 3 channels"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8, but must be normalised floats"),
        (torch.zeros(1, 3, 0, 32), "0x32"),
    ],
    ids=lambda value: str(list(value.shape)) if isinstance(value, torch.Tensor) else "",
)
def test_what_is_no_batch_of_pictures_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit()(wrong)


# --- compiled and exported -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_compilation_serves_any_size():
    torch.compiler.reset()
    model, counter = tiny_vit(num_hidden_layers=1), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in ((48, 40), (24, 64), (40, 16), (16, 72)):
        assert_close(compiled(pictures(*size)).logits, model(pictures(*size)).logits, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


@torch.no_grad()
def test_compiled_without_saying_so_a_second_size_makes_it_dynamic():
    torch.compiler.reset()
    model, counter = tiny_vit(num_hidden_layers=1), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for size in ((32, 32), (48, 40), (24, 64), (40, 16), (16, 72)):
        assert_close(compiled(pictures(*size)).logits, model(pictures(*size)).logits, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 3


@torch.no_grad()
def test_a_wrong_size_is_named_after_compiling_too():
    torch.compiler.reset()
    compiled = torch.compile(tiny_vit(num_hidden_layers=1), dynamic=True, backend="eager")
    compiled(pictures(48, 40))
    with pytest.raises(ValueError, match=r"44x50 .*is not a multiple of patch_size 8x8"):
        compiled(pictures(44, 50))


@pytest.mark.parametrize("fields", [{}, {"position_embedding": "sinusoids", "pooling": "mean"}], ids=str)
@torch.no_grad()
def test_exported_for_any_size_and_any_batch(fields):
    model = tiny_vit(**fields)
    rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64), 2: 8 * rows, 3: 8 * columns}}
    exported = torch.export.export(model, (pictures(40, 24),), dynamic_shapes=dynamic).module()
    for size in ((32, 32), (48, 40), (16, 72)):
        expected = model(pictures(*size, batch=3)).logits
        assert_close(exported(pictures(*size, batch=3))["logits"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_exported_for_one_size_it_needs_no_resampling():
    model = tiny_vit()
    exported = torch.export.export(model, (pictures(32, 32),))
    assert not any("upsample" in str(node.target) for node in exported.graph.nodes)
    assert_close(exported.module()(pictures(32, 32))["logits"], model(pictures(32, 32)).logits)


# --- loading for another picture or patch ----------------------------------------------------------------------------


def load_for(directory, model_class=AttnViTForImageClassification, **sizes):
    """The model, having asserted that every weight of it came from the checkpoint."""
    model, report = model_class.from_pretrained(directory, output_loading_info=True, **sizes)
    assert {name: len(found) for name, found in report.items() if found} == {}
    return model


@pytest.mark.parametrize("size", [48, 16, [24, 40], (64, 32)], ids=str)
@pytest.mark.parametrize("model_class", [AttnViTForImageClassification, AutoModelForImageClassification])
def test_loaded_for_another_picture_positions_are_resampled(tmp_path, size, model_class):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    loaded = load_for(tmp_path, model_class, image_size=size)
    rows, columns = loaded.config.grid_shape
    positions = loaded.model.embeddings.positions
    assert positions.shape == (rows, columns, 16)
    assert_close(positions.data, positions_by_timm(model.model.embeddings.positions, rows, columns))
    ours, theirs = dict(loaded.named_parameters()), dict(model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "model.embeddings.positions")
    picture = pictures(rows * 8, columns * 8)
    assert_close(loaded(picture).logits, model(picture).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch", [4, 16, [8, 4], (2, 16)], ids=str)
def test_loaded_for_another_patch_kernel_and_positions_are_resampled(tmp_path, patch):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    loaded = load_for(tmp_path, patch_size=patch)
    old, new = model.model.embeddings, loaded.model.embeddings
    kernel = resample_patch_embed(old.patch_embedding.weight.data, list(loaded.config.patch_shape))
    assert_close(new.patch_embedding.weight.data, kernel, rtol=1e-4, atol=1e-5)
    assert_close(new.positions.data, positions_by_timm(old.positions, *loaded.config.grid_shape))
    assert torch.equal(new.patch_embedding.bias, old.patch_embedding.bias)


def test_a_picture_enlarged_with_its_patches_looks_the_same(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    larger = load_for(tmp_path, image_size=64, patch_size=16)
    picture = pictures(32, 32)
    patches = picture.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    enlarged = interpolate(patches, scale_factor=2, mode="bicubic", antialias=True)  # each patch by itself
    enlarged = enlarged.unflatten(0, (2, 4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    assert_close(larger(enlarged).logits, model(picture).logits, rtol=1e-4, atol=1e-4)


def test_a_config_asks_for_another_size_as_well(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    config = AttnViTConfig.from_pretrained(tmp_path, image_size=(16, 64))
    loaded = load_for(tmp_path, config=config)
    assert_close(loaded.model.embeddings.positions.data, positions_by_timm(model.model.embeddings.positions, 2, 8))


@pytest.mark.parametrize("model_class", [AttnViTModel, AutoModel, AttnViTBackbone, AttnViTForMaskedImageModeling])
def test_every_model_is_loaded_for_another_size(tmp_path, model_class):
    own = AttnViTModel if model_class is AutoModel else model_class
    model = randomise(own(tiny_vit().config))
    model.save_pretrained(tmp_path)
    patch = 8 if own is AttnViTForMaskedImageModeling else 4  # its decoder has as many outputs as a patch has pixels
    loaded = load_for(tmp_path, model_class, image_size=48, patch_size=patch)
    for name, parameter in loaded.named_parameters():
        expected = model.get_parameter(name).data
        if name.endswith("embeddings.positions"):
            expected = positions_by_timm(expected, *loaded.config.grid_shape)
        elif name.endswith("patch_embedding.weight"):
            expected = resample_patch_embed(expected, [patch, patch])
        assert_close(parameter.data, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_classifier_s_weights_serve_every_model_at_another_size(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    for model_class in (AttnViTModel, AttnViTBackbone):
        loaded, report = model_class.from_pretrained(tmp_path, image_size=48, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        positions = positions_by_timm(model.model.embeddings.positions, 6, 6)
        assert_close(loaded.embeddings.positions.data, positions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_resampled_in_float32_too(tmp_path, dtype):
    model = tiny_vit().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = load_for(tmp_path, image_size=48, patch_size=4)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    old, new = model.model.embeddings, loaded.model.embeddings
    assert torch.equal(new.positions, positions_by_timm(old.positions, 12, 12))
    kernel = resample_patch_embed(old.patch_embedding.weight.data, [4, 4])
    assert_close(new.patch_embedding.weight.data, kernel, rtol=0.02, atol=0.01)


def test_resampled_on_loading_it_is_saved_as_it_is(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "small")
    large = load_for(tmp_path / "small", image_size=64, patch_size=4)
    large.save_pretrained(tmp_path / "large")
    again = load_for(tmp_path / "large")
    assert again.config.grid_shape == (16, 16)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), large.parameters(), strict=True))


def test_loaded_onto_a_device_map_positions_are_resampled_too(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    loaded = load_for(tmp_path, image_size=48, device_map={"": "cpu"})
    assert_close(loaded.model.embeddings.positions.data, positions_by_timm(model.model.embeddings.positions, 6, 6))


def test_other_channels_are_no_other_size(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AttnViTForImageClassification.from_pretrained(tmp_path, num_channels=1)
