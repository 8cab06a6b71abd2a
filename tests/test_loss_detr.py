"""DETR's loss: equal to the authors' written down naively and to transformers', exact when batches are cut up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.ops
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from hf_attn import AttnDetrConfig
from hf_attn.boxes import cxcywh_to_xyxy
from hf_attn.loss_detr import Denoising, check_labels, count_items, detr_loss, match

CLASSES, QUERIES, LAYERS = 5, 6, 3
NUMBERS = {"some": (2, 0, 3, 1), "none": (0, 0, 0, 0), "too many": (8, 1, 0, 6)}


def some_labels(numbers, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(CLASSES, (number,), generator=generator),
            "boxes": torch.rand(number, 4, generator=generator, dtype=torch.float64).mul(0.3).add(0.3).to(dtype),
        }
        for number in numbers
    ]


def predictions(pictures: int, classes: int, seed: int = 0, dtype=torch.float32, queries: int = QUERIES):
    generator = torch.Generator().manual_seed(100 + seed)
    logits = torch.randn(LAYERS, pictures, queries, classes, generator=generator, dtype=torch.float64)
    boxes = torch.rand(LAYERS, pictures, queries, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    return logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_()


def settings(class_loss: str = "cross_entropy", **fields) -> AttnDetrConfig:
    return AttnDetrConfig(num_labels=CLASSES, class_loss=class_loss, **fields)


def authors_loss(logits, boxes, labels, config):
    """SetCriterion of the authors' code (and Deformable DETR's for the focal loss), loop by loop."""
    number = max(1, sum(len(label["boxes"]) for label in labels))
    total, terms, assignments = 0.0, {}, []
    for layer in range(len(logits)):
        ce, weights, l1, giou = 0.0, 0.0, 0.0, 0.0
        for picture, label in enumerate(labels):
            shares = (
                logits[layer, picture].sigmoid()
                if config.class_loss == "focal"
                else logits[layer, picture].softmax(-1)
            )
            target = cxcywh_to_xyxy(label["boxes"].to(boxes.dtype))
            cost = torch.zeros(logits.shape[2], len(target), dtype=torch.float64)
            for q in range(logits.shape[2]):
                for t in range(len(target)):
                    p = shares[q, label["class_labels"][t]]
                    if config.class_loss == "focal":
                        yes = config.focal_alpha * (1 - p) ** 2 * -torch.log(p + 1e-8)
                        class_cost = yes - (1 - config.focal_alpha) * p**2 * -torch.log(1 - p + 1e-8)
                    else:
                        class_cost = -p
                    box = boxes[layer, picture, q]
                    overlap = torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(box)[None], target[t][None])
                    distance = (box - label["boxes"][t]).abs().sum()
                    cost[q, t] = (
                        config.class_cost * class_cost + config.box_cost * distance - config.giou_cost * overlap
                    )
            rows, columns = linear_sum_assignment(cost.detach().numpy())
            assignments.append((layer, picture, rows.tolist(), columns.tolist()))
            right = torch.full((logits.shape[2],), CLASSES)
            right[torch.tensor(rows, dtype=torch.long)] = label["class_labels"][
                torch.tensor(columns, dtype=torch.long)
            ]
            for q in range(logits.shape[2]):
                if config.class_loss == "focal":
                    onehot = torch.nn.functional.one_hot(right[q], CLASSES + 1)[:-1].to(logits.dtype)
                    ce = ce + torchvision.ops.sigmoid_focal_loss(logits[layer, picture, q], onehot, 0.25, 2.0).sum()
                else:
                    weight = config.eos_coefficient if right[q] == CLASSES else 1.0
                    ce = ce - weight * logits[layer, picture, q].log_softmax(-1)[right[q]]
                    weights += weight
            for q, t in zip(rows, columns, strict=True):
                box = boxes[layer, picture, q]
                l1 = l1 + (box - label["boxes"][t]).abs().sum()
                giou = giou + 1 - torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(box)[None], target[t][None])[0, 0]
        ce = ce / (number if config.class_loss == "focal" else weights)
        name = "" if layer == len(logits) - 1 else f"_{layer}"
        terms |= {f"loss_ce{name}": ce, f"loss_bbox{name}": l1 / number, f"loss_giou{name}": giou / number}
        total = total + config.class_loss_coefficient * ce + 5 * l1 / number + 2 * giou / number
    return total, terms, assignments


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_it_is_the_authors_loss(class_loss, numbers):
    config = settings(class_loss)
    logits, boxes = predictions(4, config.num_class_logits, dtype=torch.float64)
    labels = some_labels(numbers, dtype=torch.float64)
    expected, terms, assignments = authors_loss(logits, boxes, labels, config)
    wanted = torch.autograd.grad(expected, (logits, boxes), allow_unused=True)
    loss, found = detr_loss(logits, boxes, labels, config)
    assert_close(loss, torch.as_tensor(expected))
    for name, value in terms.items():
        assert_close(found[name], torch.as_tensor(value, dtype=torch.float64).detach(), msg=name)
    pairs = match(logits, boxes, labels, config)
    for layer, picture, rows, columns in assignments:
        assert [side[layer].tolist() for side in pairs[picture]] == [rows, columns]
    for mine, other in zip(torch.autograd.grad(loss, (logits, boxes)), wanted, strict=True):
        assert_close(mine, torch.zeros_like(mine) if other is None else other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("numbers", [NUMBERS["some"], NUMBERS["none"]], ids=["some", "none"])
def test_it_equals_transformers(numbers):
    config = settings()
    logits, boxes = predictions(4, CLASSES + 1)
    labels = some_labels(numbers)
    theirs = DetrConfig(num_labels=CLASSES, auxiliary_loss=True, num_queries=QUERIES)
    expected, terms, _ = ForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], theirs, logits, boxes)
    loss, found = detr_loss(logits, boxes, labels, config)
    assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_ce_0", "loss_giou_1"):
        assert_close(found[name], terms[name].detach().float(), rtol=1e-6, atol=1e-6, msg=name)
    mine, other = (torch.autograd.grad(one, (logits, boxes), retain_graph=True) for one in (loss, expected))
    for a, b in zip(mine, other, strict=True):
        assert_close(a, b, rtol=0, atol=1e-5)


def test_matching_equals_transformers():
    logits, boxes = predictions(8, CLASSES + 1, queries=30)
    labels = some_labels([7, 0, 3, 20, 1, 0, 12, 5])
    theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    pairs = match(logits, boxes, labels, settings())
    for layer in range(LAYERS):
        expected = theirs({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels)
        for (queries, targets), (rows, columns) in zip(pairs, expected, strict=True):
            assert queries[layer].tolist() == rows.tolist() and targets[layer].tolist() == columns.tolist()


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_equal_a_large_one(class_loss, parts):
    """Loss and gradients: 1 x 8 = 2 x 4 = 4 x 2, also where a picture has more boxes than there are queries."""
    config = settings(class_loss)
    logits, boxes = predictions(8, config.num_class_logits, dtype=torch.float64)
    labels = some_labels([2, 0, 3, 1, 5, 0, 0, 8], dtype=torch.float64)
    items = count_items(labels, QUERIES)
    assert items.tolist() == [19, 17, 8]
    whole, _ = detr_loss(logits, boxes, labels, config)
    size = 8 // parts
    batches = [slice(first, first + size) for first in range(0, 8, size)]
    cut = sum(detr_loss(logits[:, own], boxes[:, own], labels[own], config, items)[0] for own in batches)
    assert_close(cut, whole, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(one, (logits, boxes), retain_graph=True) for one in (whole, cut)]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=0, atol=1e-10)


TWO_PROCESSES = """
import sys
import torch
from torch import distributed
from tests.test_loss_detr import predictions, settings, some_labels
from hf_attn.loss_detr import detr_loss

distributed.init_process_group("gloo")
rank = distributed.get_rank()
config = settings(sys.argv[1])
numbers = [2, 0, 3, 1, 5, 0, 0, 6]
logits, boxes = predictions(8, config.num_class_logits, dtype=torch.float64)
labels = some_labels(numbers, dtype=torch.float64)
own = slice(4 * rank, 4 * rank + 4)
loss, _ = detr_loss(logits[:, own], boxes[:, own], labels[own], config)
loss.backward()
for gradient in (logits.grad, boxes.grad):  # as DDP does
    distributed.all_reduce(gradient)
    gradient /= 2
total = loss.detach() / 2
distributed.all_reduce(total)
if rank == 0:
    torch.save([total, logits.grad, boxes.grad], sys.argv[2])
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_two_processes_equal_one(class_loss, tmp_path):
    """transformers divides by the number of processes twice."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parent.parent
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *launch, str(script), class_loss, str(tmp_path / "two.pt")],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    config = settings(class_loss)
    logits, boxes = predictions(8, config.num_class_logits, dtype=torch.float64)
    loss, _ = detr_loss(logits, boxes, some_labels([2, 0, 3, 1, 5, 0, 0, 6], dtype=torch.float64), config)
    loss.backward()
    for found, expected in zip(torch.load(tmp_path / "two.pt"), (loss.detach(), logits.grad, boxes.grad), strict=True):
        assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_denoising_needs_no_matching_and_counts_no_padding():
    config = settings("focal", denoising_groups=2)
    logits, boxes = predictions(2, CLASSES, dtype=torch.float64)
    labels = some_labels([2, 1], dtype=torch.float64)
    own_logits, own_boxes = predictions(2, CLASSES, seed=7, dtype=torch.float64, queries=4)
    classes = torch.stack(
        [labels[0]["class_labels"].repeat(2), torch.tensor([labels[1]["class_labels"][0], -1]).repeat(2)]
    )
    targets = torch.full((2, 4, 4), 0.5, dtype=torch.float64)
    targets[0] = labels[0]["boxes"].repeat(2, 1)
    targets[1, [0, 2]] = labels[1]["boxes"]
    denoising = Denoising(own_logits, own_boxes, classes, targets, groups=2)
    plain, _ = detr_loss(logits, boxes, labels, config)
    loss, terms = detr_loss(logits, boxes, labels, config, denoising=denoising)
    expected = 0.0
    for layer in range(LAYERS):
        for picture in range(2):
            for slot in range(4):
                if classes[picture, slot] < 0:
                    continue
                onehot = torch.nn.functional.one_hot(classes[picture, slot], CLASSES).double()
                ce = torchvision.ops.sigmoid_focal_loss(own_logits[layer, picture, slot], onehot, 0.25, 2.0).sum()
                box, right = own_boxes[layer, picture, slot], targets[picture, slot]
                giou = torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(right)[None])[
                    0, 0
                ]
                expected = expected + (ce + 5 * (box - right).abs().sum() + 2 * (1 - giou)) / (3 * 2)
    assert_close(loss - plain, expected)
    assert {"loss_dn_ce", "loss_dn_bbox_0", "loss_dn_giou_1"} <= set(terms)
    (gradient,) = torch.autograd.grad(loss, own_logits)
    assert not gradient[:, 1, [1, 3]].any() and gradient[:, 1, 0].any()


def test_half_precision_and_autocast_are_computed_in_float32():
    config = settings()
    logits, boxes = predictions(4, CLASSES + 1)
    labels = some_labels(NUMBERS["some"])
    half = detr_loss(logits.bfloat16(), boxes.bfloat16(), labels, config)[0]
    assert half.dtype == torch.float32
    expected = detr_loss(logits.bfloat16().float(), boxes.bfloat16().float(), labels, config)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(detr_loss(logits.bfloat16(), boxes.bfloat16(), labels, config)[0], expected, rtol=0, atol=0)


def test_predictions_that_diverged_are_named():
    logits, boxes = predictions(1, CLASSES + 1)
    with pytest.raises(ValueError, match="diverged; use a lower learning_rate"):
        detr_loss(logits * torch.nan, boxes, some_labels([2]), settings())


def labelled(classes, boxes, **more):
    return [{"class_labels": torch.tensor(classes), "boxes": torch.tensor(boxes), **more}]


BOX = [0.5, 0.5, 0.2, 0.2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (labelled([5], [BOX], image_id=torch.tensor([7])), 'label 5 of picture image_id 7.*"no object".*Subtract'),
        (labelled([9], [BOX]), "class label 9 of picture number 0.*not in 0..4.*set num_labels"),
        (labelled([-1], [BOX]), "class label -1"),
        (labelled([1.0], [BOX]), "whole numbers"),
        (labelled([1], [[120.0, 60.0, 40.0, 30.0]]), r"box 0 \(120, 60, 40, 30\).*in pixels.*divide"),
        (labelled([1], [[0.5, 0.5, 0.9, 0.9], ]), None),
        (labelled([1], [[0.1, 0.2, 0.9, 0.8]]), "as left, top, right, bottom.*xyxy_to_cxcywh"),
        (labelled([1], [[0.5, 0.5, -0.1, 0.2]]), "width or height that is not above 0"),
        (labelled([1], [[0.5, 0.5, 0.0, 0.2]]), "width or height that is not above 0"),
        (labelled([1], [[0.9, 0.5, 0.4, 0.2]]), "reaches beyond the picture.*clip"),
        (labelled([1], [[0.5, float("nan"), 0.4, 0.2]]), "not four finite numbers"),
        (labelled([1, 2], [BOX]), r"\(1, 4\).*for 2 class_labels.*\(2, 4\)"),
        ([{"boxes": torch.zeros(0, 4)}], "no tensor 'class_labels'"),
        ([], "labels of 0 pictures for 1"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named_with_their_picture_and_the_remedy(labels, message):
    if message is None:
        check_labels(labels, CLASSES, 1)
    else:
        with pytest.raises(ValueError, match=message):
            check_labels(labels, CLASSES, 1)


def test_boxes_that_touch_the_edges_are_right():
    boxes = [[0.5, 0.5, 1.0, 1.0], [0.05, 0.95, 0.1, 0.1], [0.9995, 0.5, 0.001, 0.3]]
    check_labels(labelled([0, 1, 2], boxes), CLASSES, 1)
