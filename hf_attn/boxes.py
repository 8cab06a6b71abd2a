"""Boxes as four numbers each, and how far they overlap. All functions compute in float32 at least."""

import torch


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) centre x, centre y, width, height → left, top, right, bottom"""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) left, top, right, bottom → centre x, centre y, width, height"""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) xyxy → (...); a box with right before left, or bottom above top, has none."""
    sides = (_precise(boxes)[..., 2:] - _precise(boxes)[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection over union of each box with each other one.

    Args:
        boxes: (..., n, 4) xyxy.
        others: (..., m, 4) xyxy.

    Returns:
        (..., n, m) intersection over union, and the areas of the unions.
    """
    intersection, union = _intersection_and_union(boxes.unsqueeze(-2), others.unsqueeze(-3))
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
    boxes, others = _precise(boxes), _precise(others)
    intersection, union = _intersection_and_union(boxes, others)
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    around = (high - low).clamp(min=0)
    hull = around[..., 0] * around[..., 1]
    return intersection / union - (hull - union) / hull


def _intersection_and_union(boxes: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    boxes, others = _precise(boxes), _precise(others)
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    inside = (high - low).clamp(min=0)
    intersection = inside[..., 0] * inside[..., 1]
    return intersection, box_area(boxes) + box_area(others) - intersection


def _precise(boxes: torch.Tensor) -> torch.Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))
