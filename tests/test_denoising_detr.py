"""Denoising queries: copies of the labels within the noise's bounds, which tell the other queries nothing."""

import pytest
import torch
from torch.testing import assert_close

from hf_attn import AttnDetrConfig
from hf_attn.boxes import cxcywh_to_xyxy
from hf_attn.denoising_detr import NoisedQueries, noised_queries
from hf_attn.loss_detr import Denoising, detr_loss
from tests.tiny import DETR_LABELS, DETR_VARIANTS, padded_pictures, tiny_detr

EMPTY = DETR_LABELS[1]
SIZES = [(64, 96), (96, 64), (48, 48)]
denoising = pytest.mark.parametrize("variant", ["denoising", "all"])


def settings(groups: int = 2, **fields) -> AttnDetrConfig:
    return AttnDetrConfig(num_labels=9, denoising_groups=groups, **fields)


# --- the noise -------------------------------------------------------------------------------------------------------


def test_each_group_is_a_copy_of_all_labels():
    noised = noised_queries(DETR_LABELS, settings(groups=3), "cpu")
    assert noised.group.tolist() == [1, 1, 2, 2, 3, 3]
    assert noised.classes.tolist() == [[0, 2] * 3, [-1, -1] * 3, [1, -1] * 3]
    for group in (1, 2, 3):
        own = noised.group == group
        assert torch.equal(noised.boxes[0, own], DETR_LABELS[0]["boxes"])
        assert torch.equal(noised.boxes[2, own][:1], DETR_LABELS[2]["boxes"])
    assert noised.noised_boxes.shape == noised.boxes.shape == (3, 6, 4)
    assert not torch.equal(noised.noised_boxes[0, :2], noised.noised_boxes[0, 2:4])  # each with noise of its own


def test_without_noise_the_copies_are_the_labels():
    config = settings(denoising_label_noise=0, denoising_box_noise=0)
    noised = noised_queries(DETR_LABELS, config, "cpu")
    assert torch.equal(noised.noised_classes, noised.classes.clamp(min=0))
    assert_close(noised.noised_boxes, noised.boxes)


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_edges_move_by_half_a_width_or_height_times_the_noise_at_most(noise):
    # DN-DETR, section 4.3: centres by |Δx| < λ w / 2, and widths from (1 - λ) w to (1 + λ) w
    label = {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}
    noised = noised_queries([label], settings(groups=5000, denoising_box_noise=noise), "cpu")
    halves = torch.tensor([0.1, 0.2])
    moves = cxcywh_to_xyxy(noised.noised_boxes[0]) - cxcywh_to_xyxy(label["boxes"])
    shares = moves / (noise * halves.repeat(2))
    assert 0.99 < shares.abs().max() < 1 + 1e-5
    assert (shares.mean(dim=0).abs() < 0.05).all()
    assert_close(shares.std(dim=0), torch.full((4,), 3**-0.5), rtol=0.05, atol=0)  # uniform
    centres, sizes = noised.noised_boxes[0].split(2, dim=-1)
    assert ((centres - 0.5).abs() <= noise * halves + 1e-6).all()
    assert (sizes >= (1 - noise) * 2 * halves - 1e-6).all() and (sizes <= (1 + noise) * 2 * halves + 1e-6).all()


def test_noised_boxes_stay_in_the_picture():
    corner = {"class_labels": torch.zeros(2).long(), "boxes": torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 1, 1]])}
    noised = noised_queries([corner], settings(groups=500), "cpu")
    edges = cxcywh_to_xyxy(noised.noised_boxes)
    assert edges.min() >= -1e-6 and edges.max() <= 1 + 1e-6
    assert (noised.noised_boxes[..., 2:] > 0).all()


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_that_share_of_the_classes_is_drawn_anew(noise):
    label = {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}
    noised = noised_queries([label], settings(groups=20_000, denoising_label_noise=noise), "cpu")
    counts = noised.noised_classes[0].bincount(minlength=9) / 20_000
    expected = torch.full((9,), noise / 9)  # one in nine is drawn right
    expected[4] += 1 - noise
    assert_close(counts, expected, rtol=0, atol=0.01)
    assert noised.classes[0].eq(4).all()


def test_a_class_that_the_model_does_not_have_is_never_looked_up():
    # on a GPU labels are checked after the forward pass, which a wrong index would have ended without a word of why
    wrong = [{"class_labels": torch.tensor([500, 3]), "boxes": torch.full((2, 4), 0.5)}]
    noised = noised_queries(wrong, settings(denoising_label_noise=0), "cpu")
    assert noised.noised_classes.tolist() == [[8, 3, 8, 3]] and noised.classes.tolist() == [[500, 3, 500, 3]]


def test_pictures_without_boxes_have_empty_slots_and_a_batch_without_boxes_one_a_group():
    noised = noised_queries([EMPTY, EMPTY], settings(groups=3), "cpu")
    assert noised.classes.tolist() == [[-1] * 3] * 2
    assert noised.group.tolist() == [1, 2, 3]
    assert noised.noised_boxes.isfinite().all() and ((noised.noised_classes >= 0) & (noised.noised_classes < 9)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_labels_of_other_precision(dtype):
    label = {"class_labels": torch.tensor([3], dtype=torch.int32), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.25]])}
    noised = noised_queries([{**label, "boxes": label["boxes"].to(dtype)}], settings(), "cpu")
    assert noised.classes.tolist() == [[3, 3]]
    assert noised.noised_boxes.dtype == torch.float32
    assert torch.equal(noised.boxes[0, 0], label["boxes"][0])


def test_the_seed_decides_the_noise():
    def draw(seed: int) -> NoisedQueries:
        torch.manual_seed(seed)
        return noised_queries(DETR_LABELS, settings(), "cpu")

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.equal(draw(1).noised_boxes, draw(2).noised_boxes)


# --- in the model ----------------------------------------------------------------------------------------------------


@denoising
@torch.no_grad()
def test_noised_queries_tell_the_others_nothing(variant):
    model = tiny_detr(**DETR_VARIANTS[variant]).model
    _, pixels, mask = padded_pictures(SIZES)
    noised = noised_queries(DETR_LABELS, model.config, "cpu")
    without, together = model(pixels, mask), model(pixels, mask, noised)
    assert together.intermediate_boxes.shape == (2, 3, 7 + 4, 4)
    for name in ("last_hidden_state", "intermediate_hidden_states", "intermediate_boxes"):
        assert_close(getattr(together, name)[..., :7, :], getattr(without, name), rtol=0, atol=1e-5)


def in_group(noised: NoisedQueries, group: int) -> torch.Tensor:
    """Where a group's queries stand among all, of which the first 7 are matched."""
    return 7 + (noised.group == group).nonzero().flatten()


@denoising
@torch.no_grad()
def test_groups_do_not_see_each_other(variant):
    model = tiny_detr(**DETR_VARIANTS[variant]).model
    _, pixels, mask = padded_pictures(SIZES)
    noised = noised_queries(DETR_LABELS, model.config, "cpu")
    is_first = (noised.group == 1)[None, :]
    other = noised._replace(
        noised_boxes=torch.where(is_first[..., None], 0.9, noised.noised_boxes),
        noised_classes=torch.where(is_first, 1, noised.noised_classes),
    )
    before = model(pixels, mask, noised).intermediate_hidden_states
    after = model(pixels, mask, other).intermediate_hidden_states
    second, first = in_group(noised, 2), in_group(noised, 1)
    real = (noised.classes >= 0)[:, noised.group == 2]
    assert_close(after[:, :, second][:, real], before[:, :, second][:, real], rtol=0, atol=1e-5)
    assert_close(after[:, :, :7], before[:, :, :7], rtol=0, atol=1e-5)
    assert (after[:, 0, first] - before[:, 0, first]).abs().max() > 1e-3


@denoising
@torch.no_grad()
def test_empty_slots_tell_their_own_group_nothing_either(variant):
    model = tiny_detr(**DETR_VARIANTS[variant]).model
    _, pixels, mask = padded_pictures(SIZES)
    noised = noised_queries(DETR_LABELS, model.config, "cpu")
    is_empty = noised.classes < 0
    other = noised._replace(noised_boxes=torch.where(is_empty[..., None], 0.1, noised.noised_boxes))
    before = model(pixels, mask, noised).intermediate_hidden_states
    after = model(pixels, mask, other).intermediate_hidden_states
    there = torch.cat([torch.ones(3, 7, dtype=torch.bool), ~is_empty], dim=1)
    assert_close(after[:, there], before[:, there], rtol=0, atol=1e-5)


@denoising
@torch.no_grad()
def test_noised_queries_read_the_matched_ones_and_their_own_group(variant):
    model = tiny_detr(**DETR_VARIANTS[variant]).model
    noised = noised_queries(DETR_LABELS[:1], model.config, "cpu")
    pixels = torch.randn(1, 3, 64, 64)
    before = model(pixels, None, noised).last_hidden_state[:, 7:]
    alone = noised._replace(classes=torch.where(torch.tensor([True, False] * 2), noised.classes, -1))
    assert (model(pixels, None, alone).last_hidden_state[:, 7] - before[:, 0]).abs().max() > 1e-3
    model.class_embedding.weight[-1] += 1  # what the matched queries begin with
    assert (model(pixels, None, noised).last_hidden_state[:, 7:] - before).abs().max() > 1e-3


@denoising
def test_there_is_noise_in_training_alone_and_with_labels_alone(variant):
    model = tiny_detr(**DETR_VARIANTS[variant])
    pixels = torch.randn(3, 3, 64, 64)
    assert not [name for name in model(pixels, labels=DETR_LABELS).loss_dict if "dn" in name]
    outputs = model.train()(pixels, labels=DETR_LABELS)
    names = {f"loss_dn_{term}{layer}" for term in ("ce", "bbox", "giou") for layer in ("", "_0")}
    assert {name for name in outputs.loss_dict if "dn" in name} == names
    assert outputs.logits.shape[:2] == outputs.pred_boxes.shape[:2] == outputs.last_hidden_state.shape[:2] == (3, 7)
    assert outputs.intermediate_hidden_states.shape == (2, 3, 7, 32)
    assert {one["logits"].shape[:2] for one in outputs.auxiliary_outputs} == {(3, 7)}
    assert model(pixels).logits.shape[:2] == (3, 7)


@denoising
def test_the_loss_is_that_of_the_matched_queries_and_that_of_the_noised_ones(variant):
    model = tiny_detr(**DETR_VARIANTS[variant], frozen_batch_norm=True).train()
    pixels = torch.randn(3, 3, 64, 64)
    torch.manual_seed(7)
    outputs = model(pixels, labels=DETR_LABELS)
    torch.manual_seed(7)
    noised = noised_queries(DETR_LABELS, model.config, "cpu")
    inner = model.model(pixels, None, noised)
    logits, boxes = model.class_head(inner.intermediate_hidden_states), inner.intermediate_boxes
    about = Denoising(logits[:, :, 7:], boxes[:, :, 7:], noised.classes, noised.boxes, groups=2)
    loss, terms = detr_loss(logits[:, :, :7], boxes[:, :, :7], DETR_LABELS, model.config, denoising=about)
    assert_close(outputs.loss, loss)
    assert_close(outputs.loss_dict, terms)


@pytest.mark.parametrize("variant", DETR_VARIANTS)
@pytest.mark.parametrize("labels", [DETR_LABELS, [EMPTY] * 3], ids=["some", "none"])
def test_every_parameter_has_a_gradient_whatever_the_labels(variant, labels):
    # processes that train together wait for the gradient of each parameter
    model = tiny_detr(**DETR_VARIANTS[variant]).train()
    loss = model(torch.randn(3, 3, 64, 64), labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
