"""Boxes: there and back, and overlaps equal to torchvision's."""

import pytest
import torch
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hf_attn.boxes import (
    box_area,
    box_iou,
    cxcywh_to_xyxy,
    elementwise_generalized_box_iou,
    generalized_box_iou,
    grid_of_boxes,
    xyxy_to_cxcywh,
)

shares = st.floats(0.01, 1.0)


@given(st.lists(st.tuples(shares, shares, shares, shares), min_size=1, max_size=5))
def test_there_and_back(boxes):
    boxes = torch.tensor(boxes, dtype=torch.float64)
    assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def random_boxes(number: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return cxcywh_to_xyxy(torch.rand(number, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2)


def test_overlaps_equal_torchvisions():
    boxes, others = random_boxes(6, 0), random_boxes(9, 1)
    assert_close(box_area(boxes), torchvision.ops.box_area(boxes))
    assert_close(box_iou(boxes, others)[0], torchvision.ops.box_iou(boxes, others))
    assert_close(generalized_box_iou(boxes, others), torchvision.ops.generalized_box_iou(boxes, others))


def test_elementwise_is_the_diagonal_of_pairwise():
    boxes, others = random_boxes(7, 2), random_boxes(7, 3)
    assert_close(elementwise_generalized_box_iou(boxes, others), generalized_box_iou(boxes, others).diagonal())


def test_giou_of_equal_boxes_is_one_and_of_distant_ones_nearly_minus_one():
    box, far = torch.tensor([0.0, 0.0, 0.01, 0.01]), torch.tensor([0.99, 0.99, 1.0, 1.0])
    assert elementwise_generalized_box_iou(box, box) == 1
    assert elementwise_generalized_box_iou(box, far) < -0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_boxes_are_computed_in_float32(dtype):
    boxes, others = random_boxes(3, 4).to(dtype), random_boxes(3, 5).to(dtype)
    for one in (cxcywh_to_xyxy, xyxy_to_cxcywh, box_area):
        assert_close(one(boxes), one(boxes.float()), rtol=0, atol=0)
    for pairs in (generalized_box_iou, elementwise_generalized_box_iou, lambda a, b: box_iou(a, b)[0]):
        assert_close(pairs(boxes, others), pairs(boxes.float(), others.float()), rtol=0, atol=0)


def test_pairs_may_have_any_dimensions_before_them():
    boxes, others = random_boxes(24, 6).view(2, 3, 4, 4), random_boxes(15, 7).view(3, 5, 4)
    overlaps = generalized_box_iou(boxes, others)
    assert overlaps.shape == box_iou(boxes, others)[0].shape == (2, 3, 4, 5)
    assert_close(overlaps[1, 2], torchvision.ops.generalized_box_iou(boxes[1, 2], others[2]))
    assert generalized_box_iou(boxes, others[:, :0]).shape == (2, 3, 4, 0)


def test_gradients_of_giou_equal_torchvisions():
    boxes, others = random_boxes(6, 8).requires_grad_(), random_boxes(6, 9)
    (gradient,) = torch.autograd.grad(elementwise_generalized_box_iou(boxes, others).sum(), boxes)
    expected = torch.autograd.grad(torchvision.ops.generalized_box_iou(boxes, others).diagonal().sum(), boxes)
    assert_close(gradient, *expected)


def test_a_box_turned_inside_out_has_no_area():
    assert box_area(torch.tensor([0.6, 0.2, 0.4, 0.8])) == box_area(torch.tensor([0.6, 0.8, 0.4, 0.2])) == 0


@pytest.mark.parametrize("number", [1, 2, 7, 16, 300])
def test_a_grid_covers_the_square_evenly(number):
    boxes = grid_of_boxes(number, 0.25)
    assert boxes.shape == (number, 4) and (boxes[:, 2:] == 0.25).all()
    centres = boxes[:, :2].double()
    assert_close(centres.mean(dim=0), torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=0.08)
    anywhere = torch.cartesian_prod(*[torch.linspace(0, 1, 41, dtype=torch.float64)] * 2)
    farthest = torch.cdist(anywhere, centres).amin(dim=1).max()
    assert farthest < 1.2 / number**0.5  # of a square of that area the corner is 0.71 away
    assert len(centres.unique(dim=0)) == number
