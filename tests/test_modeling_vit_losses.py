"""The loss through the ViT: right for every kind of label, exact under accumulation; no batch changes the config."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from hf_attn import AttnViTForImageClassification
from tests.tiny import tiny_vit

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randn(32, 3, 16, 16, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.randint(3, (32,), generator=GENERATOR)
SHARES = torch.rand(32, 3, generator=GENERATOR, dtype=torch.float64).softmax(dim=-1)
YES_OR_NO = (torch.rand(32, 3, generator=GENERATOR) < 0.4).double()
NUMBERS = torch.randn(32, 3, generator=GENERATOR, dtype=torch.float64)

KINDS = {  # what the config says, the labels, the same loss by torch
    "integers": ({}, CLASSES, cross_entropy),
    "soft": ({}, SHARES, cross_entropy),
    "soft, said so": ({"problem_type": "single_label_classification"}, SHARES, cross_entropy),
    "multi-label": ({"problem_type": "multi_label_classification"}, YES_OR_NO, binary_cross_entropy_with_logits),
    "regression": ({"problem_type": "regression"}, NUMBERS, mse_loss),
    "one number": ({"num_labels": 1}, NUMBERS[:, :1], mse_loss),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def model_for(kind: str, **fields) -> AttnViTForImageClassification:
    return tiny_vit(image_size=16, num_hidden_layers=1, **{**KINDS[kind][0], **fields}).double()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


@kinds
@pytest.mark.parametrize("training", [False, True])
def test_the_loss_is_torch_s(kind, training):
    _, labels, loss = KINDS[kind]
    model = model_for(kind).train(training)
    before = model.config.to_json_string()
    outputs = model(PICTURES, labels=labels)
    assert_close(outputs.loss, loss(outputs.logits, labels), rtol=1e-10, atol=1e-10)
    assert model.config.to_json_string() == before


def test_labels_of_another_kind_in_the_next_batch_change_nothing():
    model = model_for("integers")
    before = model.config.to_json_string()
    expected = model(PICTURES, labels=CLASSES).loss
    model(PICTURES, labels=SHARES)
    assert torch.equal(model(PICTURES, labels=CLASSES).loss, expected)
    assert model.config.to_json_string() == before


@pytest.mark.parametrize("kind", ["integers", "soft", "multi-label"])
def test_labels_are_smoothed_in_training_only(kind):
    _, labels, loss = KINDS[kind]
    model = model_for(kind, label_smoothing=0.2)
    logits = model(PICTURES).logits
    assert_close(model(PICTURES, labels=labels).loss, loss(logits, labels))
    if kind == "multi-label":
        smoothed = binary_cross_entropy_with_logits(logits, 0.8 * labels + 0.1)
    else:
        smoothed = cross_entropy(logits, labels, label_smoothing=0.2)
    assert_close(model.train()(PICTURES, labels=labels).loss, smoothed)


@kinds
@pytest.mark.parametrize("ignored", [False, True])
def test_four_accumulated_batches_are_one_large_one(kind, ignored):
    _, labels, _ = KINDS[kind]
    labels = labels.clone()
    if ignored:  # nine of the first batch, so that its mean counts for less
        labels[:5] = -100
    counted = (labels != -100).sum()
    whole = model_for(kind).train()
    expected = whole(PICTURES, labels=labels, num_items_in_batch=counted).loss
    expected.backward()
    accumulated = model_for(kind).train()
    losses = []
    for pictures, part in zip(PICTURES.split(8), labels.split(8), strict=True):
        losses.append(accumulated(pictures, labels=part, num_items_in_batch=counted).loss)
        losses[-1].backward()
    assert_close(sum(losses), expected, rtol=1e-6, atol=1e-10)
    assert_close(gradients(accumulated), gradients(whole), rtol=1e-6, atol=1e-10)
    assert_close(whole(PICTURES, labels=labels).loss, expected)  # without the number it is the mean of the batch


@pytest.mark.parametrize(
    ("kind", "smoothing"), [*((kind, 0.0) for kind in KINDS), ("integers", 0.1), ("soft", 0.1), ("multi-label", 0.1)]
)
def test_trainer_accumulates_to_the_same_step(tmp_path, kind, smoothing):
    _, labels, _ = KINDS[kind]
    rows = [{"pixel_values": picture, "labels": label} for picture, label in zip(PICTURES, labels, strict=True)]
    stepped = []
    for batch, accumulation in ((32, 1), (8, 4)):
        model = model_for(kind, label_smoothing=smoothing)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
            dataloader_pin_memory=False,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        problem = (model.config.problem_type, model.config.num_labels)
        weights = deepcopy(model.state_dict())
        Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
        assert (model.config.problem_type, model.config.num_labels) == problem
        stepped.append({name: weights[name] - weight for name, weight in model.state_dict().items()})
    assert stepped[0]["classifier.weight"].abs().max() > 1e-3
    assert_close(stepped[1], stepped[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({}, torch.tensor([0, 3]), r"label 3 of picture 1: it is not in 0\.\.2: the model has 3 classes"),
        ({}, torch.tensor([0, -1]), "label -1 of picture 1"),
        ({}, torch.tensor([[0.5, 0.5, 0.5], [1, 0, 0]]), "must sum to 1"),
        ({}, torch.tensor([[0, 1, 1], [1, 0, 0]]), 'set problem_type to "multi_label_classification"'),
        ({}, torch.tensor([0, 1, 2]), r"labels \(3,\) do not fit"),
        ({"num_labels": 1}, torch.tensor([0, 1]), "integer labels for a model of 1 output"),
        ({"problem_type": "multi_label_classification"}, torch.tensor([0, 1]), r"must be \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(fields, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(image_size=16, **fields)(PICTURES[:2].float(), labels=labels)


def test_a_loss_in_half_precision_is_computed_in_single():
    model = tiny_vit(image_size=16).bfloat16()
    outputs = model(PICTURES.bfloat16(), labels=CLASSES)
    assert outputs.loss.dtype == torch.float32
    assert_close(outputs.loss, cross_entropy(outputs.logits.float(), CLASSES))
