"""DETR's loss: equal to the authors' written down naively and to transformers', exact when batches are cut up."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close
from transformers import DetrConfig, DetrImageProcessor
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from hf_attn import AttnDetrConfig
from hf_attn.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from hf_attn.loss_detr import Denoising, check_labels, count_items, detr_loss, match

ROOT = Path(__file__).parent.parent
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
        hits, pairs, miscounted = 0, 0, 0
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
            said = 0
            for q in range(logits.shape[2]):
                best = int(logits[layer, picture, q].argmax())
                said += bool(shares[q].max() > 0.5) if config.class_loss == "focal" else best != CLASSES
                hits += right[q] != CLASSES and best == right[q]
            pairs += len(rows)
            miscounted += abs(said - len(target))
            for q, t in zip(rows, columns, strict=True):
                box = boxes[layer, picture, q]
                l1 = l1 + (box - label["boxes"][t]).abs().sum()
                giou = giou + 1 - torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(box)[None], target[t][None])[0, 0]
        ce = ce / (number if config.class_loss == "focal" else weights)
        name = "" if layer == len(logits) - 1 else f"_{layer}"
        terms |= {f"loss_ce{name}": ce, f"loss_bbox{name}": l1 / number, f"loss_giou{name}": giou / number}
        total = total + config.class_loss_coefficient * ce + 5 * l1 / number + 2 * giou / number
    terms["class_error"] = 100 - 100 * hits / max(pairs, 1)  # of the last layer
    terms["cardinality_error"] = miscounted / len(labels)
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
    assert set(found) == set(terms)
    for name, value in found.items():
        assert not value.requires_grad and value.shape == ()
        assert_close(value.double(), torch.as_tensor(terms[name], dtype=torch.float64).detach(), msg=name)
    pairs = match(logits, boxes, labels, config)
    for layer, picture, rows, columns in assignments:
        assert [side[layer].tolist() for side in pairs[picture]] == [rows, columns]
    for mine, other in zip(torch.autograd.grad(loss, (logits, boxes)), wanted, strict=True):
        assert_close(mine, torch.zeros_like(mine) if other is None else other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_it_equals_transformers(numbers):
    config = settings()
    logits, boxes = predictions(4, CLASSES + 1)
    labels = some_labels(numbers)
    theirs = DetrConfig(num_labels=CLASSES, auxiliary_loss=True, num_queries=QUERIES)
    expected, terms, _ = ForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], theirs, logits, boxes)
    loss, found = detr_loss(logits, boxes, labels, config)
    assert_close(loss, expected, rtol=1e-6, atol=0)
    assert {name for name in terms if not name.startswith("cardinality_error_")} == set(found) - {"class_error"}
    for name in set(found) - {"class_error"}:
        assert_close(found[name], terms[name].detach().float(), rtol=1e-6, atol=0, msg=name)
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


def noised(labels, classes: int, groups: int = 2) -> Denoising:
    """Every label `groups` times, in slots as many as the picture with most boxes needs."""
    most = max(len(label["boxes"]) for label in labels)
    logits, boxes = predictions(len(labels), classes, seed=7, dtype=torch.float64, queries=groups * most)
    right = torch.full((len(labels), groups, most), -1)
    targets = torch.full((len(labels), groups, most, 4), 0.5, dtype=torch.float64)
    for picture, label in enumerate(labels):
        right[picture, :, : len(label["boxes"])] = label["class_labels"]
        targets[picture, :, : len(label["boxes"])] = label["boxes"]
    return Denoising(logits, boxes, right.flatten(1), targets.flatten(1, 2), groups)


def part_of(denoising: Denoising | None, own: slice) -> Denoising | None:
    if denoising is None:
        return None
    whole = (denoising.logits[:, own], denoising.boxes[:, own], denoising.classes[own], denoising.targets[own])
    return Denoising(*whole, denoising.groups)


@pytest.mark.parametrize("denoised", [False, True], ids=["plain", "denoising"])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_equal_a_large_one(class_loss, parts, denoised):
    """Loss and gradients: 1 x 8 = 2 x 4 = 4 x 2, also where a picture has more boxes than there are queries."""
    config = settings(class_loss)
    logits, boxes = predictions(8, config.num_class_logits, dtype=torch.float64)
    labels = some_labels([2, 0, 3, 1, 5, 0, 0, 8], dtype=torch.float64)
    denoising = noised(labels, config.num_class_logits) if denoised else None
    items = count_items(labels, QUERIES)
    assert items.tolist() == [19, 17, 8]
    whole, _ = detr_loss(logits, boxes, labels, config, denoising=denoising)
    size = 8 // parts
    cut = sum(
        detr_loss(logits[:, own], boxes[:, own], labels[own], config, items, part_of(denoising, own))[0]
        for own in (slice(first, first + size) for first in range(0, 8, size))
    )
    assert_close(cut, whole, rtol=1e-12, atol=0)
    inputs = [logits, boxes, *([denoising.logits, denoising.boxes] if denoising else [])]
    gradients = [torch.autograd.grad(one, inputs, retain_graph=True) for one in (whole, cut)]
    for a, b in zip(*gradients, strict=True):
        assert a.any()
        assert_close(a, b, rtol=0, atol=1e-10)


# Loads the loss without the rest of the package, which takes longer than everything else here.
ONE_OF_TWO_PROCESSES = """
import sys, types
import torch
from torch import distributed

package = sys.modules["hf_attn"] = types.ModuleType("hf_attn")
package.__path__ = [sys.argv[1] + "/hf_attn"]
from hf_attn.loss_detr import count_items, detr_loss

directory, rank = sys.argv[2], int(sys.argv[3])
distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
own = slice(4 * rank, 4 * rank + 4)
results = []
for logits, boxes, labels, config, counted in torch.load(f"{directory}/cases.pt", weights_only=False):
    logits.requires_grad_(), boxes.requires_grad_()
    items = None
    if counted:
        items = count_items(labels[own], logits.shape[2])
        distributed.all_reduce(items)
    loss, _ = detr_loss(logits[:, own], boxes[:, own], labels[own], types.SimpleNamespace(**config), items)
    loss.backward()
    result = [loss.detach(), logits.grad, boxes.grad]
    for value in result:
        distributed.all_reduce(value)
        if not counted:
            value /= 2  # DDP takes the mean over processes
    results.append(result)
if rank == 0:
    torch.save(results, f"{directory}/results.pt")
distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    """With and without counting beforehand; transformers divides by the number of processes twice."""
    cases, expected = [], []
    for class_loss in ("cross_entropy", "focal"):
        for numbers in ([2, 0, 3, 1, 5, 0, 0, 8], [0, 0, 0, 0, 0, 1, 0, 0]):  # fewer boxes than processes
            config = settings(class_loss)
            logits, boxes = predictions(8, config.num_class_logits, dtype=torch.float64)
            labels = some_labels(numbers, dtype=torch.float64)
            loss, _ = detr_loss(logits, boxes, labels, config)
            loss.backward()
            for counted in (False, True):
                cases.append((logits.detach(), boxes.detach(), labels, config.to_dict(), counted))
                expected.append((loss.detach(), logits.grad, boxes.grad))
    torch.save(cases, tmp_path / "cases.pt")
    script = [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(ROOT), str(tmp_path)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*script, str(rank)], env=quiet, stderr=subprocess.PIPE) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    results = torch.load(tmp_path / "results.pt")
    for found, right in zip(results, expected, strict=True):
        for mine, other in zip(found, right, strict=True):
            assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_denoising_needs_no_matching_and_counts_no_padding(class_loss):
    config = settings(class_loss)
    logits, boxes = predictions(2, config.num_class_logits, dtype=torch.float64)
    labels = some_labels([2, 1], dtype=torch.float64)
    denoising = noised(labels, config.num_class_logits)
    assert denoising.classes[1].tolist() == [labels[1]["class_labels"].item(), -1] * 2
    plain, _ = detr_loss(logits, boxes, labels, config)
    loss, terms = detr_loss(logits, boxes, labels, config, denoising=denoising)
    expected = 0.0
    for layer in range(LAYERS):
        found = {"ce": 0.0, "bbox": 0.0, "giou": 0.0}
        for picture in range(2):
            for slot in range(4):
                right, target = denoising.classes[picture, slot], denoising.targets[picture, slot]
                if right < 0:
                    continue
                said, box = denoising.logits[layer, picture, slot], denoising.boxes[layer, picture, slot]
                if class_loss == "focal":
                    onehot = torch.nn.functional.one_hot(right, CLASSES).double()
                    found["ce"] += torchvision.ops.sigmoid_focal_loss(said, onehot, 0.25, 2.0).sum() / (3 * 2)
                else:
                    found["ce"] -= said.log_softmax(-1)[right] / (3 * 2)
                found["bbox"] += (box - target).abs().sum() / (3 * 2)
                corners = cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(target)[None]
                found["giou"] += (1 - torchvision.ops.generalized_box_iou(*corners)[0, 0]) / (3 * 2)
        for name, value in found.items():
            assert_close(terms[f"loss_dn_{name}" + ("" if layer == LAYERS - 1 else f"_{layer}")], value.detach())
        expected = expected + config.class_loss_coefficient * found["ce"] + 5 * found["bbox"] + 2 * found["giou"]
    assert_close(loss - plain, expected)
    gradient, of_boxes = torch.autograd.grad(loss, (denoising.logits, denoising.boxes))
    for value in (gradient, of_boxes):
        assert not value[:, 1, [1, 3]].any() and value[:, 1, 0].any()


def test_without_boxes_there_is_nothing_to_denoise_and_no_class_to_mistake():
    config = settings()
    logits, boxes = predictions(2, CLASSES + 1)
    loss, terms = detr_loss(logits, boxes, some_labels([0, 0]), config)
    loss.backward()
    assert terms["loss_bbox"] == terms["loss_giou"] == 0 and terms["class_error"] == 100
    assert logits.grad.any() and not boxes.grad.any()


def test_half_precision_and_autocast_are_computed_in_float32():
    config = settings()
    logits, boxes = predictions(4, CLASSES + 1)
    labels = some_labels(NUMBERS["some"])
    half = detr_loss(logits.bfloat16(), boxes.bfloat16(), labels, config)[0]
    assert half.dtype == torch.float32
    expected = detr_loss(logits.bfloat16().float(), boxes.bfloat16().float(), labels, config)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(detr_loss(logits.bfloat16(), boxes.bfloat16(), labels, config)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("numbers", [[2], [0]], ids=["some", "none"])
@pytest.mark.parametrize("side", ["logits", "boxes"])
def test_predictions_that_diverged_are_named(side, numbers):
    logits, boxes = predictions(1, CLASSES + 1)
    wrong = {"logits": logits, "boxes": boxes} | {side: torch.full_like(locals()[side], torch.nan)}
    with pytest.raises(ValueError, match="diverged; use a lower learning_rate"):
        detr_loss(wrong["logits"], wrong["boxes"], some_labels(numbers), settings())


@pytest.mark.parametrize("items", [torch.tensor(2), 2, torch.tensor([2, 1])])
def test_other_counts_than_count_items_are_refused(items):
    logits, boxes = predictions(1, CLASSES + 1)
    with pytest.raises(ValueError, match=r"num_items_in_batch has the shape .*\(3,\), the sum of count_items"):
        detr_loss(logits, boxes, some_labels([2]), settings(), items)


def test_only_matching_needs_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    spec = importlib.util.spec_from_file_location("hf_attn.loss_without_scipy", ROOT / "hf_attn" / "loss_detr.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.check_labels(some_labels([2]), CLASSES, 1)
    with pytest.raises(ImportError, match=r"training a detector needs scipy.*pip install scipy"):
        module.detr_loss(*predictions(1, CLASSES + 1), some_labels([2]), settings())


def labelled(classes, boxes, **more):
    return [{"class_labels": torch.tensor(classes), "boxes": torch.tensor(boxes), **more}]


def test_where_nothing_counts_the_loss_is_zero():
    logits, boxes = predictions(2, CLASSES + 1)
    loss, terms = detr_loss(logits, boxes, 2 * labelled([], torch.zeros(0, 4).tolist()), settings(eos_coefficient=0))
    assert loss == 0 and terms["loss_ce"] == 0
    loss.backward()
    assert not logits.grad.any() and not boxes.grad.any()


BOX = [0.5, 0.5, 0.2, 0.2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (labelled([5], [BOX], image_id=torch.tensor([7])), 'label 5 of picture image_id 7.*"no object".*Subtract'),
        (labelled([5], [BOX], image_id=torch.tensor([])), "label 5 of picture image_id"),
        (labelled([9], [BOX]), "class label 9 of picture number 0.*not in 0..4.*set num_labels"),
        (labelled([-1], [BOX]), "class label -1"),
        (labelled([1.0], [BOX]), "whole numbers"),
        (labelled([1], [[120.0, 60.0, 40.0, 30.0]]), r"box 0 \(120, 60, 40, 30\).*in pixels.*divide"),
        (labelled([1], [[0.1, 0.2, 0.9, 0.8]]), "as left, top, right, bottom.*xyxy_to_cxcywh"),
        (labelled([1], [[0.5, 0.5, -0.1, 0.2]]), "width or height that is not above 0"),
        (labelled([1], [[0.5, 0.5, 0.0, 0.2]]), "width or height that is not above 0"),
        (labelled([1], [[0.9, 0.5, 0.4, 0.2]]), "reaches beyond the picture.*clip"),
        (labelled([1], [[0.5, float("nan"), 0.4, 0.2]]), "not four finite numbers"),
        (labelled([1, 2], [BOX]), r"\(1, 4\).*for 2 class_labels.*\(2, 4\)"),
        (labelled([1], [[120, 60, 40, 30]]), "torch.int64; they must be floats.*divide pixels"),
        (labelled([1], [[0.5, 0.5, 0.2]]), r"\(1, 3\) for 1 class_labels"),
        (labelled([[1]], [BOX]), r"class_labels of picture number 0 are \(1, 1\).*whole numbers"),
        (labelled([True], [BOX]), "torch.bool.*whole numbers"),
        ([{"boxes": torch.zeros(0, 4)}], "number 0 has no 'class_labels', only boxes; the image processor makes it"),
        ([{"class_labels": torch.zeros(0, dtype=torch.long)}], "has no 'boxes', only class_labels"),
        ([{}], "has no 'class_labels', only nothing"),
        ([{"class_labels": [1], "boxes": torch.zeros(1, 4)}], "class_labels of picture number 0 are a list"),
        (torch.tensor([1]), "labels are a Tensor; give a list"),
        ([torch.tensor([1])], "the label of picture number 0 is a Tensor; give a dictionary"),
        ([], "labels of 0 pictures for 1"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named_with_their_picture_and_the_remedy(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, CLASSES, 1)


def test_the_first_wrong_box_of_a_batch_is_named():
    labels = some_labels([2, 0, 3])
    labels[2]["boxes"][1] = torch.tensor([0.5, 0.5, 0.0, 0.2])
    with pytest.raises(ValueError, match=r"box 1 \(0.5, 0.5, 0, 0.2\) of picture number 2 has a width"):
        check_labels(labels, CLASSES, 3)
    labels[2]["image_id"] = torch.tensor([4711])
    with pytest.raises(ValueError, match="picture image_id 4711 has a width"):
        check_labels(labels, CLASSES, 3)


@pytest.mark.parametrize(("class_loss", "classes"), [("cross_entropy", CLASSES + 1), ("focal", CLASSES)])
def test_the_loss_refuses_wrong_labels_that_no_one_has_checked(class_loss, classes):
    """As those on a GPU are, which check_labels does not look at. transformers takes the first for "no object"."""
    logits, boxes = predictions(1, classes)
    for wrong in ([CLASSES], [CLASSES + 7], [-1]):
        with pytest.raises(ValueError, match=f"class label {wrong[0]} of picture number 0"):
            detr_loss(logits, boxes, labelled(wrong, [BOX]), settings(class_loss))
    for box, message in (([0.5, torch.nan, 0.2, 0.2], "finite"), ([50.0, 60.0, 20.0, 20.0], "in pixels")):
        with pytest.raises(ValueError, match=f"of picture number 0 is .*{message}"):
            detr_loss(logits, boxes, labelled([1], [box]), settings(class_loss))


def test_labels_that_are_not_on_the_cpu_are_not_looked_at():
    """A meta tensor has no values, so reading one raises."""
    labels = [{"class_labels": torch.tensor([9]), "boxes": torch.tensor([BOX]), "image_id": torch.tensor([7])}] * 2
    elsewhere = [{name: value.to("meta") for name, value in label.items()} for label in labels]
    check_labels(elsewhere, CLASSES, 2)
    with pytest.raises(ValueError, match="labels of 2 pictures for 3"):
        check_labels(elsewhere, CLASSES, 3)


def test_labels_of_transformers_processor_are_right():
    pictures = [np.zeros((60, 80, 3), np.uint8)] * 2
    box = {"bbox": [1, 2, 30, 40], "category_id": 1, "area": 1200, "iscrowd": 0}
    annotations = [{"image_id": 3, "annotations": [box]}, {"image_id": 4, "annotations": []}]
    labels = DetrImageProcessor()(pictures, annotations=annotations, return_tensors="pt")["labels"]
    check_labels(labels, CLASSES, 2)
    loss, _ = detr_loss(*predictions(2, CLASSES + 1), labels, settings())
    assert loss > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_no_box_within_the_picture_is_refused(dtype):
    """A centre and a width that are rounded to bfloat16 may end at 1.002."""
    corners = torch.rand(2, 5000, 2, dtype=torch.float64) * 1.2 - 0.1
    low, high = corners.clamp(0, 1).sort(dim=0).values  # a part of them at an edge or two
    boxes = xyxy_to_cxcywh(torch.cat([low, high], dim=-1)[(high > low).all(-1)]).to(dtype)
    assert (boxes.double()[:, 0] + boxes.double()[:, 2] / 2).max() > 1.0015 or dtype != torch.bfloat16
    check_labels([{"class_labels": torch.zeros(len(boxes), dtype=torch.long), "boxes": boxes}], CLASSES, 1)


def test_boxes_that_touch_the_edges_are_right():
    boxes = [[0.5, 0.5, 1.0, 1.0], [0.05, 0.95, 0.1, 0.1], [0.9995, 0.5, 0.001, 0.3]]
    check_labels(labelled([0, 1, 2], boxes), CLASSES, 1)
