"""How good a picture classifier's answers are: accuracy and confusion, or average precision where classes overlap.

All of it is plain counting on arrays, without the network and without other packages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import EvalPrediction

TOP = 5  # the number of guesses of top-5 accuracy, which means something only where there are more classes


@dataclass
class Answers:
    """What a model said to some pictures that have one class each, all arrays of shape (pictures,)."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]  # the class with the highest logit, the first of several
    rank: NDArray[np.int64]  # of the right class, 0 for the best
    confidence: NDArray[np.float64]  # probability of the class predicted
    loss: NDArray[np.float64]  # nats


def read_answers(logits: NDArray, labels: NDArray) -> Answers:
    """Compare logits with the classes that are right.

    Of equal logits that of the lower class counts as the better guess, so that a model which always says the same is
    not called right. Logits that are no numbers are wrong.

    Args:
        logits: (pictures, classes).
        labels: (pictures,).

    Raises:
        ValueError: if there are no pictures, or a label is no class.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    classes = logits.shape[-1]
    if not len(labels):
        raise ValueError("0 pictures have no accuracy; give at least one")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, but the {classes} logits are for 0 on")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    behind = (logits < own) | ((logits == own) & (np.arange(classes) >= labels[:, None]))
    predicted = logits.argmax(axis=1)
    log_shares = logits - _log_sum_exp(logits)
    rows = np.arange(len(labels))
    return Answers(
        labels=labels,
        predicted=predicted,
        rank=(~behind).sum(axis=1),
        confidence=np.exp(log_shares[rows, predicted]),
        loss=-log_shares[rows, labels],
    )


def confusion_matrix(labels: NDArray, predicted: NDArray, classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many pictures of the class of the row were taken for the class of the column."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def class_accuracy(confusion: NDArray[np.int64]) -> list[float | None]:
    """The share of each class's pictures that were recognised; None for a class without pictures."""
    pictures, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    return [hits / number if number else None for hits, number in zip(right, pictures, strict=True)]


def most_confused(confusion: NDArray[np.int64], number: int) -> list[tuple[int, int, int]]:
    """(class, class it was taken for, how often) of the commonest mistakes, the commonest first."""
    mistakes = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:number]
    places = zip(*np.unravel_index(order, mistakes.shape), strict=True)
    return [(int(label), int(other), int(mistakes[label, other])) for label, other in places if mistakes[label, other]]


def average_precision(scores: NDArray, positive: NDArray) -> float | None:
    """The area under the curve of precision over recall, as a sum of steps; None where nothing is positive.

    AP = Σ (recall_k - recall_k-1) · precision_k over the thresholds k from the highest score down, where pictures of
    equal score come together, so that their order does not count. No interpolation, which would flatter.

    Args:
        scores: (pictures,), higher for what is likelier positive.
        positive: (pictures,), true where it is.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf)  # no number is no opinion
    positive = np.asarray(positive, bool)
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(positive[order])
    last_of_its_score = np.append(scores[1:] != scores[:-1], True)
    found, taken = found[last_of_its_score], np.flatnonzero(last_of_its_score) + 1
    return float((np.diff(found, prepend=0) * found / taken).sum() / positive.sum())


def single_label_metrics(answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """The metrics of pictures that have one class each.

    Args:
        names: of the classes.

    Returns:
        `accuracy`, `top_5_accuracy` where there are more than five classes, `balanced_accuracy` (the mean over the
        classes), `loss` (nats per picture), `pictures` and `class_accuracy` by name.
    """
    by_class = class_accuracy(confusion_matrix(answers.labels, answers.predicted, len(names)))
    metrics: dict[str, Any] = {"accuracy": float((answers.rank == 0).mean())}
    if len(names) > TOP:
        metrics["top_5_accuracy"] = float((answers.rank < TOP).mean())
    return metrics | {
        "balanced_accuracy": _mean_of_known(by_class),
        "loss": float(answers.loss.mean()),
        "pictures": len(answers.labels),
        "class_accuracy": dict(zip(names, by_class, strict=True)),
    }


def multi_label_metrics(logits: NDArray, labels: NDArray, names: Sequence[str]) -> dict[str, Any]:
    """The metrics of pictures that may have several classes, or none.

    Args:
        logits: (pictures, classes).
        labels: (pictures, classes), one for the classes a picture has and zero for the others.
        names: of the classes.

    Returns:
        `mean_average_precision` over the classes that occur (None if none does), `loss` (binary cross-entropy, nats
        per picture and class), `pictures` and `class_average_precision` by name, None for classes that do not occur.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    by_class = [average_precision(logits[:, each], labels[:, each] > 0.5) for each in range(len(names))]
    losses = np.logaddexp(0, logits) - logits * labels
    return {
        "mean_average_precision": _mean_of_known(by_class),
        "loss": float(losses.mean()),
        "pictures": len(labels),
        "class_average_precision": dict(zip(names, by_class, strict=True)),
    }


def picture_scores(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` of a trainer: the metrics of `single_label_metrics` or `multi_label_metrics` that are curves.

    Labels of shape (pictures,) are one class each, labels of shape (pictures, classes) the classes a picture has.
    """
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    names = [str(each) for each in range(logits.shape[1])]
    if labels.ndim == 2:
        value = multi_label_metrics(logits, labels, names)["mean_average_precision"]
        return {} if value is None else {"mean_average_precision": value}
    metrics = single_label_metrics(read_answers(logits, labels), names)
    return {name: metrics[name] for name in ("accuracy", "top_5_accuracy") if name in metrics}


def _log_sum_exp(logits: NDArray) -> NDArray:
    highest = logits.max(axis=1, keepdims=True)
    return highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
