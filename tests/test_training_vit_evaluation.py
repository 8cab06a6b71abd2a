"""An evaluation is what the model says picture by picture, with labels matched by name, and its mistakes are named."""

import datasets
import numpy as np
import pytest
import torch

from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.training.vit_evaluation import evaluate_vit
from tests.shapes import SHAPES, pictures, pictures_of_several
from tests.tiny import tiny_vit

NAMES = ["cross", "triangle", "disc", "square"]  # the model's order


def save_classifier(directory, names=NAMES, **config):
    """A classifier with random answers, and its processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = tiny_vit(image_size=16, patch_size=4, num_labels=len(names), **config)
    model.config.id2label, model.config.label2id = labels["id2label"], labels["label2id"]
    model.save_pretrained(directory)
    AttnViTImageProcessor(size=16).save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    return directory, save_classifier(directory)


def probabilities(model, split: datasets.Dataset) -> np.ndarray:
    """(pictures, classes), one picture at a time."""
    processor = AttnViTImageProcessor(size=16)
    with torch.no_grad():
        logits = [model(**processor(picture, return_tensors="pt")).logits[0] for picture in split["image"]]
    return torch.stack(logits).double().softmax(-1).numpy()


def test_the_scores_are_those_of_each_picture_alone(classifier):
    directory, model = classifier
    data = pictures(30)
    evaluation = evaluate_vit(directory, datasets.DatasetDict(test=data), batch_size=7, bf16=False)
    expected = probabilities(model, data)
    right = [NAMES.index(SHAPES[label]) for label in data["label"]]
    guesses = expected.argmax(axis=1)
    assert evaluation.metrics["accuracy"] == np.mean(guesses == right)
    assert evaluation.metrics["loss"] == pytest.approx(-np.log(expected[range(30), right]).mean(), rel=1e-5)
    assert evaluation.names == NAMES and evaluation.metrics["class_accuracy"]["triangle"] is None
    for label, guess in zip(right, guesses, strict=True):
        evaluation.confusion[label, guess] -= 1
    assert not evaluation.confusion.any()
    assert evaluation.metrics["pictures_per_second"] > 0 < evaluation.metrics["seconds"]


def test_the_answers_stand_in_order_and_the_most_confident_mistakes_come_first(classifier):
    directory, model = classifier
    data = pictures(60)
    evaluation = evaluate_vit(directory, datasets.DatasetDict(test=data), bf16=False)
    shares = probabilities(model, data)
    assert [answer.label for answer in evaluation.answers] == [SHAPES[label] for label in data["label"]]
    assert [answer.predicted for answer in evaluation.answers] == [NAMES[guess] for guess in shares.argmax(axis=1)]
    assert [answer.confidence for answer in evaluation.answers] == pytest.approx(shares.max(axis=1), rel=1e-5)
    assert all(answer.path is None for answer in evaluation.answers)
    confidences = [mistake.confidence for mistake in evaluation.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert len(confidences) == round(60 * (1 - evaluation.metrics["accuracy"])) > 0


def test_answers_name_the_file(classifier, tmp_path):
    pictures(1)[0]["image"].save(tmp_path / "drawn.png")
    columns = {"image": [str(tmp_path / "drawn.png")] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["disc", "cross"])})
    data = datasets.DatasetDict(test=datasets.Dataset.from_dict(columns, features))
    assert {each.path for each in evaluate_vit(classifier[0], data).answers} == {str(tmp_path / "drawn.png")}


def test_how_a_split_numbers_its_classes_does_not_count(classifier):
    usual = datasets.DatasetDict(test=pictures(12))
    other = datasets.DatasetDict(test=pictures(12, names=("square", "circle", "disc", "cross")))
    one, another = (evaluate_vit(classifier[0], data) for data in (usual, other))
    assert one.metrics["loss"] == another.metrics["loss"] and (one.confusion == another.confusion).all()


def test_some_pictures_are_spread_over_the_split(classifier):
    data = pictures(30)
    some = evaluate_vit(classifier[0], datasets.DatasetDict(test=data), pictures=4)
    same = evaluate_vit(classifier[0], datasets.DatasetDict(test=data.select([0, 7, 15, 22])))
    assert some.metrics["loss"] == same.metrics["loss"] and some.metrics["pictures"] == 4


def test_several_classes_to_a_picture(tmp_path):
    model = save_classifier(tmp_path, problem_type="multi_label_classification")
    data = pictures_of_several(28)
    evaluation = evaluate_vit(tmp_path, datasets.DatasetDict(test=data), bf16=False)
    by_class = evaluation.metrics["class_average_precision"]
    assert by_class["triangle"] is None and evaluation.confusion is None
    known = [value for value in by_class.values() if value is not None]
    assert evaluation.metrics["mean_average_precision"] == pytest.approx(np.mean(known)) and len(known) == 3
    with torch.no_grad():
        pixels = AttnViTImageProcessor(size=16)(list(data["image"]), return_tensors="pt")["pixel_values"]
        shares = model(pixels).logits.sigmoid().numpy()
    for answer, row, label in zip(evaluation.answers, shares, data["label"], strict=True):
        said = row > 0.5
        assert answer.predicted == ", ".join(name for name, yes in zip(NAMES, said, strict=True) if yes)
        assert set(filter(None, answer.label.split(", "))) == {SHAPES[each] for each in label}
        assert answer.confidence == pytest.approx(np.where(said, row, 1 - row).prod(), rel=1e-4)
    assert all(mistake.predicted != mistake.label for mistake in evaluation.mistakes)


def test_progress_is_told_in_pictures(classifier):
    events = []
    evaluate_vit(classifier[0], datasets.DatasetDict(test=pictures(5)), batch_size=2, progress=events.append)
    assert [(event.done, event.total) for event in events] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert {(event.stage, event.unit) for event in events} == {("test", "pictures")}


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (pictures(3), {"split": "validation"}, "no validation split with pictures in it, only test"),
        (pictures(3), {"pictures": 0}, "0 pictures are nothing to evaluate on"),
        (
            pictures_of_several(7),
            {},
            "gives one class to a picture, but the test split has several classes to a picture",
        ),
        (
            pictures(5).cast_column("label", datasets.ClassLabel(names=["disc", "b", "c"])),
            {},
            r"the model does not know: 'b' \(2\), 'c' \(1\); it knows 'cross', 'triangle', 'disc', 'square'",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(classifier, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_vit(classifier[0], datasets.DatasetDict(test=data), **arguments)


def test_a_directory_without_a_model_is_said(tmp_path):
    data = datasets.DatasetDict(test=pictures(3))
    with pytest.raises(FileNotFoundError, match=r"is no picture classifier: it has no config\.json"):
        evaluate_vit(tmp_path, data)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a model without its image processor"):
        evaluate_vit(tmp_path, data)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        evaluate_vit(tmp_path / "not there", data)
