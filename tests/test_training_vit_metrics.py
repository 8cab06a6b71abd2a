"""Metrics are what counting by hand gives, whatever the order of the pictures, and no model without an opinion is
called right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EvalPrediction

from hf_attn.training.vit_metrics import (
    average_precision,
    class_accuracy,
    confusion_matrix,
    most_confused,
    multi_label_metrics,
    picture_scores,
    read_answers,
    single_label_metrics,
)

NAMES = list("abcdefg")


def drawn(pictures: int = 40, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits rounded so that some are equal, and labels."""
    random = np.random.default_rng(seed)
    return random.normal(size=(pictures, classes)).round(1), random.integers(0, classes, pictures)


# One class each


def test_answers_are_what_sorting_by_hand_gives():
    logits, labels = drawn()
    answers = read_answers(logits, labels)
    for row, (scores, label) in enumerate(zip(logits, labels, strict=True)):
        guesses = sorted(range(7), key=lambda each: (-scores[each], each))
        assert answers.rank[row] == guesses.index(label)
        assert answers.predicted[row] == guesses[0]
        shares = np.exp(scores) / np.exp(scores).sum()
        assert answers.confidence[row] == pytest.approx(shares[guesses[0]])
        assert answers.loss[row] == pytest.approx(-np.log(shares[label]))


def test_the_metrics_are_the_counts():
    logits, labels = drawn()
    metrics = single_label_metrics(read_answers(logits, labels), NAMES)
    guesses = np.argsort(-logits, axis=1, kind="stable")
    right = guesses[:, 0] == labels
    assert metrics["accuracy"] == right.mean()
    assert metrics["top_5_accuracy"] == (guesses[:, :5] == labels[:, None]).any(axis=1).mean()
    for number, name in enumerate(NAMES):
        assert metrics["class_accuracy"][name] == pytest.approx(right[labels == number].mean())
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(list(metrics["class_accuracy"].values())))
    assert metrics["pictures"] == 40


def test_a_model_that_says_nothing_is_not_right():
    labels = np.arange(7).repeat(10)
    same = single_label_metrics(read_answers(np.zeros((70, 7)), labels), NAMES)
    assert same["accuracy"] == pytest.approx(1 / 7) and same["top_5_accuracy"] == pytest.approx(5 / 7)
    assert same["loss"] == pytest.approx(np.log(7))
    with np.errstate(invalid="ignore"):
        broken = read_answers(np.full((70, 7), np.nan), labels)
    assert (broken.rank == 7).all()


def test_huge_logits_overflow_nothing():
    answers = read_answers(np.array([[1e5, 0.0], [-1e5, 0.0]]), np.array([0, 0]))
    assert answers.loss.tolist() == [0.0, 1e5] and answers.confidence.tolist() == [1.0, 1.0]


def test_five_guesses_of_five_classes_say_nothing():
    logits, labels = drawn(classes=5)
    assert "top_5_accuracy" not in single_label_metrics(read_answers(logits, labels), NAMES[:5])


def test_a_class_without_pictures_has_no_accuracy_and_counts_in_no_mean():
    metrics = single_label_metrics(read_answers(np.eye(3)[[0, 1, 1]], np.array([0, 1, 0])), NAMES[:3])
    assert metrics["class_accuracy"] == {"a": 0.5, "b": 1.0, "c": None}
    assert metrics["balanced_accuracy"] == 0.75


def test_the_confusion_matrix_counts_every_picture_once():
    logits, labels = drawn()
    predicted = read_answers(logits, labels).predicted
    matrix = confusion_matrix(labels, predicted, 7)
    for label in range(7):
        for other in range(7):
            assert matrix[label, other] == sum((labels == label) & (predicted == other))
    assert class_accuracy(matrix)[3] == matrix[3, 3] / matrix[3].sum()


def test_the_commonest_mistakes_come_first_and_hits_are_none():
    assert most_confused(np.array([[9, 1, 0], [4, 9, 2], [0, 0, 9]]), 5) == [(1, 0, 4), (1, 2, 2), (0, 1, 1)]
    assert most_confused(np.array([[9, 1], [4, 9]]), 1) == [(1, 0, 4)]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_that_are_no_class_are_refused(labels):
    with pytest.raises(
        ValueError, match=f"labels go from {min(labels)} to {max(labels)}, but the 3 logits are for 0 on"
    ):
        read_answers(np.zeros((2, 3)), np.array(labels))


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="0 pictures have no accuracy"):
        read_answers(np.zeros((0, 3)), np.array([]))


# Several classes each


def average_precision_by_thresholds(scores: list[float], positive: list[bool]) -> float:
    """The definition, threshold by threshold."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [hit for score, hit in zip(scores, positive, strict=True) if score >= threshold]
        recall = sum(taken) / sum(positive)
        total += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return total


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1))
def test_average_precision_is_its_definition(pictures):
    scores, positive = (list(each) for each in zip(*pictures, strict=True))
    found = average_precision(np.array(scores), np.array(positive))
    assert (
        found is None
        if not any(positive)
        else found == pytest.approx(average_precision_by_thresholds(scores, positive))
    )


def test_average_precision_of_a_known_ranking():
    assert average_precision(np.array([4, 3, 2, 1]), np.array([1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), np.array([1, 0, 1, 0])) == 0.5  # no opinion: the share of the positive


def test_classes_that_do_not_occur_count_in_no_mean():
    logits = np.array([[2.0, -1.0, 0.0], [-2.0, 1.0, 0.0]])
    metrics = multi_label_metrics(logits, np.array([[1, 0, 0], [0, 1, 0]]), NAMES[:3])
    assert metrics["class_average_precision"] == {"a": 1.0, "b": 1.0, "c": None}
    assert metrics["mean_average_precision"] == 1.0 and metrics["pictures"] == 2
    probability = 1 / (1 + np.exp(-np.abs(logits)))
    assert metrics["loss"] == pytest.approx(-np.log(probability).mean())
    nothing = multi_label_metrics(logits, np.zeros((2, 3)), NAMES[:3])
    assert nothing["mean_average_precision"] is None


def test_a_trainer_gets_the_numbers_that_make_curves():
    logits, labels = drawn()
    metrics = single_label_metrics(read_answers(logits, labels), NAMES)
    assert picture_scores(EvalPrediction(logits, labels)) == {
        name: metrics[name] for name in ("accuracy", "top_5_accuracy")
    }
    several = (logits > 0.5).astype(float)
    assert picture_scores(EvalPrediction(logits, several)) == {"mean_average_precision": 1.0}
    assert picture_scores(EvalPrediction(logits, np.zeros_like(logits))) == {}
