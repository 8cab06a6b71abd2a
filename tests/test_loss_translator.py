"""The loss is label-smoothed cross-entropy, exact under accumulation, and defined where nothing counts."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_attn import loss_translator
from hf_attn.loss_translator import IGNORED, label_smoothed_loss
from tests.tiny import tiny_translator

PAD, EOS = 1, 2


def example(dtype: torch.dtype = torch.float64, vocabulary: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 4, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (3, 4), generator=generator)
    labels[1, 2:] = IGNORED
    labels[2] = IGNORED
    return logits.to(dtype).requires_grad_(), labels


def in_plain_words(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """-Σ q(k) log p(k) with q = (1 - ε) [k is the label] + ε / K (Szegedy et al. 2016, section 7), summed."""
    total = 0.0
    for row, label in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label == IGNORED:
            continue
        normaliser = math.log(sum(math.exp(x) for x in row))
        for k, x in enumerate(row):
            q = (1 - smoothing) * (k == label) + smoothing / len(row)
            total -= q * (x - normaliser)
    return total


# --- the sum and what it is divided by -------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_it_is_the_definition_of_label_smoothing(smoothing):
    logits, labels = example()
    expected = in_plain_words(logits, labels, smoothing)
    counted = (labels != IGNORED).sum().item()
    assert label_smoothed_loss(logits, labels, smoothing).item() == pytest.approx(expected / counted, rel=1e-12)
    for items in (10, torch.tensor(10)):
        assert label_smoothed_loss(logits, labels, smoothing, items).item() == pytest.approx(expected / 10, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 14, 1 << 20])  # one row at a time, two, all
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
def test_it_agrees_with_torch_forward_and_backward(monkeypatch, smoothing, chunk, dtype, tolerance):
    monkeypatch.setattr(loss_translator, "CHUNK_ELEMENTS", chunk)
    logits, labels = example(dtype)
    loss = label_smoothed_loss(logits, labels, smoothing)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_the_derivative():
    logits, labels = example()
    assert torch.autograd.gradcheck(lambda x: label_smoothed_loss(x, labels, 0.1), logits)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_large_and_small_logits_are_no_trouble(scale):
    logits, labels = example()
    logits = (scale * logits).detach().float().requires_grad_()
    loss = label_smoothed_loss(logits, labels, 0.1)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_compiled_it_is_the_same():
    torch.compiler.reset()
    logits, labels = example()
    expected = label_smoothed_loss(logits, labels, 0.1)
    found = torch.compile(label_smoothed_loss, fullgraph=True, backend="aot_eager")(logits, labels, 0.1)
    assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), 5])
def test_where_nothing_counts_loss_and_gradients_are_zero(items):
    logits, labels = example()
    loss = label_smoothed_loss(logits, torch.full_like(labels, IGNORED), 0.1, items)
    loss.backward()
    assert loss.item() == 0.0
    assert (logits.grad == 0).all()


def test_rows_that_do_not_count_get_no_gradient():
    logits, labels = example()
    label_smoothed_loss(logits, labels, 0.1).backward()
    assert (logits.grad[labels == IGNORED] == 0).all()
    assert (logits.grad[labels != IGNORED] != 0).all()


# --- in the model ----------------------------------------------------------------------------------------------------


def pairs(rows: int, source_length: int, target_length: int, seed: int) -> dict[str, torch.Tensor]:
    """A batch whose sentences have different lengths, the longest as given, and its labels padded with -100."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 41, (rows, source_length), generator=generator)
    labels = torch.randint(4, 41, (rows, target_length), generator=generator)
    for i in range(1, rows):
        source[i, 1 + (i * 3) % source_length :] = PAD
        labels[i, 1 + (i * 5) % target_length :] = IGNORED
    return {"input_ids": source, "labels": labels}


def padded(tensor: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def test_smoothed_in_training_plain_in_evaluation():
    model = tiny_translator(label_smoothing=0.2)
    inputs = pairs(3, 6, 5, seed=0)
    outputs = model(**inputs)
    flat, labels = outputs.logits.flatten(0, 1), inputs["labels"].flatten()
    assert_close(outputs.loss, torch.nn.functional.cross_entropy(flat, labels))
    smoothed = torch.nn.functional.cross_entropy(flat, labels, label_smoothing=0.2)
    assert_close(model.train()(**inputs).loss, smoothed)
    assert not torch.isclose(smoothed, outputs.loss)


def test_one_large_batch_is_four_accumulated_small_ones():
    shapes = [(5, 9), (9, 4), (3, 12), (12, 7)]
    small = [pairs(8, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    large = {
        "input_ids": torch.cat([padded(batch["input_ids"], 12, PAD) for batch in small]),
        "labels": torch.cat([padded(batch["labels"], 12, IGNORED) for batch in small]),
    }
    items = (large["labels"] != IGNORED).sum()
    assert len({(batch["labels"] != IGNORED).sum().item() for batch in small}) > 1
    losses, gradients = [], []
    for batches in ([large], small):
        model = tiny_translator(label_smoothing=0.1).double().train()
        parts = [model(**batch, num_items_in_batch=items).loss for batch in batches]
        for part in parts:
            part.backward()
        losses.append(torch.stack(parts).sum())
        gradients.append([p.grad for p in model.parameters()])
    assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-12)
    mean = tiny_translator(label_smoothing=0.1).double().train()(**large).loss
    assert_close(mean, losses[0], rtol=1e-12, atol=0)  # what the default divides by


@pytest.mark.parametrize("items", [None, 0])
def test_a_batch_without_labels_that_count_teaches_nothing(items):
    model = tiny_translator().train()
    labels = torch.full((2, 3), IGNORED)
    loss = model(input_ids=torch.tensor([[5, EOS], [6, EOS]]), labels=labels, num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_a_row_without_labels_that_count_changes_nothing():
    inputs = pairs(2, 6, 5, seed=0)
    with_row = {
        "input_ids": torch.cat([inputs["input_ids"], inputs["input_ids"][:1]]),
        "labels": torch.cat([inputs["labels"], torch.full((1, 5), IGNORED)]),
    }
    gradients = []
    for batch in (inputs, with_row):
        model = tiny_translator().double().train()
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [41, -1, -99, 50_000])
def test_a_label_outside_the_vocabulary_is_named(wrong):
    inputs = pairs(2, 4, 4, seed=0)
    inputs["labels"][0, 3] = wrong
    message = f"label {wrong} at row 0, position 3 is outside the vocabulary: .* 0 to 40, or -100 to ignore it"
    with pytest.raises(ValueError, match=message):
        tiny_translator()(**inputs)


def test_the_decoder_reads_the_labels_shifted_right():
    model = tiny_translator()
    labels = torch.tensor([[7, 8, EOS], [9, EOS, IGNORED], [IGNORED, 10, EOS]])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[0, 7, 8], [0, 9, EOS], [0, PAD, 10]]
    source = torch.tensor([[5, EOS]] * 3)
    assert_close(
        model(input_ids=source, labels=labels).logits, model(input_ids=source, decoder_input_ids=shifted).logits
    )


# --- under Trainer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, 41))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def trainer(output_dir, model, tokenizer, **arguments) -> Seq2SeqTrainer:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (32, 2), generator=generator).tolist()
    data = [
        {
            "input_ids": [*torch.randint(4, 41, (source,), generator=generator).tolist(), EOS],
            "labels": [*torch.randint(4, 41, (target,), generator=generator).tolist(), EOS],
        }
        for source, target in lengths
    ]
    return Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            output_dir=output_dir,
            use_cpu=True,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **arguments,
        ),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )


def test_trainer_accumulates_exactly(tmp_path, tokenizer):
    trained = []
    for size, steps in ((32, 1), (8, 4)):
        model = tiny_translator().double()
        run = trainer(tmp_path, model, tokenizer, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        run.train()
        trained.append([p.detach().clone() for p in model.parameters()])
    untrained = list(tiny_translator().double().parameters())
    moved = [(a - b).norm().item() for a, b in zip(trained[0], untrained, strict=True)]
    assert max(moved) > 0.01
    assert_close(trained[1], trained[0], rtol=1e-6, atol=1e-9)


def test_trainer_s_own_label_smoother_gives_the_same_loss(tmp_path, tokenizer):
    ours = tiny_translator(label_smoothing=0.1).double().train()
    theirs = tiny_translator(label_smoothing=0.0).double().train()
    run = trainer(tmp_path, theirs, tokenizer, label_smoothing_factor=0.1)
    batch = run.data_collator(run.train_dataset[:8])
    assert "decoder_input_ids" in batch
    expected = ours(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert_close(run.compute_loss(theirs, dict(batch)), expected, rtol=1e-6, atol=0)
