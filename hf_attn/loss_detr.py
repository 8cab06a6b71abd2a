"""DETR's set loss: each box finds its query (Hungarian matching), and the query learns its class and its place.

logits (layers, b, q, c) and boxes (layers, b, q, 4) of all decoder layers → one cost tensor (layers, b, q, targets)
→ one assignment a picture and layer → cross-entropy or focal loss of all queries, L1 and GIoU of the matched ones
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed, nn

from .boxes import cxcywh_to_xyxy, elementwise_generalized_box_iou, generalized_box_iou

Labels = Sequence[Mapping[str, torch.Tensor]]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
EDGE = 1e-3  # by which a box may reach beyond the picture: rounding of pixels to fractions
PIXELS = 2  # from here on a number is no fraction of a box that merely reaches beyond the picture


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


class Padded(NamedTuple):
    """The labels of a batch as two tensors beside the predictions; of each picture, the first slots hold its boxes."""

    numbers: list[int]
    classes: torch.Tensor  # (batch, most) int64; other slots: -1
    boxes: torch.Tensor  # (batch, most, 4) cxcywh; other slots: some box


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
        `class_error`, percent of the matched queries with another class (100 where there is none), and
        `cardinality_error`, by how many the number of objects is wrong.

    Raises:
        ValueError: if a prediction is not finite, for labels as `check_labels`, for another num_items_in_batch.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, boxes = _precise(logits), _precise(boxes)
        padded = _pad(labels, boxes)
        classes, targets = _targets_of_queries(_match(logits, boxes, labels, padded, config), padded, boxes)
        number, matched, pictures = _items(labels, num_items_in_batch, logits)
        class_weight = number
        if config.class_loss != "focal":  # the weights of all queries
            class_weight = matched + config.eos_coefficient * (logits.shape[2] * pictures - matched)
            class_weight = class_weight.clamp(min=1e-6)  # 0 where nothing counts
        found = _terms(logits, boxes, classes, targets, config, number, class_weight)
        loss = _weighted(found, config)
        terms = _named(found, "")
        if denoising is not None:
            own = _terms(
                _precise(denoising.logits),
                _precise(denoising.boxes),
                denoising.classes.to(boxes.device).expand(len(logits), -1, -1),
                denoising.targets.to(boxes).expand(len(logits), -1, -1, -1),
                config,
                number * denoising.groups,
                number * denoising.groups,
                only_matched=True,
            )
            loss = loss + _weighted(own, config)
            terms |= _named(own, "dn_")
        with torch.no_grad():
            terms |= _errors(logits[-1], classes[-1], padded, config)
        return loss, terms


# --- matching --------------------------------------------------------------------------------------------------------


def match(logits: torch.Tensor, boxes: torch.Tensor, labels: Labels, config: Any) -> Pairs:
    """The cheapest assignment of each picture's boxes to its queries, for every layer (Carion et al. 2020, eq. 1).

    A GPU is waited for once, for the costs of all layers and pictures. The labels are checked after that, wherever
    they are: the GPU has nothing left to do then.

    Args:
        logits: (layers, batch, queries, classes).
        boxes: (layers, batch, queries, 4) cxcywh.
        labels: `class_labels` (n,) and `boxes` (n, 4) of each picture.
        config: `class_cost`, `box_cost`, `giou_cost` and `class_loss`.

    Returns:
        For each picture queries and the targets that they get, both (layers, min(queries, n)) on the CPU.

    Raises:
        ValueError: if a prediction is not finite, and for labels as `check_labels`.
        ImportError: without scipy.
    """
    return _match(logits, boxes, labels, _pad(labels, boxes), config)


@torch.no_grad()
def _match(logits: torch.Tensor, boxes: torch.Tensor, labels: Labels, padded: Padded, config: Any) -> Pairs:
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f"training a detector needs scipy, which cannot be imported ({error}): pip install scipy"
        ) from error
    costs = _costs(_precise(logits), _precise(boxes), padded, config).cpu()
    _check_values(labels, padded, logits.shape[-1] - (config.class_loss != "focal"))
    if not costs.isfinite().all():
        raise ValueError(
            "the model predicts boxes or classes that are not finite numbers: training has diverged; use a lower "
            "learning_rate or max_grad_norm, and look at the loss before this step"
        )
    tables = costs.numpy()
    pairs = []
    for picture, number in enumerate(padded.numbers):
        # (layers, queries and targets, pairs)
        found = np.array([linear_sum_assignment(table) for table in tables[:, picture, :, :number]], dtype=np.int64)
        pairs.append((torch.from_numpy(found[:, 0]), torch.from_numpy(found[:, 1])))
    return pairs


def _pad(labels: Labels, like: torch.Tensor) -> Padded:
    """On the device and, at least in float32, of the type of `like`. There is a slot even if there are no boxes."""
    numbers = [len(label["class_labels"]) for label in labels]
    most = max([1, *numbers])
    own = labels[0]["boxes"].device  # one copy to another device, not one for each picture
    classes = torch.full((len(labels), most), -1, device=own)
    boxes = torch.full((len(labels), most, 4), 0.5, device=own, dtype=torch.promote_types(like.dtype, torch.float32))
    for picture, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        if number:
            classes[picture, :number] = label["class_labels"]
            boxes[picture, :number] = label["boxes"]
    return Padded(numbers, classes.to(like.device), boxes.to(like.device))


def _costs(logits: torch.Tensor, boxes: torch.Tensor, padded: Padded, config: Any) -> torch.Tensor:
    """(layers, batch, queries, most targets); targets that a picture does not have cost anything."""
    classes = padded.classes.clamp(0, logits.shape[-1] - 1)[None, :, None].expand(*logits.shape[:3], -1)
    if config.class_loss == "focal":
        shares = logits.gather(-1, classes).sigmoid()
        alpha, gamma = config.focal_alpha, config.focal_gamma
        no = (1 - alpha) * shares**gamma * -torch.log(1 - shares + 1e-8)
        yes = alpha * (1 - shares) ** gamma * -torch.log(shares + 1e-8)
        class_cost = yes - no
    else:
        class_cost = -logits.softmax(dim=-1).gather(-1, classes)
    distance = torch.cdist(boxes, padded.boxes.to(boxes.dtype).expand(len(boxes), -1, -1, -1), p=1)
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(padded.boxes))
    return config.class_cost * class_cost + config.box_cost * distance - config.giou_cost * overlap


def _targets_of_queries(pairs: Pairs, padded: Padded, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(layers, batch, queries) classes, -1 without an object, and (layers, batch, queries, 4) boxes."""
    slots = torch.full(boxes.shape[:3], -1)
    for picture, (queries, targets) in enumerate(pairs):
        slots[:, picture].scatter_(1, queries, targets)
    slots = slots.to(boxes.device)
    place = slots.clamp(min=0)
    classes = padded.classes.expand(len(boxes), -1, -1).gather(2, place).where(slots >= 0, -1)
    targets = padded.boxes.expand(len(boxes), -1, -1, -1).gather(2, place.unsqueeze(-1).expand(-1, -1, -1, 4))
    return classes, targets


# --- the loss --------------------------------------------------------------------------------------------------------


def _terms(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    targets: torch.Tensor,
    config: Any,
    number: torch.Tensor,
    class_weight: torch.Tensor,
    only_matched: bool = False,
) -> dict[str, torch.Tensor]:
    """(layers,) of each term. `only_matched`: queries without an object do not learn that they have none."""
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
    if only_matched:
        per_query = per_query * matched
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


def _items(labels: Labels, num_items_in_batch: torch.Tensor | None, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`count_items` of all that is learned from at once, the boxes at least 1, as numbers of the logits' type."""
    processes = 1
    if num_items_in_batch is None:
        items = count_items(labels, logits.shape[2]).to(logits.device)
        if distributed.is_available() and distributed.is_initialized() and torch.is_grad_enabled():
            distributed.all_reduce(items)
            processes = distributed.get_world_size()
    else:
        items = torch.as_tensor(num_items_in_batch).to(logits.device)
        if items.shape != (3,):
            raise ValueError(
                f"num_items_in_batch has the shape {tuple(items.shape)}; it must be (3,), the sum of "
                "count_items(labels, num_queries) over all batches and processes of an optimizer step"
            )
    boxes, matched, pictures = items.to(logits.dtype)
    return boxes.clamp(min=1) / processes, matched / processes, pictures / processes


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


def _errors(logits: torch.Tensor, classes: torch.Tensor, padded: Padded, config: Any) -> dict[str, torch.Tensor]:
    """Of (batch, queries, classes) logits: percent of wrong classes, and how many objects too many or too few."""
    matched = classes >= 0
    right = (logits.argmax(dim=-1) == classes) & matched
    if config.class_loss == "focal":
        said = (logits.sigmoid().amax(dim=-1) > 0.5).sum(dim=-1)
    else:
        said = (logits.argmax(dim=-1) != logits.shape[-1] - 1).sum(dim=-1)
    numbers = (padded.classes >= 0).sum(dim=-1)
    return {
        "class_error": 100 - 100 * right.sum() / matched.sum().clamp(min=1),
        "cardinality_error": (said - numbers).abs().float().mean(),
    }


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


# --- labels ----------------------------------------------------------------------------------------------------------


def check_labels(labels: Labels, num_labels: int, batch_size: int) -> None:
    """Refuse labels that would teach something wrong.

    Values are looked at only if all labels are on the CPU, for a GPU would be waited for; `match` looks at those.

    Raises:
        ValueError: that names the first wrong value, the picture, the rule and the remedy.
    """
    if not isinstance(labels, (list, tuple)):
        raise ValueError(f"labels are a {type(labels).__name__}; give a list with a dictionary for each picture")
    for place, label in enumerate(labels):
        if not isinstance(label, Mapping):
            raise ValueError(f"the label of picture number {place} is a {type(label).__name__}; give a dictionary")
    if len(labels) != batch_size:
        raise ValueError(f"there are labels of {len(labels)} pictures for {batch_size} pictures; give as many")
    for place, label in enumerate(labels):
        _check_tensors(label, place)
    on_cpu = all(label[name].device.type == "cpu" for label in labels for name in ("class_labels", "boxes"))
    if labels and on_cpu and not torch.compiler.is_compiling():
        _check_values(labels, _pad(labels, labels[0]["boxes"]), num_labels)


def _check_tensors(label: Mapping[str, torch.Tensor], place: int) -> None:
    def refuse(what: str, rule: str) -> None:
        raise ValueError(f"{what} of {_picture(label, place)}{rule}")

    for name in ("class_labels", "boxes"):
        if name not in label:
            found = ", ".join(label) or "nothing"
            refuse("the label", f" has no {name!r}, only {found}; the image processor makes it from annotations")
        if not isinstance(label[name], torch.Tensor):
            refuse(name, f" are a {type(label[name]).__name__}; make a tensor of it")
    classes, boxes = label["class_labels"], label["boxes"]
    if classes.ndim != 1 or classes.is_floating_point() or classes.dtype == torch.bool:
        rule = f" are {tuple(classes.shape)} {classes.dtype}; they must be (n,) whole numbers, such as torch.int64"
        refuse("class_labels", rule)
    if boxes.shape != (len(classes), 4):
        rule = (
            f" are {tuple(boxes.shape)} for {len(classes)} class_labels; they must be ({len(classes)}, 4), a row for "
        )
        refuse("boxes", rule + "each class, and (0, 4) where there is no object")
    if not boxes.is_floating_point():
        rule = (
            f" are {boxes.dtype}; they must be floats, fractions of the picture: divide pixels by its width and height"
        )
        refuse("boxes", rule)


def _picture(label: Mapping[str, torch.Tensor], place: int) -> str:
    """What a message calls it; only for messages, for it reads a value."""
    if "image_id" not in label:
        return f"picture number {place}"
    own = label["image_id"]
    return "picture image_id " + ", ".join(
        map(str, own.flatten().tolist() if isinstance(own, torch.Tensor) else [own])
    )


def _check_values(labels: Labels, padded: Padded, num_labels: int) -> None:
    """Of all pictures at once."""
    classes, boxes = padded.classes.cpu(), padded.boxes.cpu()
    present = torch.arange(classes.shape[1]) < torch.tensor(padded.numbers).unsqueeze(-1)

    def refuse(wrong: torch.Tensor, rule: str) -> None:
        wrong = wrong & present
        if wrong.any():
            place, row = wrong.nonzero()[0].tolist()
            values = ", ".join(f"{value:.6g}" for value in boxes[place, row].tolist())
            raise ValueError(f"box {row} ({values}) of {_picture(labels[place], place)} {rule}")

    _check_classes(labels, classes, present, num_labels)
    refuse(~boxes.isfinite().all(-1), "is not four finite numbers; check the annotation")
    refuse(
        (boxes > PIXELS).any(-1),
        "is in pixels; boxes are fractions of the picture: divide x and width by its width, y and height by its "
        "height, or have the image processor make the labels",
    )
    edge = max(EDGE, *(torch.finfo(label["boxes"].dtype).eps for label in labels))
    centre, size = boxes.split(2, dim=-1)
    as_xyxy = (size > centre).all(-1) & ((boxes >= -edge) & (boxes <= 1 + edge)).all(-1)
    beyond = (centre - size / 2 < -edge).any(-1) | (centre + size / 2 > 1 + edge).any(-1)
    refuse(
        beyond & as_xyxy,
        "reaches beyond the picture as centre, width and height, and would not as left, top, right, bottom: boxes are "
        "(centre x, centre y, width, height); convert them by boxes.xyxy_to_cxcywh",
    )
    refuse((size <= 0).any(-1), "has a width or height that is not above 0; leave the box out")
    refuse(beyond, "reaches beyond the picture, whose sides are 0 and 1; clip it to the picture")


def _check_classes(labels: Labels, classes: torch.Tensor, present: torch.Tensor, num_labels: int) -> None:
    wrong = present & ((classes < 0) | (classes >= num_labels))
    if not wrong.any():
        return
    place, row = wrong.nonzero()[0].tolist()
    value = int(classes[place, row])
    if value == num_labels:
        remedy = (
            f'; {num_labels} means "no object", which the model adds by itself. Do the classes count from 1? Subtract '
            f"1, or set num_labels to the largest class + 1 = {value + 1}"
        )
    else:
        remedy = ", which count from 0; set num_labels to the largest class + 1, or renumber the classes"
    raise ValueError(
        f"class label {value} of {_picture(labels[place], place)}: it is not in 0..{num_labels - 1}: the model has "
        f"{num_labels} classes{remedy}"
    )
