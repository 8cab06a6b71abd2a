"""An evaluation is what the model finds picture by picture, in the pixels of the pictures as they were, with classes
matched by name; a model that finds everything scores one, whatever the sizes, and crowds cost it nothing."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.training import detr_evaluation
from hf_attn.training.detection_rows import objects_to_find
from hf_attn.training.detr_evaluation import (
    EvaluationCollator,
    evaluate_detr,
    likeliest,
    load_detector,
    named,
    score_batch,
    truth_of_label,
)
from hf_attn.training.detr_metrics import CocoMetrics
from tests.detection_shapes import SHAPES, draw_scene, features, row_of, scenes
from tests.tiny import tiny_detr

NAMES = ["cross", "triangle", "disc", "square"]  # the model's order
SIZES = [(64, 48), (40, 80), (64, 64), (90, 30)]  # width and height


def save_detector(directory):
    """A detector with random answers, and its processor."""
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    model = tiny_detr(**labels)
    model.save_pretrained(directory)
    AttnDetrImageProcessor(size={"longest_edge": 64}).save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    directory = tmp_path_factory.mktemp("detector")
    return directory, save_detector(directory)


def of_sizes(number: int) -> datasets.Dataset:
    """Scenes of four sizes."""
    rows = [row_of(draw_scene(seed, size=SIZES[seed % 4]), seed) for seed in range(number)]
    return datasets.Dataset.from_list(rows, features=features())


def test_what_is_found_is_what_each_picture_alone_shows(detector, monkeypatch):
    monkeypatch.setattr(detr_evaluation, "SHOWN", 0.0)
    directory, model = detector
    data = of_sizes(11)
    evaluation = evaluate_detr(directory, datasets.DatasetDict(test=data), batch_size=4, bf16=False)
    assert evaluation.names == NAMES and [sample.row for sample in evaluation.samples] == [0, 1, 2, 4, 5, 6, 8, 9]
    processor, metrics = AttnDetrImageProcessor(size={"longest_edge": 64}), CocoMetrics(NAMES)
    shown = {sample.row: sample.detections for sample in evaluation.samples}
    for row, each in enumerate(data):
        size = [(each["height"], each["width"])]
        with torch.no_grad():
            outputs = model(**processor(each["image"], return_tensors="pt"))
        (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=size)
        edges = np.array(each["objects"]["bbox"])
        edges[:, 2:] += edges[:, :2]
        there = {"labels": np.array([NAMES.index(SHAPES[place]) for place in each["objects"]["category"]])}
        metrics.add(found, {**there, "boxes": edges, "area": np.array(each["objects"]["area"])})
        if row in shown:
            order = found["scores"].argsort(descending=True)
            assert len(shown[row]) == 7
            for detection, place in zip(shown[row], order.tolist(), strict=True):
                assert detection["label"] == NAMES[found["labels"][place]]
                assert detection["score"] == pytest.approx(found["scores"][place].item(), abs=1e-5)
                assert detection["box"] == pytest.approx(found["boxes"][place].tolist(), abs=1e-3)
    measured = evaluation.metrics
    assert measured.pop("pictures_per_second") > 0 < measured.pop("seconds")
    assert measured == metrics.compute()
    assert measured["boxes"] == sum(len(objects["bbox"]) for objects in data["objects"])


class Knowing(torch.nn.Module):
    """A detector that says what it was told to: the grey of a picture is its number."""

    def __init__(self, answers: list[list[tuple]], names: list[str], queries: int = 12, class_loss="cross_entropy"):
        """Answers: of each picture (score, name, box) with the box as cxcywh in fractions."""
        super().__init__()
        label2id = {name: number for number, name in enumerate(names)}
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), label2id=label2id, num_labels=len(names))
        self.config.class_loss, self.config.hidden_size = class_loss, 16
        self.place = torch.nn.Parameter(torch.zeros(()))
        self.scores = torch.zeros(len(answers), queries, len(names))
        self.boxes = torch.full((len(answers), queries, 4), 0.001)
        for number, found in enumerate(answers):
            for query, (score, name, box) in enumerate(found):
                self.scores[number, query, label2id[name]] = score
                self.boxes[number, query] = torch.tensor(box)

    @property
    def device(self) -> torch.device:
        return self.place.device

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> SimpleNamespace:
        numbers = (pixel_values[:, 0, 0, 0] * 255).round().long().cpu()
        assert pixel_mask is None or (pixel_mask[:, 0, 0] == 1).all()
        scores, boxes = (values[numbers].to(self.device) for values in (self.scores, self.boxes))
        return SimpleNamespace(scores=scores, pred_boxes=boxes)


def grey_pictures(number: int, crowds: bool = False) -> datasets.Dataset:
    """Pictures of four sizes, each all of one grey, with boxes that are not to be seen."""
    random = np.random.default_rng(0)
    rows = []
    for place in range(number):
        row = row_of(draw_scene(place, size=SIZES[place % 4]), place)
        row["image"] = Image.new("RGB", row["image"].size, (place,) * 3)
        row["objects"]["area"] = [area * float(random.uniform(0.5, 1)) for area in row["objects"]["area"]]
        if crowds:
            for name, value in {"bbox": [2.0, 3.0, 25.0, 20.0], "category": 0, "area": 300.0, "iscrowd": True}.items():
                row["objects"][name].append(value)
        rows.append(row)
    return datasets.Dataset.from_list(rows, features=features())


def right_answers(data: datasets.Dataset) -> list[list[tuple]]:
    return [
        [
            (0.9 - 0.01 * place, SHAPES[label], fractions(box, row))
            for place, (box, label, crowd) in enumerate(
                zip(*(row["objects"][name] for name in ("bbox", "category", "iscrowd")), strict=True)
            )
            if not crowd
        ]
        for row in data
    ]


def fractions(box: list[float], row: dict) -> list[float]:
    x, y, width, height = box
    return [
        (x + width / 2) / row["width"],
        (y + height / 2) / row["height"],
        width / row["width"],
        height / row["height"],
    ]


@pytest.fixture
def knowing(monkeypatch):
    """Evaluate a detector that gives these answers."""

    def evaluate(answers, data, size=None, names=NAMES, class_loss="cross_entropy", do_pad=True, **arguments):
        model = Knowing(answers, names, class_loss=class_loss)
        processor = AttnDetrImageProcessor(size=size or {"longest_edge": 32}, do_normalize=False, do_pad=do_pad)
        monkeypatch.setattr(detr_evaluation, "load_detector", lambda name: (model, processor))
        return evaluate_detr("it", datasets.DatasetDict(test=data), **arguments)

    return evaluate


@pytest.mark.parametrize("size", [{"longest_edge": 32}, {"shortest_edge": 70}, {"height": 20, "width": 90}])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_who_finds_everything_scores_one_at_any_size_of_picture(knowing, size, class_loss):
    data = grey_pictures(9)
    metrics = knowing(right_answers(data), data, size, class_loss=class_loss, batch_size=4).metrics
    assert metrics["ap"] == metrics["ar_100"] == metrics["ap_small"] == 1.0
    assert metrics["class_ap"]["triangle"] is None and metrics["class_ap"]["disc"] == 1.0
    assert metrics["pictures"] == 9 and metrics["boxes"] == sum(map(len, right_answers(data)))
    if "height" in size:  # all of one size, so there need be no mask
        assert knowing(right_answers(data), data, size, do_pad=False).metrics["ap"] == 1.0


def test_what_is_found_on_a_crowd_costs_nothing(knowing):
    data = grey_pictures(6, crowds=True)
    answers = right_answers(data)
    for row, found in zip(data, answers, strict=True):
        found += [(0.95, SHAPES[0], fractions([5, 5, 9, 9], row)), (0.94, SHAPES[0], fractions([12, 9, 7, 12], row))]
    metrics = knowing(answers, data).metrics
    assert metrics["ap"] == 1.0 and metrics["boxes"] == sum(map(len, right_answers(data)))
    without = data.map(
        lambda row: {"objects": {name: values[:-1] for name, values in row["objects"].items()}}, features=data.features
    )
    assert knowing(answers, without).metrics["ap"] < 1.0


def test_how_the_data_number_their_classes_does_not_count(knowing):
    data = grey_pictures(7)
    answers = right_answers(data)
    answers[2] = [(score, "cross", box) for score, _, box in answers[2]]
    usual, other = (knowing(answers, data, names=names).metrics for names in (NAMES, NAMES[::-1]))
    assert usual["class_ap"] == {name: other["class_ap"][name] for name in NAMES} and 0 < usual["ap"] < 1


def test_some_pictures_are_spread_over_the_split(knowing):
    data = grey_pictures(12)
    answers = right_answers(data)
    answers = [found if row in (0, 3, 6, 9) else [] for row, found in enumerate(answers)]
    evaluation = knowing(answers, data, pictures=4, batch_size=3)
    assert evaluation.metrics["ap"] == 1.0 and evaluation.metrics["pictures"] == 4
    assert [sample.row for sample in evaluation.samples] == [0, 3, 6, 9]
    for sample in evaluation.samples:
        objects = data[sample.row]["objects"]
        assert [each["label"] for each in sample.detections] == [SHAPES[label] for label in objects["category"]]
        for each, (x, y, width, height) in zip(sample.detections, objects["bbox"], strict=True):
            assert each["box"] == pytest.approx((x, y, x + width, y + height), abs=1e-3)


def test_progress_is_told_in_pictures(knowing):
    events, data = [], grey_pictures(5)
    knowing(right_answers(data), data, batch_size=2, progress=events.append)
    assert [(event.done, event.total) for event in events] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert {(event.stage, event.unit) for event in events} == {("test", "pictures")}


# What counts of what a model says


def test_of_a_query_its_likeliest_class_counts():
    scores, boxes = torch.rand(2, 130, 5), torch.rand(2, 130, 4)
    found, labels, edges = likeliest(scores, boxes, "cross_entropy")
    for picture in range(2):
        queries = sorted(range(130), key=lambda query: -scores[picture, query].max())[:100]
        assert found[picture].tolist() == [scores[picture, query].max() for query in queries]
        assert labels[picture].tolist() == [scores[picture, query].argmax() for query in queries]
        assert torch.equal(edges[picture], boxes[picture, queries])


def test_of_sigmoids_all_pairs_of_query_and_class_count():
    scores, boxes = torch.rand(2, 30, 5).mul(9).round().div(9), torch.rand(2, 30, 4)  # many are equal
    found, labels, edges = likeliest(scores, boxes, "focal")
    assert found.shape == labels.shape == (2, 100)
    for picture in range(2):
        pairs = [(query, label) for query in range(30) for label in range(5)]
        pairs = sorted(pairs, key=lambda pair: -scores[picture][pair])[:100]
        assert found[picture].tolist() == [scores[picture][pair] for pair in pairs]
        assert labels[picture].tolist() == [label for _, label in pairs]
        assert torch.equal(edges[picture], boxes[picture, [query for query, _ in pairs]])
    few, _, _ = likeliest(scores[:, :3], boxes[:, :3], "focal")
    assert few.shape == (2, 15)


def test_what_is_there_to_be_found_is_drawn_without_crowds():
    objects = {
        "bbox": [[1.0, 2.0, 10.0, 20.0], [0.0, 0.0, 5.0, 5.0]],
        "category": [1, 0],
        "area": [200.0, 25.0],
        "iscrowd": [False, True],
    }
    expected = [{"label": "b", "box": (1.0, 2.0, 11.0, 22.0)}]
    assert objects_to_find(objects, ["a", "b"]) == expected
    del objects["iscrowd"]
    assert objects_to_find(objects, ["a", "b"]) == [*expected, {"label": "a", "box": (0.0, 0.0, 5.0, 5.0)}]


def test_a_loop_that_has_only_labels_measures_the_same_without_crowds():
    data = grey_pictures(5)
    batch = EvaluationCollator(AttnDetrImageProcessor(size={"shortest_edge": 51}))(list(data))
    model = Knowing(right_answers(data), list(SHAPES))
    outputs = SimpleNamespace(scores=model.scores, pred_boxes=model.boxes + 0.03)
    by_truths, by_labels = CocoMetrics(SHAPES), CocoMetrics(SHAPES)
    found = score_batch(by_truths, outputs, batch["truths"], "cross_entropy")
    again = score_batch(by_labels, outputs, batch["labels"], "cross_entropy")
    assert by_labels.compute() == by_truths.compute() and 0 < by_truths.compute()["ap"] < 1
    assert [each["scores"].tolist() for each in found] == [each["scores"].tolist() for each in again]
    for truth, label in zip(batch["truths"], batch["labels"], strict=True):
        torch.testing.assert_close(truth_of_label(label)["boxes"], truth["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(truth_of_label(label)["area"], truth["area"], atol=0.01, rtol=0)
    least = {name: batch["labels"][0][name] for name in ("class_labels", "boxes", "orig_size")}
    assert set(truth_of_label(least)) == {"labels", "boxes", "orig_size"}


@pytest.mark.parametrize("edge", [53, 64, 801])
def test_an_area_at_the_border_of_two_sizes_stays_there(edge):
    for area in (32.0**2, 96.0**2):
        row = row_of(draw_scene(0, size=(640, 427), most=1), 0)
        row["objects"]["area"] = [area]
        (label,) = EvaluationCollator(AttnDetrImageProcessor(size={"shortest_edge": edge}))([row])["labels"]
        assert truth_of_label(label)["area"].tolist() == [area]


def test_transformers_detr_says_the_same_by_logits():
    data = grey_pictures(4)
    truths = EvaluationCollator(AttnDetrImageProcessor())(list(data))["truths"]
    logits, boxes = 5 * torch.randn(4, 12, 4), Knowing(right_answers(data), list(SHAPES)).boxes
    scores = logits.softmax(-1)[..., :3]
    found = []
    for outputs in ({"logits": logits}, {"scores": scores}):
        found.append(CocoMetrics(SHAPES))
        score_batch(found[-1], SimpleNamespace(**outputs, pred_boxes=boxes), truths, "cross_entropy")
    assert found[0].compute() == found[1].compute()
    for outputs, given in (({"logits": logits[..., :3]}, "3 logits"), ({"scores": scores[..., :2]}, "2 scores")):
        with pytest.raises(ValueError, match=f"gives {given} a query, but there are 3 classes; it must be one of"):
            score_batch(found[0], SimpleNamespace(**outputs, pred_boxes=boxes), truths, "cross_entropy")


def test_what_is_drawn_is_likelier_than_not_and_each_box_once():
    found = {"scores": torch.tensor([0.9, 0.8, 0.7, 0.5]), "labels": torch.tensor([0, 1, 1, 0])}
    found["boxes"] = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 5], [1, 1, 2, 2], [3, 3, 4, 4]])
    shown = named(found, ["ant", "bee"])
    assert [(each["label"], each["box"]) for each in shown] == [("ant", (0, 0, 5, 5)), ("bee", (1, 1, 2, 2))]
    assert shown[0]["score"] == pytest.approx(0.9)


# What is refused


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (scenes(3), {"split": "validation"}, "no validation split with pictures in it, only test"),
        (scenes(3), {"pictures": 0}, "0 pictures are nothing to evaluate on"),
        (scenes(3).remove_columns("objects"), {}, "the test split has no column 'objects'"),
        (
            scenes(4).cast(features(["disc", "b", "cross"])),
            {},
            r"classes \(and boxes of them\) that the model does not know: 'b' \(\d\); it knows 'cross', 'triangle'",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(detector, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_detr(detector[0], datasets.DatasetDict(test=data), **arguments)


def test_a_directory_without_a_model_is_said(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is no detector: it has no config\.json; give a directory that train_"
    ):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a model without its image processor"):
        load_detector(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        load_detector(tmp_path / "not there")
