"""The arguments default to the paper's optimizer, choose the number format, and refuse what does not fit together."""

import dataclasses

import pytest
from transformers import HfArgumentParser

from hf_attn.training.arguments import TranslatorTrainingArguments, ViTTrainingArguments
from hf_attn.training.optimization import bf16_hardware


def arguments(tmp_path, **changes) -> TranslatorTrainingArguments:
    return TranslatorTrainingArguments(output_dir=str(tmp_path), **{"use_cpu": True, **changes})


def test_the_defaults_are_the_optimizer_of_the_paper(tmp_path):
    made = arguments(tmp_path)
    assert (made.adam_beta1, made.adam_beta2, made.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert (made.noam_factor, made.warmup_steps, made.average_last) == (1.0, 4000, 5)
    assert made.weight_decay == 0 and made.lr_scheduler_kwargs is None


def test_the_defaults_are_the_recipe_of_big_vision(tmp_path):
    made = ViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (made.learning_rate, made.weight_decay * made.learning_rate, made.max_grad_norm) == (1e-3, 1e-4, 1.0)
    assert (made.adam_beta1, made.adam_beta2, made.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (made.lr_scheduler_type, made.warmup_steps, made.learning_rate_floor) == ("cosine", 0.05, 0.0)
    assert (made.layer_decay, made.ema_decay, made.average_last, made.save_total_limit) == (1.0, None, 1, 1)
    assert made.remove_unused_columns is False and made.logging_nan_inf_filter is False


def test_the_number_format_is_chosen_and_explained(tmp_path):
    assert arguments(tmp_path).bf16 == (bf16_hardware("cpu") is not None)
    assert arguments(tmp_path, bf16=True).precision.startswith("bfloat16 autocast, as asked")
    assert arguments(tmp_path, bf16=False).precision == "float32, as asked"


def test_accelerate_leaves_the_logits_alone(tmp_path):
    assert arguments(tmp_path, bf16=True).mixed_precision == "no"


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, 5),
        ({"average_last": 3}, 3),
        ({"average_last": 1, "save_total_limit": 9}, 9),
        ({"early_stopping_patience": 4, "eval_steps": 100, "save_steps": 50}, 5 + 8),
        ({"early_stopping_patience": 4, "eval_steps": 50, "save_steps": 150}, 5 + 2),
    ],
)
def test_as_many_checkpoints_are_kept_as_will_be_averaged(tmp_path, changes, kept):
    steps = {"eval_strategy": "steps", "save_strategy": "steps"}
    assert arguments(tmp_path, **steps, **changes).save_total_limit == kept


def test_early_stopping_looks_at_the_loss_unless_told_otherwise(tmp_path):
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_patience": 2}
    assert arguments(tmp_path, **epochs).metric_for_best_model == "loss"
    bleu = arguments(tmp_path, **epochs, metric_for_best_model="bleu")
    assert bleu.metric_for_best_model == "bleu" and bleu.greater_is_better
    assert arguments(tmp_path).metric_for_best_model is None


def test_a_command_line_can_be_parsed(tmp_path):
    (made,) = HfArgumentParser(TranslatorTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--max_tokens_per_batch", "777", "--ema_decay", "0.9"]
    )
    assert made.max_tokens_per_batch == 777 and made.ema_decay == 0.9
    (made,) = HfArgumentParser(ViTTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--layer_decay", "0.75", "--lr_scheduler_type", "linear"]
    )
    assert made.layer_decay == 0.75 and made.lr_scheduler_type == "linear"


def test_a_copy_is_the_same(tmp_path):
    made = arguments(tmp_path, average_last=3)
    assert dataclasses.replace(made).save_total_limit == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch 0 is not at least 1"),
        ({"average_last": 0}, "average_last 0 is not at least 1"),
        ({"early_stopping_patience": 0}, "leave it out to turn it off"),
        ({"eval_generation_examples": -1}, "leave it out to turn it off"),
        ({"early_stopping_patience": 2}, "eval_strategy and save_strategy to be the same, .* are 'no' and 'steps'"),
        ({"average_last": 5, "save_total_limit": 2}, "save_total_limit 2 is below the 5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay 0.0 is not above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay 1.5 is not above 0 and at most 1"),
        ({"learning_rate_floor": -0.5}, "learning_rate_floor -0.5 is not from 0 to 1"),
        ({"average_last": 0}, "average_last 0 is not at least 1"),
    ],
)
def test_arguments_of_a_vit_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **changes)
