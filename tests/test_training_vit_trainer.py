"""ViTTrainer: the laws of accumulation, augmentation, schedule and resuming, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from hf_attn.training.checkpoints import complete_checkpoints
from hf_attn.training.vit_trainer import ViTTrainer, ViTTrainingArguments
from tests.tiny import tiny_vit
from tests.training_runs import STEPS, VIT_KILLS, WORKERS, ChangedPictures, mix, stack

TESTS = Path(__file__).parent


def trainer(directory, model=None, data=None, collator=stack, callbacks=None, **changes) -> ViTTrainer:
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "bf16": False, "use_cpu": True, "disable_tqdm": True}
    arguments = ViTTrainingArguments(output_dir=str(directory), **{**settings, "save_strategy": "no", **changes})
    rows, unseen = data or ChangedPictures(20, seed=1), ChangedPictures(10, seed=2)
    made = ViTTrainer(model or tiny_vit(), arguments, collator, rows, unseen, callbacks=callbacks, eval_collator=stack)
    made.remove_callback(PrinterCallback)
    return made


class Gradients(TrainerCallback):
    """Keeps what the optimizer is given at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: value.grad.clone() for name, value in model.named_parameters()})


# Killed and resumed


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    subprocess.run(
        [sys.executable, str(TESTS / "training_runs.py"), "vit", str(directory)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    return directory


def weights(runs: Path, run: str, result: str = f"checkpoint-{STEPS}") -> dict[str, torch.Tensor]:
    return load_file(runs / run / result / "model.safetensors")


@pytest.mark.parametrize("company", WORKERS)
@pytest.mark.parametrize("kill", VIT_KILLS)
def test_a_run_that_was_killed_ends_with_the_same_weights(runs, kill, company):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes[f"undisturbed_{company}"] == [0]
    assert outcomes[f"{kill}_{company}"] == [3 if kill.startswith("ctrl_c") else -9, 0]
    for result in (f"checkpoint-{STEPS}", "average", "moving_average"):
        expected, resumed = weights(runs, "undisturbed_alone", result), weights(runs, f"{kill}_{company}", result)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected), result


def test_workers_do_not_change_what_is_learned(runs):
    alone, helped = (weights(runs, f"undisturbed_{company}") for company in WORKERS)
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_two_processes_train_as_one_that_accumulates(runs):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["one_as_two"] == [0] and outcomes["two"] == [0, 0]
    assert_close(weights(runs, "two"), weights(runs, "one_as_two"), rtol=1e-4, atol=1e-5)
    logs = [
        json.loads((runs / name / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        for name in ("one_as_two", "two")
    ]
    for expected, entry in zip(*logs, strict=True):
        for name in {"loss", "pictures", "learning_rate"} & expected.keys():
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), (entry["step"], name)


def test_two_processes_stop_after_the_same_step_when_the_time_is_up(runs):
    assert json.loads((runs / "outcomes.json").read_text())["two_in_a_hurry"] == [0, 0]
    assert [path.name for path in complete_checkpoints(runs / "two_in_a_hurry")] == ["checkpoint-6", "checkpoint-7"]


# Laws of training


def labels_of_kind(kind: str, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "integers":
        labels = torch.randint(3, (number,), generator=generator)
        return labels.masked_fill(torch.arange(number) % 5 == 0, -100)  # unlabelled, unevenly among the batches
    if kind == "soft":
        return torch.rand(number, 3, generator=generator, dtype=torch.float64).softmax(-1)
    labels = torch.randint(2, (number, 3), generator=generator).double()
    return labels.masked_fill(torch.rand(number, 3, generator=generator) < 0.2, -100)


@pytest.mark.parametrize("kind", ["integers", "soft", "several"])
def test_one_large_batch_is_four_accumulated_small_ones(tmp_path, kind):
    pictures = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = labels_of_kind(kind, 32)
    rows = list(zip(pictures, labels, strict=True))
    problem = "multi_label_classification" if kind == "several" else "single_label_classification"
    seen = {}
    for size in (32, 8):
        gradients = Gradients()
        run = trainer(
            tmp_path,
            tiny_vit(problem_type=problem, label_smoothing=0.1).double(),
            rows,
            callbacks=[gradients],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=32 // size,
            max_steps=1,
            max_grad_norm=1e9,
            logging_steps=1,
        )
        run.train()
        assert run.model.config.problem_type == problem
        seen[size] = gradients.steps[0], run.state.log_history[0]["loss"]
    assert max(gradient.abs().max() for gradient in seen[32][0].values()) > 1e-3
    assert_close(seen[8][0], seen[32][0], rtol=1e-6, atol=1e-12)
    assert seen[8][1] == pytest.approx(seen[32][1], rel=1e-6)


def test_an_epoch_is_every_picture_once_and_the_log_counts_them(tmp_path):
    run = trainer(tmp_path, max_steps=-1, num_train_epochs=2, logging_steps=3, data=ChangedPictures(18, seed=0))
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["pictures"] for entry in logged] == [12, 18 + 4, 18 + 16]  # of steps 3, 6 and 9
    assert all(entry["pictures_per_second"] > 0 for entry in logged)
    assert run.state.log_history[-1]["pictures"] == run.throughput.count == 36


def test_the_operations_are_those_of_the_weights(tmp_path):
    model = tiny_vit(num_register_tokens=3)
    operations = trainer(tmp_path, model).floating_point_ops({"pixel_values": torch.zeros(5, 3, 32, 48)})
    assert operations == 5 * (1 + 3 + 4 * 6) * 6 * sum(parameter.numel() for parameter in model.parameters())


def test_gradients_are_clipped(tmp_path):
    gradients = Gradients()
    trainer(tmp_path, callbacks=[gradients], max_grad_norm=0.01).train()
    for step in gradients.steps:
        norm = torch.stack([value.norm() for value in step.values()]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-3)


def test_bf16_trains_in_bf16_and_keeps_float32_weights(tmp_path):
    kinds = set()
    model = tiny_vit()
    model.model.layers[0].feed_forward.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    run = trainer(tmp_path, model, bf16=True)
    run.train()
    run.evaluate()
    assert kinds == {torch.bfloat16} and {value.dtype for value in model.parameters()} == {torch.float32}


def test_another_optimizer_can_be_had(tmp_path):
    run = trainer(tmp_path, optim="sgd", layer_decay=0.5, learning_rate=0.2)
    run.create_optimizer()
    assert type(run.optimizer) is torch.optim.SGD and run.optimizer.param_groups[-1]["lr"] == 0.2 * 0.5**3


def test_a_frozen_body_stays_as_it_is(tmp_path):
    model = tiny_vit()
    model.model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, model).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


# Optimizer and schedule


def test_what_the_optimizer_is_told(tmp_path):
    run = trainer(tmp_path, layer_decay=0.5, weight_decay=0.3, learning_rate=0.8, warmup_steps=0, logging_steps=1)
    run.train()
    groups = run.optimizer.param_groups
    assert [(group["layer"], group["weight_decay"]) for group in groups] == [
        (layer, decay) for layer in (3, 2, 1, 0) for decay in (0.3, 0.0)
    ]
    assert [group["initial_lr"] for group in groups] == [rate for rate in (0.8, 0.4, 0.2, 0.1) for _ in range(2)]
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.8 * 0.5 * (1 + np.cos(np.pi * step / 4)) for step in range(4)])


def test_the_cosine_ends_when_the_time_is_up(tmp_path):
    settings = {"max_steps": 10_000, "max_minutes": 1, "warmup_steps": 0.2, "learning_rate": 0.5, "logging_steps": 1}
    run = trainer(tmp_path, **settings, save_strategy="steps", save_steps=10)
    seconds = iter(range(10_000))
    run.time_limit.clock = lambda: 2 * next(seconds)  # two at the start of training, one a step, one for its log
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    peak = int(np.argmax(rates))
    assert 20 < len(rates) < 35 and 0.15 < peak / len(rates) < 0.25 and rates[peak] > 0.45
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert 0 <= rates[-1] < 0.01


def test_a_run_limited_in_time_resumes_on_the_same_schedule(tmp_path):
    settings = {"max_steps": 10_000, "max_minutes": 1, "warmup_steps": 0.2, "learning_rate": 0.5, "logging_steps": 1}
    settings |= {"save_strategy": "steps", "save_steps": 5, "average_last": 3}

    def limited(resumed_at: float) -> ViTTrainer:
        run = trainer(tmp_path, **settings)
        run.time_limit.clock = lambda: resumed_at + 4.0 * run.state.global_step
        return run

    first = limited(0.0)
    first.train()
    again = limited(1000.0)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    rates = [
        {entry["step"]: entry["learning_rate"] for entry in run.state.log_history if "loss" in entry}
        for run in (first, again)
    ]
    assert again.state.global_step == first.state.global_step
    assert rates[0] == pytest.approx(rates[1])


def test_another_schedule_of_transformers_can_be_had(tmp_path):
    run = trainer(tmp_path, warmup_steps=0, learning_rate=0.4, lr_scheduler_type="linear", logging_steps=1)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


# Evaluation


def test_the_evaluation_loss_is_the_mean_over_all_pictures(tmp_path):
    pictures = [(picture, label) for picture, label in zip(*vars(ChangedPictures(10, 3)).values(), strict=True)]
    model = tiny_vit(label_smoothing=0.1)
    loss = trainer(tmp_path, model, collator=mix, per_device_eval_batch_size=4).evaluate(pictures)["eval_loss"]
    batch = stack(pictures)
    with torch.no_grad():
        logits = model(batch["pixel_values"]).logits
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, batch["labels"]).item(), rel=1e-5)


def test_evaluation_has_its_own_collator_and_metrics(tmp_path):
    def accuracy(prediction):
        logits, labels = prediction
        assert logits.shape == (10, 3) and labels.shape == (10,)  # with the collator of training: (10, 3), soft
        return {"accuracy": (logits.argmax(-1) == labels).mean()}

    rows = [(picture, label) for picture, label in zip(*vars(ChangedPictures(10, 3)).values(), strict=True)]
    run = trainer(tmp_path, collator=mix, per_device_eval_batch_size=4, dataloader_num_workers=1)
    run.compute_metrics = accuracy
    with torch.no_grad():
        right = run.model(stack(rows)["pixel_values"]).logits.argmax(-1) == stack(rows)["labels"]
    assert run.evaluate(rows)["eval_accuracy"] == pytest.approx(right.double().mean().item())
    assert run.predict(rows).metrics["test_accuracy"] == pytest.approx(right.double().mean().item())


def test_evaluating_does_not_change_training(tmp_path):
    results = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = tiny_vit(dropout=0.3, drop_path_rate=0.3)
        torch.manual_seed(0)
        trainer(tmp_path, model, **changes).train()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# What is refused


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be ViTTrainingArguments, not TrainingArguments"):
        ViTTrainer(tiny_vit(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_an_optimizer_with_groups_of_its_own_is_refused(tmp_path):
    run = trainer(tmp_path)
    run.optimizer_cls_and_kwargs = torch.optim.SGD, {"lr": 0.1, "params": list(run.model.parameters())}
    with pytest.raises(ValueError, match="SGD groups the parameters itself; choose another optimizer"):
        run.create_optimizer()


def test_missing_data_are_said(tmp_path):
    run = trainer(tmp_path)
    run.train_dataset = run.eval_dataset = None
    with pytest.raises(ValueError, match="needs a train_dataset"):
        run.train()
    with pytest.raises(ValueError, match="needs an eval_dataset"):
        run.evaluate()
