"""Denoising queries (Li et al. 2022, "DN-DETR"): in training, noised labels are queries too, to be set right.

Each group is a noised copy of all labels. What a query is to find is known without matching, so that the decoder
learns from the first step what boxes are. In inference there are none.
"""

from typing import NamedTuple

import torch

from .boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from .configuration_detr import AttnDetrConfig


class NoisedQueries(NamedTuple):
    """Queries of all groups of a batch, the groups one after the other. Pictures with fewer boxes have empty slots; a
    group has one even in a batch without boxes, so that what only these queries pass has a gradient in every step, as
    processes that train together expect."""

    noised_classes: torch.Tensor  # (batch, m) int64; empty slots: 0
    noised_boxes: torch.Tensor  # (batch, m, 4) cxcywh in [0, 1]
    group: torch.Tensor  # (m,) int64, from 1
    classes: torch.Tensor  # (batch, m) int64: the right ones; empty slots: -1
    boxes: torch.Tensor  # (batch, m, 4): the right ones


@torch.no_grad()
def noised_queries(labels: list[dict[str, torch.Tensor]], config: AttnDetrConfig, device) -> NoisedQueries:
    """Copies of the labels with another class here and there, and edges moved.

    Args:
        labels: `class_labels` (n,) and `boxes` (n, 4) of each picture.
    """
    most = max([1, *(len(label["class_labels"]) for label in labels)])
    own = labels[0]["boxes"].device  # one copy to another device, not one for each picture
    classes = torch.full((len(labels), most), -1, dtype=torch.long, device=own)
    boxes = torch.full((len(labels), most, 4), 0.5, device=own)
    for row, label in enumerate(labels):
        number = len(label["class_labels"])
        if number:
            classes[row, :number] = label["class_labels"]
            boxes[row, :number] = label["boxes"]
    classes = classes.repeat(1, config.denoising_groups).to(device)
    boxes = boxes.repeat(1, config.denoising_groups, 1).to(device)
    group = torch.arange(1, config.denoising_groups + 1, device=device).repeat_interleave(most)

    drawn = torch.randint_like(classes, config.num_labels)
    is_noised = torch.rand(classes.shape, device=device) < config.denoising_label_noise
    # Wrong labels on a GPU are found later, by `loss_detr.match`, and until then must not be looked up
    noised_classes = torch.where(is_noised, drawn, classes).clamp(0, config.num_labels - 1)
    halves = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) / 2
    moves = (2 * torch.rand(boxes.shape, device=device) - 1) * config.denoising_box_noise
    edges = (cxcywh_to_xyxy(boxes) + moves * halves).clamp(0, 1)
    return NoisedQueries(noised_classes, xyxy_to_cxcywh(edges), group, classes, boxes)
