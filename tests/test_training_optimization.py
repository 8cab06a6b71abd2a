"""The schedule is the paper's formula and survives saving; the number format is what the hardware has."""

import pytest
import torch

from hf_attn.training.optimization import choose_bf16, choose_kernel, noam_factor, noam_rate, noam_schedule


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
