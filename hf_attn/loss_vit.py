"""The picture classifier's loss: cross-entropy, binary cross-entropy or squared error, exact under accumulation."""

import torch
from torch import nn

IGNORED = -100  # the label of what does not count
SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEMS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
SUM_TOLERANCE = 0.01  # of soft labels: shares that were rounded to bfloat16 add up to one within 0.4 %


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The mean loss of what is labelled, whatever the kind of label.

    | problem_type                | labels                                       | loss                  | mean over |
    |-----------------------------|----------------------------------------------|-----------------------|-----------|
    | single_label_classification | (batch,) integers                            | cross-entropy         | pictures  |
    |                             | (batch, classes) floats, each row adds to 1  | the same, soft labels | pictures  |
    | multi_label_classification  | (batch, classes), each from 0 to 1           | binary cross-entropy  | entries   |
    | regression                  | (batch, outputs), or (batch,) for one output | squared error         | entries   |

    With `problem_type` None, one output means regression and several mean single-label classification. What the labels
    hold never decides, so that no batch is taken for another problem than the one before it. A label of -100 does not
    count: a picture of single-label classification (with soft labels: a whole row of it), an entry of the other two.

    Args:
        logits: (batch, classes or outputs).
        labels: see the table.
        label_smoothing: the share taken from the given label and spread evenly over all classes (Szegedy et al. 2016,
            section 7), over yes and no for multi-label classification.
        num_items_in_batch: the labels that count in all batches of an optimizer step, as Trainer counts them, namely
            `labels.ne(-100).sum()`; soft labels are counted once a class. By default those of this batch.

    Returns:
        A float32 (or float64) scalar; zero, with zero gradients, where no label counts.

    Raises:
        ValueError: for labels of another shape or type than the problem's; on the CPU also for values out of range.
    """
    soft = labels.is_floating_point()
    labels = labels if soft else labels.long()  # in uint8, 156 would equal -100
    problem_type = _problem(logits, labels, problem_type)
    _check_shape(logits, labels, problem_type)
    _check_values(logits, labels, problem_type)
    if problem_type == REGRESSION and label_smoothing:
        raise ValueError(f"label_smoothing {label_smoothing} means nothing in regression: set it to 0")

    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device, torch.long if problem_type == SINGLE_LABEL and not soft else logits.dtype)
    counted = labels != IGNORED
    items = counted.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    items = items.to(logits.device).clamp(min=1)

    if problem_type == SINGLE_LABEL:
        if soft:
            items = items / logits.shape[-1]
            counted = counted.any(dim=-1)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    elif problem_type == MULTI_LABEL:
        labels = (1 - label_smoothing) * labels + label_smoothing / 2
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        losses = nn.functional.mse_loss(logits.view_as(labels), labels, reduction="none")
    return losses.masked_fill(~counted, 0.0).sum() / items


def _problem(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> str:
    outputs = logits.shape[-1]
    if problem_type is None and outputs == 1 and not labels.is_floating_point():
        raise ValueError(
            "integer labels for a model of 1 output: for classes set num_labels to their number (2 for yes and no), "
            'for regression give float labels or set problem_type to "regression"'
        )
    if problem_type == SINGLE_LABEL and outputs == 1:
        raise ValueError(f'problem_type "{SINGLE_LABEL}" needs at least 2 classes, this model has 1: set num_labels')
    if problem_type is None:
        return REGRESSION if outputs == 1 else SINGLE_LABEL
    if problem_type not in PROBLEMS:
        raise ValueError(f"problem_type {problem_type!r} is not one of {', '.join(PROBLEMS)}")
    return problem_type


def _check_shape(logits: torch.Tensor, labels: torch.Tensor, problem_type: str) -> None:
    batch, outputs = logits.shape
    kind = "float" if labels.is_floating_point() else "integer"
    if problem_type == SINGLE_LABEL:
        right = labels.shape == ((batch, outputs) if kind == "float" else (batch,))
        rule = (
            f"they must be integers ({batch},), or soft labels, floats ({batch}, {outputs}); "
            f'for several classes a picture set problem_type to "{MULTI_LABEL}", for numbers to "{REGRESSION}"'
        )
    else:
        right = labels.shape == (batch, outputs)
        rule = f"they must be ({batch}, {outputs})"
        if problem_type == REGRESSION and outputs == 1:
            right = right or labels.shape == (batch,)
            rule += f" or ({batch},)"
    if not right:
        raise ValueError(
            f"{kind} labels {tuple(labels.shape)} do not fit {problem_type} with logits ({batch}, {outputs}): {rule}"
        )


def _check_values(logits: torch.Tensor, labels: torch.Tensor, problem_type: str) -> None:
    """Raise a ValueError that names the first wrong label, its place, and the rule."""
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return  # looking would make a GPU wait
    classes = logits.shape[-1]
    counted = labels != IGNORED
    if problem_type == REGRESSION:
        _refuse(~labels.isfinite(), labels, "it must be a finite number")
    elif problem_type == MULTI_LABEL:
        in_range = (labels >= 0) & (labels <= 1)
        _refuse(counted & ~in_range, labels, "it must be 0 or 1, a probability between, or -100 to ignore it")
    elif not labels.is_floating_point():
        rule = f"it is not in 0..{classes - 1}: the model has {classes} classes, and labels count from 0"
        _refuse(counted & ((labels < 0) | (labels >= classes)), labels, f"{rule} (-100 to ignore the picture)")
    else:
        counted = counted.any(dim=-1)
        _refuse(counted[:, None] & ~(labels >= 0), labels, "a soft label is a share, from 0 to 1")
        sums = labels.sum(dim=-1, dtype=torch.promote_types(labels.dtype, torch.float32))
        rule = "the soft labels of a picture must sum to 1"
        remedy = f'divide them by their sum, or set problem_type to "{MULTI_LABEL}" if each class is a yes or no'
        _refuse(counted & ~((sums - 1).abs() <= SUM_TOLERANCE), sums, f"{rule}: {remedy}", "sum of labels")


def _refuse(wrong: torch.Tensor, values: torch.Tensor, rule: str, what: str = "label") -> None:
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        where = ", ".join(f"{name} {index}" for name, index in zip(("picture", "column"), place, strict=False))
        raise ValueError(f"{what} {values[tuple(place)].item():.7g} of {where}: {rule}")
