"""DetrTrainer: runs that survive a kill, exact accumulation and processes, its groups, schedule and evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainerCallback

from hf_attn.training.checkpoints import complete_checkpoints
from hf_attn.training.detr_trainer import DetrTrainingArguments
from hf_attn.training.optimization import LateDecay
from tests.training_runs import STEPS, VIT_KILLS, detr

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    subprocess.run(
        [sys.executable, str(TESTS / "training_runs.py"), "detr", str(directory)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    return directory


def weights(runs: Path, run: str, result: str = f"checkpoint-{STEPS}") -> dict[str, torch.Tensor]:
    return load_file(runs / run / result / "model.safetensors")


def logged(runs: Path, run: str, name: str) -> dict[int, float]:
    """The value at each step of the log."""
    state = json.loads((complete_checkpoints(runs / run)[-1] / "trainer_state.json").read_text())
    return {entry["step"]: entry[name] for entry in state["log_history"] if name in entry}


@pytest.mark.slow
@pytest.mark.parametrize("kill", VIT_KILLS)
def test_a_run_that_was_killed_ends_with_the_same_weights(runs, kill):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["undisturbed"] == [0]
    assert outcomes[kill] == [3 if kill.startswith("ctrl_c") else -9, 0]
    for result in (f"checkpoint-{STEPS}", "average", "moving_average"):
        expected, resumed = weights(runs, "undisturbed", result), weights(runs, kill, result)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected), result


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(runs):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["one_as_two"] == [0] and outcomes["two"] == [0, 0]
    alone, shared = weights(runs, "one_as_two"), weights(runs, "two")
    for name, value in alone.items():
        assert_close(shared[name], value, rtol=0, atol=2e-4, msg=name)
    for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error", "eval_ap"):
        one, two = logged(runs, "one_as_two", name), logged(runs, "two", name)
        assert len(one) == (2 if name == "eval_ap" else STEPS // 2)
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("kill", VIT_KILLS)
def test_a_run_that_was_killed_logs_the_terms_of_its_loss_as_ever(runs, kill):
    for name in ("loss_ce", "loss_bbox", "loss_dn_giou"):
        expected, resumed = logged(runs, "undisturbed", name), logged(runs, kill, name)
        assert expected.keys() == resumed.keys()
        ratios = [resumed[step] / value for step, value in expected.items()]
        assert ratios[-1] == pytest.approx(1, rel=1e-5)
        assert all(0.5 < ratio < 2 for ratio in ratios), ratios  # of one step instead of two, after resuming


class Gradients(TrainerCallback):
    """Keeps what the optimizer is given at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )


@pytest.mark.parametrize("accumulated", [2, 4])
def test_accumulated_batches_give_the_gradients_of_a_large_one(tmp_path, accumulated):
    """1 x 8 = 2 x 4 = 4 x 2, through the Trainer."""
    found = {}
    for steps in (1, accumulated):
        made = detr(
            tmp_path / str(steps),
            dropout=0.0,
            frozen_batch_norm=True,
            gradient_accumulation_steps=steps,
        )
        made.args.per_device_train_batch_size = 8 // steps
        made._train_batch_size = 8 // steps
        made.args.max_steps, made.args.eval_strategy, made.args.save_strategy = 1, "no", "no"
        made.args.max_grad_norm = 0
        gradients = Gradients()
        made.add_callback(gradients)
        made.train()
        found[steps] = gradients.steps[0]
    for name, gradient in found[1].items():
        assert_close(found[accumulated][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_backbone_learns_at_its_own_rate_and_what_is_frozen_does_not(tmp_path):
    made = detr(tmp_path)
    made.args.backbone_learning_rate = 1e-5
    made.args.weight_decay = 0.03
    groups = made.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-5]
    assert [group["weight_decay"] for group in groups] == [0.03, 0.03]
    backbone = {id(parameter) for parameter in made.model.model.backbone.parameters()}
    assert {id(parameter) for parameter in groups[1]["params"]} == backbone
    for parameter in made.model.model.backbone.parameters():
        parameter.requires_grad_(False)
    made.optimizer = None
    assert len(made.create_optimizer().param_groups) == 1


def test_a_backbone_of_rate_zero_is_frozen_and_costs_no_gradients(tmp_path):
    made = detr(tmp_path, backbone_learning_rate=0.0)
    made.args.max_steps, made.args.eval_strategy, made.args.save_strategy = 1, "no", "no"
    backbone = made.model.model.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    made.train()
    assert len(made.optimizer.param_groups) == 1
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(module.training for module in backbone.body.modules())  # where timm drops paths and features
    made.model.train()
    assert not backbone.body.training


def test_the_defaults_are_the_papers():
    arguments = DetrTrainingArguments(use_cpu=True)
    assert (arguments.learning_rate, arguments.backbone_learning_rate) == (1e-4, 1e-5)
    assert (arguments.weight_decay, arguments.max_grad_norm) == (1e-4, 0.1)
    assert (arguments.decay, arguments.decay_from) == ("step", 2 / 3)
    arguments = DetrTrainingArguments(
        use_cpu=True,
        early_stopping_patience=2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=5,
        save_steps=5,
    )
    assert arguments.metric_for_best_model == "ap" and arguments.greater_is_better


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("step", [0.0, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1]), ("cosine", [0.0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.25])],
)
def test_the_rate_stays_up_until_late_in_the_run(decay, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = LateDecay(optimizer, lambda step: step / 9, warmup=2, decay=decay, decay_from=6 / 9)
    rates = []
    for _ in expected:
        rates.append(schedule.get_last_lr()[0] / 2)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_evaluation_draws_pictures_and_keeps_no_outputs(tmp_path):
    made = detr(tmp_path)
    made.drawings = tmp_path / "samples"
    made.args.max_steps, made.args.save_strategy = 7, "no"
    made.train()
    assert [path.name for path in sorted(made.drawings.iterdir())] == ["step_000007.png"]
    logged = next(entry for entry in made.state.log_history if "loss_ce" in entry)
    assert {"loss_bbox", "loss_giou", "class_error", "loss_dn_ce", "pictures_per_second"} <= set(logged)
    evaluated = next(entry for entry in made.state.log_history if "eval_ap" in entry)
    assert {"eval_ap50", "eval_ar_100", "eval_loss"} <= set(evaluated)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decay": "linear"}, "decay 'linear' is unknown; use 'step' or 'cosine'"),
        ({"decay_from": 1.5}, "decay_from 1.5 is not a share"),
        ({"drawn_pictures": -1}, "drawn_pictures -1 is below 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DetrTrainingArguments(use_cpu=True, **wrong)
