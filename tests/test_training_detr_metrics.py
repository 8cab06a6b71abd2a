"""COCO's metrics are what their definition gives in plain loops, what pycocotools gives on files, and what one gets by
hand; each picture is forgotten once it is matched."""

import contextlib
import io
import json
import pickle
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_attn.training.detr_metrics import FOUND, CocoMetrics, interpolated_precision

NAMES = ["ant", "bee", "cat", "dog"]  # there are no dogs, and no cats to be found
SCORES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
SCORES += ["ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"]  # in the order of pycocotools
Picture = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def scene(random: np.random.Generator, boxes: int, detections: int) -> Picture:
    """Detections (prediction) near and far from boxes (target) of every size, some of them crowds."""
    corner, sides = random.uniform(0, 300, (boxes, 2)), random.choice([12, 40, 60, 130], (boxes, 2))
    target = {
        "labels": random.integers(0, 2, boxes),
        "boxes": np.concatenate([corner, corner + sides], axis=1),
        "area": sides.prod(axis=1) * random.uniform(0.5, 1, boxes),  # as of an outline within the box
        "iscrowd": (random.random(boxes) < 0.2).astype(int),
    }
    at = random.integers(0, boxes, detections) if boxes else np.zeros(0, int)
    near = np.take(target["boxes"], at, axis=0) + random.normal(0, 0.08, (len(at), 4)) * np.tile(sides[at], 2)
    labels = np.where(random.random(len(at)) < 0.8, target["labels"][at], random.integers(0, 3, len(at)))
    prediction = {
        "scores": random.random(len(at)).astype(np.float32),
        "labels": labels,
        "boxes": np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], axis=1),
    }
    return prediction, target


def scenes(seed: int, pictures: int = 12) -> list[Picture]:
    """Also pictures with nothing in them and pictures where nothing is found, and one of more than 100 detections."""
    random = np.random.default_rng(seed)
    drawn = [scene(random, int(random.integers(1, 7)), int(random.integers(0, 12))) for _ in range(pictures - 2)]
    drawn.insert(3, scene(random, 0, 0))
    drawn.insert(5, scene(random, 3, 260))
    false_alarm = ({"scores": np.array([0.97]), "labels": np.array([1]), "boxes": np.array([[1, 2, 30, 40.0]])},)
    return [*drawn, (*false_alarm, scene(random, 0, 0)[1])]


def measured(pictures: list[Picture], names: list[str] = NAMES) -> CocoMetrics:
    metrics = CocoMetrics(names)
    for prediction, target in pictures:
        metrics.add(prediction, target)
    return metrics


def picture(found: list[tuple], there: list[tuple]) -> Picture:
    """Found: (score, label, box); there: (label, box), and perhaps another area than the box's, and 1 for a crowd."""
    scores, labels, boxes = zip(*found, strict=True) if found else ((), (), ())
    prediction = {"scores": np.array(scores), "labels": np.array(labels), "boxes": np.array(boxes)}
    objects = [(label, box, *more, *(None, 0)[len(more) :]) for label, box, *more in there]
    labels, boxes, areas, crowds = zip(*objects, strict=True) if objects else ((), (), (), ())
    areas = [
        (box[2] - box[0]) * (box[3] - box[1]) if area is None else area for box, area in zip(boxes, areas, strict=True)
    ]
    target = {"labels": np.array(labels), "boxes": np.array(boxes)}
    return prediction, {**target, "area": np.array(areas), "iscrowd": np.array(crowds)}


# The definition, in loops


def overlap(box: list[float], other: list[float], crowd: bool) -> float:
    """Intersection over union; over the box alone where the other is a crowd."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return both / (areas[0] if crowd else areas[0] + areas[1] - both)


def judged(pictures: list[Picture], label: int, least: float, sizes: tuple, most: int) -> Iterator[tuple[float, bool]]:
    """(score, right) of the detections of a class that count, the likeliest first."""
    verdicts = []
    for prediction, target in pictures:
        there = [
            {"box": box, "crowd": crowd, "ignored": bool(crowd) or not sizes[0] <= area <= sizes[1], "taken": False}
            for own, box, area, crowd in zip(*(target[name].tolist() for name in target), strict=True)
            if own == label
        ]
        found = [
            (score, box)
            for score, own, box in zip(*(prediction[name].tolist() for name in prediction), strict=True)
            if own == label
        ]
        for score, box in sorted(found, key=lambda each: -each[0])[:most]:
            # A box that counts comes before one that does not; of each kind the last of those that overlap most
            best, best_overlap = None, least
            for wanted in (False, True):
                for each in there:
                    free = each["crowd"] or not each["taken"]
                    if best is None or best["ignored"] == wanted:
                        value = overlap(box, each["box"], each["crowd"])
                        if each["ignored"] == wanted and free and value >= best_overlap:
                            best, best_overlap = each, value
            if best is not None:
                best["taken"] = True
            outside = not sizes[0] <= (box[2] - box[0]) * (box[3] - box[1]) <= sizes[1]
            if not (outside if best is None else best["ignored"]):
                verdicts.append((score, best is not None))
    return sorted(verdicts, key=lambda verdict: -verdict[0])


def by_definition(pictures: list[Picture], label: int, least: float, sizes: tuple, most: int) -> tuple | None:
    """Average precision and recall of a class at one overlap."""
    number = sum(
        own == label and not crowd and sizes[0] <= area <= sizes[1]
        for _, target in pictures
        for own, area, crowd in zip(target["labels"], target["area"], target["iscrowd"], strict=True)
    )
    if not number:
        return None
    points, right = [], 0
    for place, (_, hit) in enumerate(judged(pictures, label, least, sizes, most), 1):
        right += hit
        points.append((right / number, right / place))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((precision for reached, precision in points if reached >= recall), default=0.0)
    return total / 101, right / number


def metrics_by_definition(pictures: list[Picture]) -> dict[str, float | None]:
    ranges = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
    overlaps = np.linspace(0.5, 0.95, 10).tolist()

    def mean(kind: int, overlaps: list[float], size: str = "", most: int = 100, labels=range(4)) -> float | None:
        found = [by_definition(pictures, label, least, ranges[size], most) for label in labels for least in overlaps]
        known = [each[kind] for each in found if each is not None]
        return sum(known) / len(known) if known else None

    metrics = {"ap": mean(0, overlaps), "ap50": mean(0, overlaps[:1]), "ap75": mean(0, overlaps[5:6])}
    metrics |= {f"ap{size}": mean(0, overlaps, size) for size in ranges if size}
    metrics |= {f"ar_{most}": mean(1, overlaps, most=most) for most in (1, 10, 100)}
    metrics |= {f"ar{size}": mean(1, overlaps, size) for size in ranges if size}
    metrics["class_ap"] = {name: mean(0, overlaps, labels=[label]) for label, name in enumerate(NAMES)}
    metrics["class_ap50"] = {name: mean(0, overlaps[:1], labels=[label]) for label, name in enumerate(NAMES)}
    return metrics


def close(metrics: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert metrics[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


@pytest.mark.parametrize("seed", range(4))
def test_the_metrics_are_their_definition(seed):
    pictures = scenes(seed)
    metrics = measured(pictures).compute()
    close(metrics, metrics_by_definition(pictures))
    assert metrics["class_ap"]["cat"] is None and metrics["class_ap"]["ant"] > 0 and metrics["ap"] < 1
    assert metrics["pictures"] == 13
    assert metrics["boxes"] == sum(int((target["iscrowd"] == 0).sum()) for _, target in pictures)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 30))
def test_precision_is_the_best_at_each_recall_or_beyond(right, there):
    there = max(there, sum(right))
    reached = [(sum(right[:place]) / there, sum(right[:place]) / place) for place in range(1, len(right) + 1)]
    expected = [
        max((precision for recall, precision in reached if recall >= wanted), default=0.0)
        for wanted in np.linspace(0, 1, 101)
    ]
    assert interpolated_precision(np.array(right, bool), there) == pytest.approx(np.mean(expected))


# pycocotools on files


def xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def by_pycocotools(pictures: list[Picture], directory) -> COCOeval:
    truths, results = [], []
    for number, (prediction, target) in enumerate(pictures):
        columns = target["labels"].tolist(), xywh(target["boxes"]), target["area"].tolist(), target["iscrowd"].tolist()
        for label, box, area, crowd in zip(*columns, strict=True):
            place = {"id": len(truths) + 1, "image_id": number, "category_id": label}
            truths.append({**place, "bbox": box, "area": area, "iscrowd": crowd})
        columns = prediction["labels"].tolist(), xywh(prediction["boxes"]), prediction["scores"].tolist()
        for label, box, score in zip(*columns, strict=True):
            results.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    images = [{"id": number} for number in range(len(pictures))]
    (directory / "truths.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": truths, "info": {}})
    )
    (directory / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(directory / "truths.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(directory / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_the_metrics_are_those_of_pycocotools(tmp_path):
    pictures = scenes(7, pictures=30)
    metrics, expected = measured(pictures).compute(), by_pycocotools(pictures, tmp_path)
    for name, value in zip(SCORES, expected.stats, strict=True):
        assert metrics[name] == (None if value == -1 else pytest.approx(value, abs=1e-12)), name
    precision = expected.eval["precision"][..., 0, 2]  # (overlaps, recalls, classes) of all sizes, 100 detections
    for number, name in enumerate(NAMES):
        known = precision[0, 0, number] > -1
        assert metrics["class_ap"][name] == (pytest.approx(precision[..., number].mean()) if known else None)
        assert metrics["class_ap50"][name] == (pytest.approx(precision[0, :, number].mean()) if known else None)


# By hand

BOX, OTHER, ELSEWHERE = (0, 0, 100, 100), (200, 0, 300, 100), (400, 400, 500, 500)


def test_what_is_found_exactly_scores_one():
    metrics = measured([picture([(0.3, 0, BOX), (0.1, 1, OTHER)], [(0, BOX), (1, OTHER)])]).compute()
    assert [metrics[name] for name in ("ap", "ap50", "ap75", "ap_large", "ar_1", "ar_10", "ar_100", "ar_large")] == [
        1.0
    ] * 8
    assert metrics["class_ap"] == {"ant": 1.0, "bee": 1.0, "cat": None, "dog": None}
    assert metrics["ap_small"] is None and metrics["ar_medium"] is None
    assert (metrics["pictures"], metrics["boxes"]) == (1, 2)


def test_a_wrong_detection_costs_precision_at_the_recalls_after_it():
    found = [(0.9, 0, BOX), (0.8, 0, ELSEWHERE), (0.7, 0, OTHER)]
    metrics = measured([picture(found, [(0, BOX), (0, OTHER)])]).compute()
    assert metrics["ap"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)  # 1 at recalls of 0 to 0.5, then two of three
    assert (metrics["ar_1"], metrics["ar_10"]) == (0.5, 1.0)


def test_wrong_detections_in_a_picture_without_objects_cost_precision_too():
    one = picture([(0.5, 0, BOX)], [(0, BOX)])
    assert measured([one, picture([(0.6, 0, BOX)], [])]).compute()["ap"] == 0.5
    assert measured([one, picture([(0.6, 1, BOX)], [])]).compute()["ap"] == 1.0  # of a class that is nowhere
    assert measured([one, picture([], [])]).compute()["ap"] == 1.0


@pytest.mark.parametrize(("height", "overlaps"), [(100, 10), (77, 6), (51, 1), (49, 0)])
def test_an_overlap_is_enough_up_to_its_value(height, overlaps):
    metrics = measured([picture([(0.5, 0, (0, 0, 100, height))], [(0, BOX)])]).compute()
    assert metrics["ap"] == pytest.approx(overlaps / 10) == metrics["ar_1"]
    assert (metrics["ap50"], metrics["ap75"]) == (float(overlaps > 0), float(overlaps > 5))


def test_a_box_is_found_once():
    metrics = measured([picture([(0.9, 0, BOX), (0.8, 0, BOX)], [(0, BOX), (0, OTHER)])]).compute()
    assert metrics["ap"] == pytest.approx(51 / 101) and metrics["ar_100"] == 0.5


def test_what_lies_on_a_crowd_does_not_count():
    inside = [(0.9, 0, (10, 10, 30, 30)), (0.8, 0, (50, 50, 60, 60))]
    crowd = (0, BOX, 10_000, 1)
    metrics = measured([picture([*inside, (0.7, 0, OTHER)], [crowd, (0, OTHER)])]).compute()
    assert (metrics["ap"], metrics["boxes"]) == (1.0, 1)
    other_class = measured([picture([*inside, (0.7, 0, OTHER)], [(1, BOX, 10_000, 1), (0, OTHER)])]).compute()
    assert other_class["ap"] == pytest.approx(1 / 3)
    only = measured([picture(inside, [crowd])]).compute()
    assert (only["ap"], only["boxes"]) == (None, 0)


def test_the_size_of_a_box_is_the_area_of_its_annotation():
    metrics = measured([picture([(0.9, 0, BOX)], [(0, BOX, 32**2 - 1)])]).compute()
    assert (metrics["ap_small"], metrics["ap_medium"], metrics["ap_large"]) == (1.0, None, None)
    border = measured([picture([(0.9, 0, BOX)], [(0, BOX, 32**2)])]).compute()
    assert (border["ap_small"], border["ap_medium"], border["ap_large"]) == (1.0, 1.0, None)
    target = {"labels": [0], "boxes": [[0, 0, 20, 20]]}  # neither area nor iscrowd
    assert measured([(picture([], [])[0], target)]).compute()["ar_small"] == 0.0


def test_only_the_likeliest_of_a_class_in_a_picture_count():
    wrong = [(0.9 - 0.001 * place, 0, (200 + place, 200, 210 + place, 210)) for place in range(150)]
    for place, (few, some, most) in {0: (1, 1, 1), 1: (0, 1, 1), 9: (0, 1, 1), 10: (0, 0, 1), 100: (0, 0, 0)}.items():
        found = [*wrong[:place], (0.9 - 0.001 * place + 0.0005, 0, BOX), *wrong[place:]]
        metrics = measured([picture(found[::-1], [(0, BOX)])]).compute()
        assert (metrics["ar_1"], metrics["ar_10"], metrics["ar_100"]) == (few, some, most)


def test_no_detections_and_no_boxes():
    assert measured([picture([], [(0, BOX)])]).compute()["ap"] == 0.0
    nothing = measured([picture([], [])]).compute()
    assert all(nothing[name] is None for name in SCORES) and set(nothing["class_ap"].values()) == {None}
    with pytest.raises(ValueError, match="0 pictures have no average precision"):
        CocoMetrics(NAMES).compute()


def test_a_model_that_has_diverged_finds_nothing():
    broken = picture([(np.nan, 0, BOX), (0.5, 0, (0, 0, np.inf, 5))], [(0, BOX)])
    assert measured([broken]).compute()["ap"] == 0.0


# How pictures come in


def test_tensors_of_any_kind_are_as_arrays():
    pictures = scenes(3)
    rounded = [
        ({**found, "scores": torch.tensor(found["scores"]).bfloat16().double().numpy()}, there)
        for found, there in pictures
    ]
    tensors = [({name: torch.tensor(each) for name, each in found.items()}, there) for found, there in rounded]
    for found, _ in tensors:
        found["scores"] = found["scores"].bfloat16().requires_grad_()
    assert measured(tensors).compute() == measured(rounded).compute()


def test_the_order_within_a_picture_does_not_count():
    pictures = scenes(4)
    turned = [tuple({name: each[::-1] for name, each in side.items()} for side in both) for both in pictures]
    assert measured(turned).compute() == measured(pictures).compute()


def test_processes_together_measure_what_one_does():
    pictures = scenes(5)
    parts = [measured(pictures[first::3]) for first in range(3)]
    together = CocoMetrics(NAMES)
    for part in parts:
        together.merge(pickle.loads(pickle.dumps(part.state())))
    assert together.compute() == measured(pictures).compute() and len(together) == 13
    together.add(*pictures[0])
    assert len(together) == 14 and len(parts[0]) == 5
    with pytest.raises(ValueError, match=r"classes \['ant', 'bee', 'cat', 'dog'\] do not go with classes \['ant'\]"):
        CocoMetrics(["ant"]).merge(parts[0].state())


def test_measuring_between_pictures_changes_nothing():
    metrics = CocoMetrics(NAMES)
    for each in scenes(6):
        metrics.add(*each)
        metrics.compute()
    assert metrics.compute() == measured(scenes(6)).compute()


def test_nothing_is_printed(capfd):
    measured(scenes(0)).compute()
    assert capfd.readouterr() == ("", "")


def test_memory_is_23_bytes_a_detection():
    found, there = scene(np.random.default_rng(0), 5, 100)
    away = ({**found, "boxes": found["boxes"] + 1000}, there)  # so that nothing is matched, which takes time
    metrics = measured([away])
    metrics.compute()
    tracemalloc.start()
    for _ in range(200):
        metrics.add(*away)
    kept, _ = tracemalloc.get_traced_memory()
    assert FOUND.itemsize == 23 and len(metrics.found) == 201 * 100 * 23
    assert kept < 1.2 * len(metrics.found) + 20_000  # bytes grow an eighth ahead
    tracemalloc.reset_peak()
    metrics.compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - kept < 75 * 201 * 100


@pytest.mark.parametrize(
    ("found", "there", "message"),
    [
        ([(0.5, 4, BOX)], [], "picture 1, counted from 0: detection 0 is of class 4; there are names for 0 to 3"),
        ([], [(0, BOX), (-1, BOX)], "box 1 is of class -1; there are names"),
        ([(0.5, 0, (10, 10, 5, 20))], [], r"detection 0 is \(10, 10, 5, 20\), not left, top, right, bottom in pixels"),
        ([], [(0, (0, 0, np.nan, 5), 5)], r"box 0 is \(0, 0, nan, 5\), not left, top, right, bottom"),
    ],
)
def test_what_cannot_be_is_refused(found, there, message):
    metrics = measured([picture([], [(0, BOX)])])
    with pytest.raises(ValueError, match=message):
        metrics.add(*picture(found, there))
    assert len(metrics) == 1 and metrics.compute()["boxes"] == 1


def test_numbers_that_do_not_belong_together_are_refused():
    found, there = picture([(0.5, 0, BOX)], [(0, BOX)])
    with pytest.raises(ValueError, match=r"detection: scores are \(2,\) for 1 boxes; they must be \(1,\)"):
        CocoMetrics(NAMES).add({**found, "scores": np.array([0.5, 0.4])}, there)
    with pytest.raises(ValueError, match=r"box: area are \(1, 1\) for 1 boxes; they must be \(1,\)"):
        CocoMetrics(NAMES).add(found, {**there, "area": np.array([[5.0]])})
    for names in ([], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="must be one or more names, each of them once"):
            CocoMetrics(names)
