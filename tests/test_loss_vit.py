"""One loss for every kind of label: torch's own numbers, exact under accumulation, and nothing silently misread."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from hf_attn.loss_vit import IGNORED, MULTI_LABEL, REGRESSION, SINGLE_LABEL, classification_loss
from tests.tiny import tiny_vit

CLASSES = 5
KINDS = ("integer", "soft", "multi_label", "regression", "one_number")
CASES = [(kind, 0.0) for kind in KINDS] + [(kind, 0.2) for kind in ("integer", "soft", "multi_label")]


def example(kind: str, batch: int = 32, ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor, str | None]:
    """Logits in float64, labels of which some do not count, and the problem_type to give."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(batch, 1 if kind == "one_number" else CLASSES, generator=generator, dtype=torch.float64)
    skipped = torch.rand(logits.shape, generator=generator) < 0.3
    if kind == "integer":
        labels, skipped = torch.randint(CLASSES, (batch,), generator=generator), skipped[:, 0]
    elif kind == "soft":
        labels, skipped = torch.rand(logits.shape, generator=generator).double().softmax(-1), skipped[:, :1]
    elif kind == "multi_label":
        labels = (torch.rand(logits.shape, generator=generator) < 0.5).double()
    else:
        labels = torch.randn(logits.shape, generator=generator).double()
    if ignored:
        labels = labels.masked_fill(skipped, IGNORED)
    problem_type = {"multi_label": MULTI_LABEL, "regression": REGRESSION}.get(kind)
    return logits.requires_grad_(), labels, problem_type


def loss_and_gradient(logits: torch.Tensor, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    loss = classification_loss(logits, *arguments)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


# --- torch's own numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_classes_are_torch_s_cross_entropy(kind, dtype, tolerance, smoothing):
    logits, labels, problem_type = example(kind, ignored=False)
    labels = labels if kind == "integer" else labels.to(dtype)
    logits = logits.detach().to(dtype).requires_grad_()
    loss, gradient = loss_and_gradient(logits, labels, problem_type, smoothing)
    expected = functional.cross_entropy(
        logits.double(), labels if kind == "integer" else labels.double(), label_smoothing=smoothing
    )
    assert loss.shape == () and loss.dtype == torch.promote_types(dtype, torch.float32) and gradient.dtype == dtype
    assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=tolerance, atol=tolerance)


def test_other_labels_are_torch_s_losses():
    for kind, theirs in (
        ("multi_label", functional.binary_cross_entropy_with_logits),
        ("regression", functional.mse_loss),
        ("one_number", functional.mse_loss),
    ):
        logits, labels, problem_type = example(kind, ignored=False)
        loss, gradient = loss_and_gradient(logits, labels, problem_type)
        expected = theirs(logits, labels)
        assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "smoothing"), CASES)
def test_what_is_ignored_might_as_well_not_be_there(kind, smoothing):
    logits, labels, problem_type = example(kind)
    loss, gradient = loss_and_gradient(logits, labels, problem_type, smoothing)
    if kind in ("integer", "soft"):
        counts = (labels != IGNORED).view(len(labels), -1).any(-1)
        expected = functional.cross_entropy(logits[counts], labels[counts], label_smoothing=smoothing)
    elif kind == "multi_label":
        counts = labels != IGNORED
        smoothed = (1 - smoothing / 2) * labels + smoothing / 2 * (1 - labels)  # half of the share each: yes, no
        expected = functional.binary_cross_entropy_with_logits(logits[counts], smoothed[counts])
    else:
        counts = labels != IGNORED
        expected = functional.mse_loss(logits[counts], labels[counts])
    assert 0 < counts.sum() < counts.numel()
    assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert (gradient[~counts] == 0).all() and (gradient[counts] != 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_soft_label_that_is_all_one_class_is_that_class(smoothing):
    logits, labels, _ = example("integer", ignored=False)
    one_hot = functional.one_hot(labels, CLASSES).double()
    for soft in (one_hot, one_hot.float(), one_hot.bfloat16()):
        assert_close(
            loss_and_gradient(logits, soft, None, smoothing), loss_and_gradient(logits, labels, None, smoothing)
        )


def test_mixed_pictures_are_the_mixture_of_their_losses():
    logits, labels, _ = example("integer", ignored=False)
    one_hot = functional.one_hot(labels, CLASSES).double()
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    expected = 0.7 * classification_loss(logits, labels) + 0.3 * classification_loss(logits, labels.flip(0))
    assert_close(classification_loss(logits, mixed), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integers_of_any_width_are_labels(dtype):
    logits = torch.randn(3, 200)
    labels = torch.tensor([0, 156 if dtype == torch.uint8 else 0, 199])  # 156 is -100 in eight bits
    assert_close(classification_loss(logits, labels.to(dtype)), functional.cross_entropy(logits, labels))


def test_yes_and_no_may_be_given_as_booleans_or_integers():
    logits, labels, _ = example("multi_label", ignored=False)
    expected = classification_loss(logits, labels, MULTI_LABEL)
    for dtype in (torch.bool, torch.long, torch.float16):
        assert_close(classification_loss(logits, labels.to(dtype), MULTI_LABEL), expected)


def test_one_number_a_picture_may_come_in_a_row_or_a_column():
    logits, labels, _ = example("one_number")
    assert_close(classification_loss(logits, labels[:, 0]), classification_loss(logits, labels), rtol=0, atol=0)
    whole = labels.round().long()
    assert_close(classification_loss(logits, whole, REGRESSION), classification_loss(logits, whole.double()))


# --- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "smoothing"), CASES)
def test_one_large_batch_is_four_accumulated_small_ones(kind, smoothing):
    logits, labels, problem_type = example(kind)
    items = labels.ne(-100).sum()  # Trainer's count, over all batches of the step
    parts = labels.chunk(4)
    assert len({part.ne(-100).sum().item() for part in parts}) > 1  # or means of means would do

    whole, whole_gradient = loss_and_gradient(logits, labels, problem_type, smoothing)
    for count in (items, int(items), items.float()):
        small = [
            loss_and_gradient(x, y, problem_type, smoothing, count)
            for x, y in zip(logits.chunk(4), parts, strict=True)
        ]
        assert_close(torch.stack([loss for loss, _ in small]).sum(), whole, rtol=1e-6, atol=0)
        assert_close(torch.cat([gradient for _, gradient in small]), whole_gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), 7])
@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_counts_loss_and_gradients_are_zero(kind, items):
    logits, labels, problem_type = example(kind, batch=4)
    loss, gradient = loss_and_gradient(logits, torch.full_like(labels, IGNORED), problem_type, 0.0, items)
    assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_is_the_same(kind):
    torch.compiler.reset()
    logits, labels, problem_type = example(kind)
    compiled = torch.compile(classification_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(logits, labels, problem_type)
    expected, gradient = loss_and_gradient(logits, labels, problem_type)
    assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad(loss, logits)[0], gradient, rtol=1e-10, atol=1e-12)


# --- nothing silently misread ----------------------------------------------------------------------------------------


def test_what_the_labels_hold_does_not_choose_the_loss():
    """Zeros and ones in a row that has exactly one of them are both a soft label and several yes and no."""
    logits = torch.randn(3, CLASSES)
    rows = torch.eye(3, CLASSES)
    assert_close(classification_loss(logits, rows), functional.cross_entropy(logits, torch.arange(3)))
    rows[0, 1] = 1.0
    with pytest.raises(ValueError, match=r"sum of labels 2 of picture 0.*multi_label_classification"):
        classification_loss(logits, rows)
    assert_close(
        classification_loss(logits, rows, MULTI_LABEL), functional.binary_cross_entropy_with_logits(logits, rows)
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 5], r"label 5 of picture 1: it is not in 0\.\.4: the model has 5 classes, and labels count from 0"),
        ([-1, 0], r"label -1 of picture 0: it is not in 0\.\.4.* \(-100 to ignore the picture\)"),
        ([0, 1, 2], r"integer labels \(3,\) do not fit single_label_classification with logits \(2, 5\): .*\(2,\)"),
        ([[0], [1]], r"integer labels \(2, 1\) do not fit"),
        ([[0, 1, 0, 0, 1]] * 2, r'for several classes a picture set problem_type to "multi_label_classification"'),
        (
            [0.0, 1.0],
            r"float labels \(2,\) do not fit .*they must be integers \(2,\), or soft labels, floats \(2, 5\)",
        ),
        ([[0.2] * 5, [0.3] * 5], r"sum of labels 1\.5 of picture 1: .*must sum to 1: divide them by their sum"),
        ([[0.2] * 5, [1.1, -0.1, 0, 0, 0]], r"label -0\.1 of picture 1, column 1: a soft label is a share"),
        ([[0.2] * 5, [float("nan")] * 5], r"label nan of picture 1, column 0"),
        ([[0.2] * 5, [-100.0, 0.25, 0.25, 0.25, 0.25]], r"label -100 of picture 1, column 0"),
    ],
)
@pytest.mark.parametrize("problem_type", [None, SINGLE_LABEL])
def test_wrong_labels_of_one_class_a_picture_are_named(labels, message, problem_type):
    with pytest.raises(ValueError, match=message):
        classification_loss(torch.zeros(2, 5), torch.tensor(labels), problem_type)


@pytest.mark.parametrize(
    ("outputs", "labels", "problem_type", "message"),
    [
        (5, [[0.0, 1.0, 2.0, 0.0, 0.0]], MULTI_LABEL, r"label 2 of picture 0, column 2: it must be 0 or 1"),
        (5, [[0.0, 1.0, float("nan"), 0.0, 0.0]], MULTI_LABEL, r"label nan of picture 0, column 2"),
        (5, [3], MULTI_LABEL, r"integer labels \(1,\) do not fit multi_label_classification .*must be \(1, 5\)"),
        (5, [3.0], REGRESSION, r"float labels \(1,\) do not fit regression .*must be \(1, 5\)"),
        (1, [[0.0, 1.0]], None, r"float labels \(1, 2\) do not fit regression .*must be \(1, 1\) or \(1,\)"),
        (1, [float("inf")], None, r"label inf of picture 0: it must be a finite number"),
        (1, [1], None, r"integer labels for a model of 1 output: for classes set num_labels .*regression"),
        (1, [0], SINGLE_LABEL, r"needs at least 2 classes, this model has 1: set num_labels"),
        (5, [1], "classification", r"problem_type 'classification' is not one of single_label_classification, multi"),
    ],
)
def test_other_wrong_labels_are_named(outputs, labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(torch.zeros(1, outputs), torch.tensor(labels), problem_type)


def test_numbers_cannot_be_smoothed():
    with pytest.raises(ValueError, match=r"label_smoothing 0\.1 means nothing in regression"):
        classification_loss(torch.zeros(2, 1), torch.zeros(2), label_smoothing=0.1)


def test_shares_rounded_to_sixteen_bits_still_add_up_to_one():
    logits = torch.randn(64, 1000)
    shares = torch.rand(64, 1000).softmax(-1)
    assert_close(
        classification_loss(logits, shares.bfloat16(), label_smoothing=0.1),
        classification_loss(logits, shares, label_smoothing=0.1),
        rtol=5e-3,
        atol=0,
    )


# --- in the model, under Trainer -------------------------------------------------------------------------------------


def rows(kind: str) -> tuple[list[dict], dict]:
    """Pictures with labels as a dataset gives them, and how the model is configured for them."""
    _, labels, problem_type = example(kind)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(len(labels), 3, 32, 32, generator=generator).double()
    data = [{"pixel_values": picture, "labels": label} for picture, label in zip(pictures, labels, strict=True)]
    return data, {"num_labels": 1 if kind == "one_number" else CLASSES, "problem_type": problem_type}


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_accumulates_exactly_and_sets_no_problem_type(tmp_path, kind):
    data, config = rows(kind)
    trained = []
    for size, steps in ((32, 1), (8, 4)):
        model = tiny_vit(**config).double()
        arguments = TrainingArguments(
            output_dir=tmp_path,
            use_cpu=True,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        Trainer(model, arguments, train_dataset=data).train()
        trained.append([p.detach().clone() for p in model.parameters()])
        assert model.config.problem_type == config["problem_type"]
    untrained = list(tiny_vit(**config).double().parameters())
    moved = [(a - b).norm().item() for a, b in zip(trained[0], untrained, strict=True)]
    assert max(moved) > 0.01
    assert_close(trained[1], trained[0], rtol=1e-6, atol=1e-9)
