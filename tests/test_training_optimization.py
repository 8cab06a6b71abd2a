"""Schedules are their formulas and survive saving, groups learn and decay as timm's and BEiT's do, and the number
format is what the hardware has."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import nn
from transformers import get_cosine_schedule_with_warmup
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from hf_attn import AttnViTForMaskedImageModeling
from hf_attn.training.optimization import (
    CosineSchedule,
    choose_bf16,
    choose_kernel,
    has_weight_decay,
    layer_decay_groups,
    layer_number,
    noam_factor,
    noam_rate,
    noam_schedule,
)
from tests.tiny import tiny_vit

EVERYTHING = {"num_register_tokens": 2, "layer_scale_init": 0.1, "query_key_norm": True}


def adam(learning_rate: float = 0.3) -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=learning_rate)


def rates(optimizer, schedule, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_schedule_is_the_formula_of_the_paper():
    optimizer = adam()
    seen = rates(optimizer, noam_schedule(optimizer, hidden_size=512, warmup_steps=40, factor=2.0), 100)
    expected = [2.0 * 512**-0.5 * min(step**-0.5, step * 40**-1.5) for step in range(1, 101)]
    assert seen == pytest.approx(expected, rel=1e-12)


def test_the_peak_comes_at_the_end_of_the_warm_up_and_is_the_one_asked_for():
    factor = noam_factor(0.003, hidden_size=64, warmup_steps=30)
    seen = [noam_rate(step, 64, 30, factor) for step in range(1, 101)]
    assert max(seen) == seen[29] == pytest.approx(0.003)


def test_the_schedule_goes_on_where_it_was_saved():
    optimizer = adam()
    schedule = noam_schedule(optimizer, 16, 5)
    whole = rates(optimizer, schedule, 12)

    optimizer = adam()
    schedule = noam_schedule(optimizer, 16, 5)
    first = rates(optimizer, schedule, 7)
    later = adam(learning_rate=9.0)
    later_schedule = noam_schedule(later, 16, 5)
    later.load_state_dict(optimizer.state_dict())
    later_schedule.load_state_dict(schedule.state_dict())
    assert first + rates(later, later_schedule, 5) == whole


@pytest.mark.parametrize("wrong", [{"hidden_size": 0}, {"warmup_steps": 0}, {"factor": -1.0}])
def test_a_schedule_that_has_no_rate_is_refused(wrong):
    settings = {"hidden_size": 16, "warmup_steps": 4, "factor": 1.0, **wrong}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .* must be above 0"):
        noam_schedule(adam(), **settings)


# The cosine


def cosine(optimizer, steps: int, warmup: float, floor: float = 0.0) -> CosineSchedule:
    return CosineSchedule(optimizer, lambda step: step / steps, warmup, floor)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_where_the_end_is_known_the_cosine_is_that_of_transformers(warmup, floor):
    ours, theirs = adam(), adam()
    expected = get_cosine_with_min_lr_schedule_with_warmup(theirs, warmup, 30, min_lr_rate=floor)
    assert rates(ours, cosine(ours, 30, warmup, floor), 31) == pytest.approx(rates(theirs, expected, 31), abs=1e-12)
    assert ours.param_groups[0]["lr"] == pytest.approx(0.3 * floor, abs=1e-12)


def test_a_warm_up_may_be_a_share_of_the_run():
    ours, theirs = adam(), adam()
    expected = rates(theirs, get_cosine_schedule_with_warmup(theirs, 6, 30), 31)
    assert rates(ours, cosine(ours, 30, 0.2), 31) == pytest.approx(expected)


def test_without_a_known_end_the_cosine_follows_the_time():
    """Steps that take unequally long: the rate is that of the time, as if time were steps."""
    optimizer = adam()
    times = [0, 3, 4, 10, 20, 50, 80, 99, 100, 130]
    seen = rates(optimizer, CosineSchedule(optimizer, lambda step: times[step] / 100, 0.1), len(times) - 1)
    smooth = adam()
    by_time = rates(smooth, cosine(smooth, 100, 0.1), 101)
    assert seen == pytest.approx([by_time[time] for time in times[:-1]]) and optimizer.param_groups[0]["lr"] == 0


def test_a_finished_run_that_is_given_more_steps_learns_on():
    optimizer = adam()
    schedule = cosine(optimizer, 10, 0.2)
    rates(optimizer, schedule, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    longer = adam()
    longer_schedule = cosine(longer, 20, 0.2)
    longer.load_state_dict(optimizer.state_dict())
    longer_schedule.load_state_dict(schedule.state_dict())
    whole = adam()
    expected = rates(whole, cosine(whole, 20, 0.2), 21)
    assert rates(longer, longer_schedule, 11)[1:] == pytest.approx(expected[11:])


@pytest.mark.parametrize("warmup", [5, 0.4])
@pytest.mark.parametrize("stopped_at", [2, 7])
def test_the_cosine_goes_on_where_it_was_saved(tmp_path, warmup, stopped_at):
    optimizer = adam()
    schedule = cosine(optimizer, 12, warmup)
    first = rates(optimizer, schedule, stopped_at)
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "state")
    whole = first + rates(optimizer, schedule, 12 - stopped_at)

    later = adam()
    later_schedule = cosine(later, 12, warmup)
    saved, saved_schedule = torch.load(tmp_path / "state", weights_only=True)
    later.load_state_dict(saved)
    later_schedule.load_state_dict(saved_schedule)
    assert first + rates(later, later_schedule, 12 - stopped_at) == whole


def test_each_group_has_its_own_peak():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [each], "lr": rate} for each, rate in zip(parameters, (1, 0.5), strict=True)]
    )
    schedule = cosine(optimizer, 10, 3)
    for _ in range(9):
        high, low = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(high / 2)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "floor", "message"),
    [(-1, 0, "warm-up of -1 is below 0"), (0, 1.5, r"floor 1.5 .* is not from 0 to 1"), (0, -0.1, "floor -0.1")],
)
def test_a_cosine_that_cannot_be_is_refused(warmup, floor, message):
    with pytest.raises(ValueError, match=message):
        cosine(adam(), 10, warmup, floor)


# Layers and weight decay


@pytest.mark.parametrize("pooling", ["class_token", "mean", "attention"])
def test_matrices_and_kernels_decay_and_nothing_else(pooling):
    model = tiny_vit(pooling=pooling, **EVERYTHING)
    matrices = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    decaying = {name for name, value in model.named_parameters() if has_weight_decay(name, value)}
    assert decaying == matrices and len(decaying) >= 2 * 6 + 2


def test_as_many_weights_decay_as_in_timm():
    model = tiny_vit(**{**EVERYTHING, "num_register_tokens": 0})  # in timm they have positions too
    theirs = VisionTransformer(
        img_size=32,
        patch_size=8,
        num_classes=3,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        init_values=0.1,
        qk_norm=True,
    )
    expected = param_groups_weight_decay(theirs, 0.3, no_weight_decay_list=theirs.no_weight_decay())

    def weights(groups, decay: float) -> int:
        return sum(value.numel() for group in groups for value in group["params"] if group["weight_decay"] == decay)

    groups = layer_decay_groups(model, weight_decay=0.3, layer_decay=1.0, learning_rate=0.1)
    assert len(groups) == 2
    assert [weights(groups, decay) for decay in (0.3, 0.0)] == [weights(expected, decay) for decay in (0.3, 0.0)]


@pytest.mark.parametrize("pooling", ["class_token", "attention"])
def test_lower_layers_learn_more_slowly(pooling):
    model = tiny_vit(pooling=pooling, **EVERYTHING)
    groups = layer_decay_groups(model, weight_decay=0.1, layer_decay=0.5, learning_rate=0.8)
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    expected = {"embeddings": 0.1, "layers.0": 0.2, "layers.1": 0.4, "final_norm": 0.8}
    expected |= {"attention_pooling": 0.8, "classifier": 0.8}
    for name, value in model.named_parameters():
        (part,) = [part for part in expected if name.removeprefix("model.").startswith(part)]
        assert rates[id(value)] == pytest.approx(expected[part]), name
    assert groups[0]["lr"] == 0.8  # the Trainer logs the first


def test_the_mask_token_is_at_the_bottom_and_does_not_decay():
    named = dict(AttnViTForMaskedImageModeling(tiny_vit().config).named_parameters())
    (name,) = [name for name in named if "mask_token" in name]
    assert layer_number(name, 2) == 0 and not has_weight_decay(name, named[name])


def test_what_is_frozen_is_in_no_group():
    model = tiny_vit()
    model.model.requires_grad_(False)
    groups = layer_decay_groups(model, 0.1, 0.5, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        layer_decay_groups(model, 0.1, 0.5, 0.1)


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_a_layer_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=f"layer_decay {decay} is not above 0 and at most 1"):
        layer_decay_groups(tiny_vit(), 0.1, decay, 0.1)


# The number format and the kernel


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bf16_is_chosen_where_the_cpu_has_it(monkeypatch, flag):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "bf16_or_so": False, flag: True})
    assert choose_bf16("auto", "cpu") == (True, f"bfloat16 autocast: CPU with {flag}")
    assert choose_bf16("auto", "cpu", hidden_size=512)[0]
    assert choose_bf16("auto", "cpu", hidden_size=64) == (
        False,
        "float32: hidden_size 64 is too small to gain by bfloat16",
    )


def test_float32_is_chosen_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert choose_bf16("auto", "cpu") == (False, "float32: this cpu has no fast bfloat16")
    asked, why = choose_bf16(True, "cpu")
    assert asked and "emulates" in why
    assert choose_bf16(False, "cpu") == (False, "float32, as asked")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="'yes' is unknown; use True, False or 'auto'"):
        choose_bf16("yes", "cpu")


@pytest.mark.parametrize(
    ("setting", "own", "device", "bf16", "chosen"),
    [
        ("auto", "sdpa", "cpu", True, "eager"),  # the one case where the formula written out is faster
        ("auto", "sdpa", "cpu", False, "sdpa"),
        ("auto", "sdpa", "cuda", True, "sdpa"),
        ("auto", "flex_attention", "cpu", True, "flex_attention"),
        ("sdpa", "eager", "cpu", True, "sdpa"),
    ],
)
def test_training_takes_the_kernel_asked_for_or_the_fastest(setting, own, device, bf16, chosen):
    assert choose_kernel(setting, own, device, bf16) == chosen
