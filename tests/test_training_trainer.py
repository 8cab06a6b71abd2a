"""TranslatorTrainer: the laws of accumulation, evaluation and resuming, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, PrinterCallback, TrainerCallback, TrainingArguments

from hf_attn.training.checkpoints import complete_checkpoints
from hf_attn.training.evaluation import generate_all, summed_loss
from hf_attn.training.metrics import score_translations
from hf_attn.training.trainer import TranslatorTrainer, TranslatorTrainingArguments
from tests.tiny import tiny_translator
from tests.training_runs import COLLATOR, KILLS, STEPS, pairs

TESTS = Path(__file__).parent


def arguments(directory: Path, **changes) -> TranslatorTrainingArguments:
    settings = {"max_tokens_per_batch": 64, "max_steps": 4, "bf16": False, "use_cpu": True, "disable_tqdm": True}
    return TranslatorTrainingArguments(output_dir=str(directory), **{**settings, "save_strategy": "no", **changes})


def trainer(directory: Path, model=None, data=None, callbacks=None, **changes) -> TranslatorTrainer:
    made = TranslatorTrainer(
        model or tiny_translator(),
        arguments(directory, **changes),
        COLLATOR,
        data or pairs(40, seed=1),
        pairs(8, seed=2),
        callbacks=callbacks,
    )
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
        [sys.executable, str(TESTS / "training_runs.py"), "translator", str(directory)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    return directory


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_was_killed_ends_with_the_same_weights(runs, kill):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["undisturbed"] == [0]
    assert outcomes[kill] == [3 if kill in ("ctrl_c", "terminated") else -9, 0]
    for result in (f"checkpoint-{STEPS}", "average", "moving_average"):
        expected = load_file(runs / "undisturbed" / result / "model.safetensors")
        resumed = load_file(runs / kill / result / "model.safetensors")
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected), result


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_was_killed_leaves_what_an_undisturbed_one_leaves(runs, kill):
    names = {path.name for path in (runs / "undisturbed").iterdir()}
    assert {path.name for path in (runs / kill).iterdir()} == names
    assert names == {"average", "moving_average", "checkpoint-6", "checkpoint-9", "checkpoint-12", "checkpoint-14"}


def test_a_run_that_was_killed_has_the_same_history(runs):
    def history(run: str) -> list[tuple]:
        state = json.loads((runs / run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        names = ("step", "epoch", "eval_loss", "learning_rate", "grad_norm", "target_tokens")
        return [tuple(entry.get(name) for name in names) for entry in state["log_history"]]

    assert history("in_checkpoint") == history("ctrl_c") == history("undisturbed")


def test_two_processes_train_as_one_that_accumulates(runs):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["one_as_two"] == [0] and outcomes["two"] == [0, 0]
    one, two = (load_file(runs / name / f"checkpoint-{STEPS}" / "model.safetensors") for name in ("one_as_two", "two"))
    assert_close(two, one, rtol=1e-4, atol=1e-5)
    logs = [
        json.loads((runs / name / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        for name in ("one_as_two", "two")
    ]
    for entry, expected in zip(logs[1], logs[0], strict=True):
        for name in {"loss", "eval_loss", "target_tokens"} & expected.keys():
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), (entry["step"], name)


def test_two_processes_that_were_killed_end_with_the_same_weights(runs):
    outcomes = json.loads((runs / "outcomes.json").read_text())
    assert outcomes["two_killed"] == [-9, -9, 0, 0]
    whole, resumed = (load_file(runs / name / "average" / "model.safetensors") for name in ("two", "two_killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# Laws of training


def test_one_large_batch_is_four_accumulated_small_ones(tmp_path):
    rows = [pair for seed in range(4) for pair in pairs(8, seed)]
    seen = {}
    for name, batches in (("one", [range(32)]), ("four", [range(first, first + 8) for first in range(0, 32, 8)])):
        gradients = Gradients()
        model = tiny_translator().double()
        run = trainer(
            tmp_path,
            model,
            rows,
            [gradients],
            gradient_accumulation_steps=len(batches),
            max_steps=1,
            max_grad_norm=1e9,
            logging_steps=1,
        )
        loader = torch.utils.data.DataLoader(rows, batch_sampler=[list(rows) for rows in batches], collate_fn=COLLATOR)
        run.get_train_dataloader = lambda loader=loader: loader
        run.train()
        seen[name] = gradients.steps[0], run.state.log_history[0]["loss"]
    assert_close(seen["four"][0], seen["one"][0], rtol=1e-6, atol=1e-9)
    assert seen["four"][1] == pytest.approx(seen["one"][1], rel=1e-6)


def test_batches_hold_tokens_and_every_pair_once(tmp_path):
    rows = pairs(100, seed=3)
    loader = trainer(tmp_path, data=rows).get_train_dataloader()
    batches = list(loader)
    assert all(max(batch["input_ids"].numel(), batch["labels"].numel()) <= 64 for batch in batches)
    assert sum((batch["labels"] != -100).sum().item() for batch in batches) == sum(len(row["labels"]) for row in rows)


def test_the_learning_rate_is_the_schedule_of_the_paper(tmp_path):
    run = trainer(tmp_path, warmup_steps=2, noam_factor=0.5, logging_steps=1)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.5 * 16**-0.5 * min(step**-0.5, step * 2**-1.5) for step in (1, 2, 3, 4)])
    group = run.optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-9


def test_another_schedule_of_transformers_can_be_had(tmp_path):
    run = trainer(
        tmp_path, noam_factor=None, warmup_steps=0, learning_rate=0.4, lr_scheduler_type="linear", logging_steps=1
    )
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_logs_count_target_tokens(tmp_path):
    rows = pairs(40, seed=1)
    run = trainer(tmp_path, data=rows, max_steps=-1, num_train_epochs=2, logging_steps=3)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert all(entry["target_tokens_per_second"] > 0 for entry in logged)
    assert [entry["target_tokens"] for entry in logged] == sorted(entry["target_tokens"] for entry in logged)
    assert run.throughput.count == 2 * sum(len(row["labels"]) for row in rows)
    assert run.state.log_history[-1]["target_tokens"] == run.throughput.count


def test_bf16_trains_in_bf16_and_keeps_float32_weights(tmp_path):
    kinds = set()
    model = tiny_translator()
    model.model.encoder.layers[0].feed_forward.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    run = trainer(tmp_path, model, bf16=True)
    run.train()
    assert kinds == {torch.bfloat16} and {value.dtype for value in model.parameters()} == {torch.float32}
    assert run.args.precision.startswith("bfloat16 autocast")


def test_training_uses_its_kernel_and_gives_the_models_own_back(tmp_path):
    kernels = []
    model = tiny_translator()
    layer = model.model.encoder.layers[0].self_attention
    layer.register_forward_hook(lambda module, args, out: kernels.append(model.config._attn_implementation))
    trainer(tmp_path, model, bf16=True, max_steps=1).train()
    assert set(kernels) == {"eager"} and model.config._attn_implementation == "sdpa"


# Evaluation


def test_the_evaluation_loss_is_the_mean_over_all_words(tmp_path):
    rows = pairs(8, seed=2)
    model = tiny_translator(label_smoothing=0.1)
    loss = trainer(tmp_path, model).evaluate()["eval_loss"]
    total, count = summed_loss(model, [COLLATOR([row]) for row in rows])
    assert count == sum(len(row["labels"]) for row in rows)
    assert loss == pytest.approx((total / count).item(), rel=1e-6)


def test_evaluating_does_not_change_training(tmp_path):
    weights = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = tiny_translator(dropout=0.3)
        torch.manual_seed(0)
        trainer(tmp_path, model, **changes).train()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluation_scores_generated_texts(tmp_path):
    class Spelling:
        """A tokenizer that writes ids as words."""

        pad_token_id = 1

        def batch_decode(self, rows, skip_special_tokens):
            return [" ".join(f"w{id}" for id in row if id > 3) for row in rows]

        def save_pretrained(self, directory):
            pass

    rows = pairs(8, seed=2)
    model = tiny_translator()
    run = TranslatorTrainer(
        model,
        arguments(tmp_path, predict_with_generate=True, generation_num_beams=2, eval_generation_examples=4),
        eval_dataset=rows,
        processing_class=Spelling(),
    )
    metrics = run.evaluate()
    generated = generate_all(model, [row["input_ids"] for row in rows[::2]], 64, num_beams=2)
    decode = Spelling().batch_decode
    expected = score_translations(decode(generated, True), decode([row["labels"] for row in rows[::2]], True))
    assert metrics["eval_bleu"] == expected["bleu"] and metrics["eval_chrf"] == expected["chrf"]
    assert run.predict(rows).metrics.keys() >= {"test_loss", "test_bleu", "test_chrf"}


# Stopping, keeping, averaging


def test_early_stopping_averages_up_to_the_best(tmp_path):
    run = trainer(
        tmp_path,
        max_steps=40,
        noam_factor=3.0,  # so high that the loss soon rises
        warmup_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        average_last=2,
        early_stopping_patience=3,
    )
    run.train()
    best = run.state.best_global_step
    assert run.state.global_step == best + 6 < 40
    assert [path.name for path in run.checkpoints_to_average()] == [f"checkpoint-{best - 2}", f"checkpoint-{best}"][
        -(best // 2) :
    ]
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    assert losses[best] == min(losses.values())


def test_a_time_limit_stops_with_a_checkpoint_and_resumes_to_nothing_more(tmp_path):
    settings = {"max_steps": 50, "max_minutes": 1, "save_strategy": "steps", "save_steps": 100, "average_last": 1}
    run = trainer(tmp_path, **settings)
    seconds = iter(range(0, 10_000, 10))
    run.time_limit.clock = lambda: next(seconds)
    run.train()
    stopped = run.state.global_step
    assert 1 < stopped < 50
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"checkpoint-{stopped}"]
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == stopped


def test_the_last_checkpoints_are_kept_and_the_result_loads(tmp_path):
    run = trainer(tmp_path, max_steps=5, save_strategy="steps", save_steps=1, average_last=3)
    run.train()
    checkpoints = complete_checkpoints(tmp_path)
    assert [path.name for path in checkpoints] == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]
    model = AutoModelForSeq2SeqLM.from_pretrained(run.save_final_model(tmp_path / "final"))
    name = "model.encoder.layers.0.self_attention.q_proj.weight"
    values = [load_file(path / "model.safetensors")[name] for path in checkpoints]
    assert_close(model.state_dict()[name], torch.stack(values).double().mean(0).float(), rtol=0, atol=0)


def test_the_moving_average_is_the_result_where_there_is_one(tmp_path):
    run = trainer(tmp_path, ema_decay=0.5)
    run.train()
    saved = load_file(run.save_final_model(tmp_path / "final") / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in run.weight_average.average.items())


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)

    def full(state, file):
        if run.state.global_step == 4:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return save(state, file)

    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written .* make room and resume"):
        run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    trainer(tmp_path).create_model_card()
    assert (tmp_path / "README.md").read_text() == "mine"


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay 1.0 is not between 0 and 1"),
        ({"max_minutes": -1}, "-1 minutes is not above 0"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be TranslatorTrainingArguments, not TrainingArguments"):
        TranslatorTrainer(tiny_translator(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_resuming_with_a_moving_average_that_was_not_kept_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    with pytest.raises(FileNotFoundError, match="was trained without ema_decay"):
        trainer(tmp_path, max_steps=6, ema_decay=0.9).train(resume_from_checkpoint=True)


def test_nothing_to_resume_from_is_said(tmp_path):
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
