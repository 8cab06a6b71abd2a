"""Boxes as four numbers each, and how far they overlap. All functions compute in float32 at least, and return it."""

from itertools import pairwise

import torch


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) centre x, centre y, width, height → left, top, right, bottom"""
    centre, size = _precise(boxes).split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) left, top, right, bottom → centre x, centre y, width, height"""
    low, high = _precise(boxes).split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) xyxy → (...); a box with right before left, or bottom above top, has none."""
    return _area(*_edges(boxes))


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection over union of each box with each other one.

    Args:
        boxes: (..., n, 4) xyxy.
        others: (..., m, 4) xyxy.

    Returns:
        (..., n, m) intersection over union, and the areas of the unions.
    """
    intersection, union, _ = _overlap(boxes.unsqueeze(-2), others.unsqueeze(-3))
    return intersection / union, union


def generalized_box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """GIoU of each of (..., n, 4) xyxy boxes with each of (..., m, 4) others: (..., n, m)."""
    return elementwise_generalized_box_iou(boxes.unsqueeze(-2), others.unsqueeze(-3))


def elementwise_generalized_box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """IoU less the share of the smallest box around both that neither covers (Rezatofighi et al. 2019, algorithm 1).

    Args:
        boxes, others: (..., 4) xyxy, of shapes that broadcast.

    Returns:
        (...) from -1, far apart, to 1, equal.
    """
    intersection, union, hull = _overlap(boxes, others)
    return intersection / union - (hull - union) / hull


def _overlap(boxes: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Areas of what both cover, of what either covers, and of the smallest box around both."""
    left, top, right, bottom = _edges(boxes)
    other_left, other_top, other_right, other_bottom = _edges(others)
    low, high = torch.minimum, torch.maximum
    intersection = _area(
        high(left, other_left), high(top, other_top), low(right, other_right), low(bottom, other_bottom)
    )
    hull = _area(low(left, other_left), low(top, other_top), high(right, other_right), high(bottom, other_bottom))
    union = _area(left, top, right, bottom) + _area(other_left, other_top, other_right, other_bottom) - intersection
    return intersection, union, hull


def _edges(boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(..., 4) → four tensors (...), each on its own in memory, which makes many pairs three times as fast on a CPU"""
    return _precise(boxes).movedim(-1, 0).contiguous().unbind()


def _area(left: torch.Tensor, top: torch.Tensor, right: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    return (right - left).clamp(min=0) * (bottom - top).clamp(min=0)


def _precise(boxes: torch.Tensor) -> torch.Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def grid_of_boxes(number: int, side: float) -> torch.Tensor:
    """(number, 4) cxcywh of boxes with this side, their centres spread over the unit square in even rows."""
    rows = max(1, round(number**0.5))
    ends = [number * row // rows for row in range(rows + 1)]
    centres = [
        ((place + 0.5) / (end - start), (row + 0.5) / rows)
        for row, (start, end) in enumerate(pairwise(ends))
        for place in range(end - start)
    ]
    return torch.cat([torch.tensor(centres), torch.full((number, 2), side)], dim=-1)
