"""DETR's set loss: each box finds its query (Hungarian matching), and the query learns its class and its place.

logits (layers, b, q, c) and boxes (layers, b, q, 4) of all decoder layers → one cost tensor (layers, b, q, targets)
→ one assignment a picture and layer → cross-entropy or focal loss of all queries, L1 and GIoU of the matched ones
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from .boxes import cxcywh_to_xyxy, elementwise_generalized_box_iou

Labels = list[dict[str, torch.Tensor]]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
EDGE = 1e-3  # by which a box may reach beyond the picture: rounding of pixels to fractions


@dataclass
class Denoising:
    """What the noised queries of a batch said, and what is right.

    logits: (layers, batch, m, classes); boxes: (layers, batch, m, 4) cxcywh.
    classes: (batch, m), the right ones; -1 for a slot that is only padding.
    targets: (batch, m, 4), the right boxes.
    groups: how many noised copies of the labels there are.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    classes: torch.Tensor
    targets: torch.Tensor
    groups: int


def detr_loss(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: Labels,
    config: Any,
    num_items_in_batch: torch.Tensor | None = None,
    denoising: Denoising | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of Carion et al. 2020, sections 3.1 and A.2, in float32 at least under any dtype.

    L1 and GIoU are sums over the matched queries, divided by the number of boxes. Cross-entropy is the mean over all
    queries, those without an object weighted by `eos_coefficient`; focal loss is a sum divided by the number of boxes.
    Of a picture with more boxes than queries, all count as boxes, also those that find no query.

    Args:
        logits: (layers, batch, queries, classes) of the layers that learn, the last one last.
        boxes: (layers, batch, queries, 4) cxcywh, fractions of the visible picture.
        labels: `class_labels` (n,) and `boxes` (n, 4) of each picture.
        config: costs and coefficients, and `class_loss`.
        num_items_in_batch: (3,) sums of `count_items` over all batches and processes of an optimizer step; by default
            of this batch and, where gradients are wanted, the mean over processes, since DDP averages them.
        denoising: what noised queries said.

    Returns:
        The weighted sum over all layers, and the unweighted terms by name, detached: `loss_ce`, `loss_bbox`,
        `loss_giou` (`loss_ce_0` ... of the layers before the last, `loss_dn_ce` ... of the noised queries),
        `class_error`, percent of the matched queries with another class, and `cardinality_error`, by how many the
        number of objects is wrong.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, boxes = _precise(logits), _precise(boxes)
        classes, targets = _targets_of_queries(match(logits, boxes, labels, config), labels, boxes)
        queries = logits.shape[2]
        items = _items(labels, queries, num_items_in_batch, boxes.device)
        number = items[0].clamp(min=1)
        found = _terms(logits, boxes, classes, targets, config, number, _class_weight(items, queries, config))
        loss = _weighted(found, config)
        terms = _named(found, "")
        if denoising is not None:
            own = _terms(
                _precise(denoising.logits),
                _precise(denoising.boxes),
                denoising.classes.expand(len(logits), -1, -1),
                denoising.targets.to(boxes).expand(len(logits), -1, -1, -1),
                config,
                number * denoising.groups,
                number * denoising.groups,
                counted=denoising.classes >= 0,
            )
            loss = loss + _weighted(own, config)
            terms |= _named(own, "dn_")
        with torch.no_grad():
            terms |= _errors(logits[-1], classes[-1], labels, config)
        return loss, terms


# --- matching --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def match(logits: torch.Tensor, boxes: torch.Tensor, labels: Labels, config: Any) -> Pairs:
    """The cheapest assignment of each picture's boxes to its queries, for every layer (Carion et al. 2020, eq. 1).

    Args:
        logits: (layers, batch, queries, classes).
        boxes: (layers, batch, queries, 4) cxcywh.
        labels: `class_labels` (n,) and `boxes` (n, 4) of each picture.
        config: `class_cost`, `box_cost`, `giou_cost` and `class_loss`.

    Returns:
        For each picture queries and the targets that they get, both (layers, min(queries, n)) on the CPU.

    Raises:
        ValueError: if a prediction is not finite.
        ImportError: without scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f"training a detector needs scipy, which cannot be imported ({error}): pip install scipy"
        ) from error
    numbers = [len(label["class_labels"]) for label in labels]
    costs = _costs(_precise(logits), _precise(boxes), labels, max(numbers, default=0), config).cpu()
    if not costs.isfinite().all():
        raise ValueError(
            "the model predicts boxes or classes that are not finite numbers: training has diverged; use a lower "
            "learning_rate or max_grad_norm, and look at the loss before this step"
        )
    tables = costs.numpy()
    pairs = []
    for picture, number in enumerate(numbers):
        found = [linear_sum_assignment(table) for table in tables[:, picture, :, :number]]
        queries, targets = zip(*found, strict=True)
        pairs.append(
            (
                torch.tensor([list(row) for row in queries], dtype=torch.long).view(len(costs), -1),
                torch.tensor([list(row) for row in targets], dtype=torch.long).view(len(costs), -1),
            )
        )
    return pairs


def _costs(logits: torch.Tensor, boxes: torch.Tensor, labels: Labels, most: int, config: Any) -> torch.Tensor:
    """(layers, batch, queries, most targets); targets that a picture does not have cost anything."""
    classes = torch.zeros(len(labels), most, dtype=torch.long)
    targets = torch.full((len(labels), most, 4), 0.5, dtype=boxes.dtype)
    for picture, label in enumerate(labels):
        number = len(label["class_labels"])
        classes[picture, :number] = label["class_labels"]
        targets[picture, :number] = label["boxes"]
    classes, targets = classes.to(boxes.device), targets.to(boxes.device)
    chosen = classes[None, :, None].expand(*logits.shape[:3], -1)
    if config.class_loss == "focal":
        shares = logits.sigmoid()
        alpha, gamma = config.focal_alpha, config.focal_gamma
        no = (1 - alpha) * shares**gamma * -torch.log(1 - shares + 1e-8)
        yes = alpha * (1 - shares) ** gamma * -torch.log(shares + 1e-8)
        class_cost = (yes - no).gather(-1, chosen)
    else:
        class_cost = -logits.softmax(dim=-1).gather(-1, chosen)
    distance = torch.cdist(boxes, targets.expand(len(boxes), -1, -1, -1), p=1)
    overlap = elementwise_generalized_box_iou(
        cxcywh_to_xyxy(boxes).unsqueeze(-2), cxcywh_to_xyxy(targets)[None, :, None]
    )
    return config.class_cost * class_cost + config.box_cost * distance - config.giou_cost * overlap


def _targets_of_queries(pairs: Pairs, labels: Labels, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(layers, batch, queries) classes, -1 without an object, and (layers, batch, queries, 4) boxes."""
    classes = torch.full(boxes.shape[:3], -1, dtype=torch.long)
    targets = torch.full(boxes.shape, 0.5, dtype=boxes.dtype)
    for picture, ((queries, found), label) in enumerate(zip(pairs, labels, strict=True)):
        own_classes, own_boxes = label["class_labels"].cpu(), label["boxes"].cpu().to(boxes.dtype)
        layers = torch.arange(len(queries)).unsqueeze(-1)
        classes[layers, picture, queries] = own_classes[found].long()
        targets[layers, picture, queries] = own_boxes[found]
    return classes.to(boxes.device), targets.to(boxes.device)


# --- the loss --------------------------------------------------------------------------------------------------------


def _terms(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    targets: torch.Tensor,
    config: Any,
    number: torch.Tensor,
    class_weight: torch.Tensor,
    counted: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """(layers,) of each term. `counted` (batch, queries): whose classes count; by default all."""
    matched = classes >= 0
    if config.class_loss == "focal":
        per_query = _focal(logits, classes, config).sum(dim=-1)
    else:
        empty = logits.shape[-1] - 1
        weight = logits.new_ones(logits.shape[-1])
        weight[empty] = config.eos_coefficient
        right = torch.where(matched, classes, empty)
        per_query = nn.functional.cross_entropy(logits.flatten(0, 2), right.flatten(), weight, reduction="none").view(
            classes.shape
        )
    if counted is not None:
        per_query = per_query * counted
    distance = (boxes - targets).abs().sum(dim=-1)
    overlap = elementwise_generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    return {
        "ce": per_query.flatten(1).sum(-1) / class_weight,
        "bbox": (distance * matched).flatten(1).sum(-1) / number,
        "giou": ((1 - overlap) * matched).flatten(1).sum(-1) / number,
    }


def _focal(logits: torch.Tensor, classes: torch.Tensor, config: Any) -> torch.Tensor:
    """(..., classes) sigmoid focal loss (Lin et al. 2017, equation 5) of (...) classes, -1 for none."""
    right = nn.functional.one_hot(classes.clamp(min=0), logits.shape[-1]) * (classes >= 0).unsqueeze(-1)
    right = right.to(logits.dtype)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
    shares = logits.sigmoid()
    missed = shares + right - 2 * shares * right  # 1 - p of what is right
    alpha = 1 - config.focal_alpha + (2 * config.focal_alpha - 1) * right
    return alpha * missed**config.focal_gamma * losses


def count_items(labels: Labels, queries: int) -> torch.Tensor:
    """(3,) what a batch's loss is divided by: its boxes, those of them that find a query, and its pictures."""
    numbers = [len(label["class_labels"]) for label in labels]
    return torch.tensor([sum(numbers), sum(min(number, queries) for number in numbers), len(numbers)])


def _items(
    labels: Labels, queries: int, num_items_in_batch: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """(3,) float64 of `count_items`, of all that is learned from at once."""
    if num_items_in_batch is not None:
        return torch.as_tensor(num_items_in_batch, dtype=torch.float64).to(device)
    items = count_items(labels, queries).double().to(device)
    if distributed.is_available() and distributed.is_initialized() and torch.is_grad_enabled():
        distributed.all_reduce(items)
        items = items / distributed.get_world_size()
    return items


def _class_weight(items: torch.Tensor, queries: int, config: Any) -> torch.Tensor:
    """What the sum of the class losses is divided by: boxes under focal loss, else the weights of all queries."""
    boxes, matched, pictures = items
    if config.class_loss == "focal":
        return boxes.clamp(min=1)
    return matched * (1 - config.eos_coefficient) + config.eos_coefficient * queries * pictures


def _weighted(terms: dict[str, torch.Tensor], config: Any) -> torch.Tensor:
    return (
        config.class_loss_coefficient * terms["ce"]
        + config.box_loss_coefficient * terms["bbox"]
        + config.giou_loss_coefficient * terms["giou"]
    ).sum()


def _named(terms: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    last = len(terms["ce"]) - 1
    return {
        f"loss_{prefix}{name}" + ("" if layer == last else f"_{layer}"): value.detach()
        for name, values in terms.items()
        for layer, value in enumerate(values)
    }


def _errors(logits: torch.Tensor, classes: torch.Tensor, labels: Labels, config: Any) -> dict[str, torch.Tensor]:
    """Of (batch, queries, classes) logits: percent of wrong classes, and how many objects too many or too few."""
    matched = classes >= 0
    right = (logits.argmax(dim=-1) == classes) & matched
    numbers = torch.tensor([float(len(label["class_labels"])) for label in labels], device=logits.device)
    if config.class_loss == "focal":
        said = (logits.sigmoid().amax(dim=-1) > 0.5).sum(dim=-1)
    else:
        said = (logits.argmax(dim=-1) != logits.shape[-1] - 1).sum(dim=-1)
    return {
        "class_error": 100 - 100 * right.sum() / matched.sum().clamp(min=1),
        "cardinality_error": (said - numbers).abs().mean(),
    }


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


# --- labels ----------------------------------------------------------------------------------------------------------


def check_labels(labels: Labels, num_labels: int, batch_size: int) -> None:
    """Refuse labels that would teach something wrong. Their values are looked at on the CPU alone: a GPU would wait.

    Raises:
        ValueError: that names the first wrong value, the picture, the rule and the remedy.
    """
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, dict) for label in labels):
        raise ValueError(f"labels are {type(labels).__name__}; they must be a list with a dictionary for each picture")
    if len(labels) != batch_size:
        raise ValueError(f"there are labels of {len(labels)} pictures for {batch_size} pictures; give as many")
    for place, label in enumerate(labels):
        picture = f"image_id {label['image_id'].flatten()[0].item()}" if "image_id" in label else f"number {place}"
        _check_label(label, f"picture {picture}", num_labels)


def _check_label(label: dict[str, torch.Tensor], picture: str, num_labels: int) -> None:
    for name in ("class_labels", "boxes"):
        if not isinstance(label.get(name), torch.Tensor):
            raise ValueError(
                f"the label of {picture} has no tensor {name!r}, only {', '.join(label)}; the image processor makes it"
            )
    classes, boxes = label["class_labels"], label["boxes"]
    if classes.ndim != 1 or classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(
            f"class_labels of {picture} are {tuple(classes.shape)} {classes.dtype}; they must be (n,) whole numbers"
        )
    if boxes.shape != (len(classes), 4) or not boxes.is_floating_point():
        raise ValueError(
            f"boxes of {picture} are {tuple(boxes.shape)} {boxes.dtype} for {len(classes)} class_labels; they must be "
            f"({len(classes)}, 4) floats, also (0, 4) where there is no object"
        )
    if not len(classes) or classes.device.type != "cpu" or boxes.device.type != "cpu":
        return
    _check_classes(classes, picture, num_labels)
    _check_boxes(boxes, picture)


def _check_classes(classes: torch.Tensor, picture: str, num_labels: int) -> None:
    wrong = classes[(classes < 0) | (classes >= num_labels)]
    if not len(wrong):
        return
    value, message = wrong[0].item(), f"it is not in 0..{num_labels - 1}: the model has {num_labels} classes"
    if value == num_labels:
        remedy = (
            f'; {num_labels} means "no object", which the model adds by itself. Do the classes count from 1? Subtract '
            f"1, or set num_labels to the largest class + 1 = {value + 1}"
        )
    else:
        remedy = ", which count from 0; set num_labels to the largest class + 1, or renumber the classes"
    raise ValueError(f"class label {value} of {picture}: {message}{remedy}")


def _check_boxes(boxes: torch.Tensor, picture: str) -> None:
    def refuse(wrong: torch.Tensor, rule: str) -> None:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            values = ", ".join(f"{value:.6g}" for value in boxes[row].tolist())
            raise ValueError(f"box {row} ({values}) of {picture} {rule}")

    refuse(~boxes.isfinite().all(-1), "is not four finite numbers; check the annotation")
    refuse(
        (boxes > 2).any(-1),
        "is in pixels; boxes are fractions of the picture: divide x and width by its width, y and height by its "
        "height, or have the image processor make the labels",
    )
    centre, size = boxes[:, :2], boxes[:, 2:]
    as_xyxy = (size > centre).all(-1) & ((boxes >= 0) & (boxes <= 1 + EDGE)).all(-1)
    beyond = (centre - size / 2 < -EDGE).any(-1) | (centre + size / 2 > 1 + EDGE).any(-1)
    refuse(
        beyond & as_xyxy,
        "reaches beyond the picture as centre, width and height, and would not as left, top, right, bottom: boxes are "
        "(centre x, centre y, width, height); convert them by boxes.xyxy_to_cxcywh",
    )
    refuse((size <= 0).any(-1), "has a width or height that is not above 0; leave the box out")
    refuse(beyond, "reaches beyond the picture, whose sides are 0 and 1; clip it to the picture")
