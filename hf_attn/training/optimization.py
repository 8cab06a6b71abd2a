"""The learning rate of the paper, and the choice of the number format in which to train."""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

BF16_PAYS_FROM = 128  # hidden size below which a CPU spends more time on casting than it saves on multiplying


def noam_rate(step: int, hidden_size: int, warmup_steps: int, factor: float = 1.0) -> float:
    """factor · d^-0.5 · min(step^-0.5, step · warmup^-1.5), for steps from 1 (Vaswani et al. 2017, section 5.3)."""
    return factor * hidden_size**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def noam_factor(peak_learning_rate: float, hidden_size: int, warmup_steps: int) -> float:
    """The factor with which the schedule rises to `peak_learning_rate` at the end of the warm-up."""
    return peak_learning_rate * (hidden_size * warmup_steps) ** 0.5


def noam_schedule(optimizer: Optimizer, hidden_size: int, warmup_steps: int, factor: float = 1.0) -> LambdaLR:
    """The schedule of the paper: linear warm-up, then the inverse square root of the step.

    It sets the learning rate itself, whatever the optimizer was made with.

    Raises:
        ValueError: if a size, the warm-up or the factor is not positive.
    """
    for name, value in (("hidden_size", hidden_size), ("warmup_steps", warmup_steps), ("factor", factor)):
        if value <= 0:
            raise ValueError(f"{name} {value} of the Noam schedule must be above 0")
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1.0  # LambdaLR multiplies this one
    return LambdaLR(optimizer, lambda finished: noam_rate(finished + 1, hidden_size, warmup_steps, factor))


def bf16_hardware(device_type: str) -> str | None:
    """What multiplies bfloat16 faster than float32 on this device ("CPU with amx_bf16", a GPU's name), or None."""
    if device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name() if native else None
    if device_type == "cpu":
        able = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
        fast = able & {"amx_bf16", "avx512_bf16", "bf16"}  # the last is the name on ARM
        return f"CPU with {min(fast)}" if fast else None
    return None


def choose_bf16(setting: bool | str, device_type: str, hidden_size: int | None = None) -> tuple[bool, str]:
    """Whether to multiply in bfloat16 (autocast; the weights stay in float32), and why, in words.

    Args:
        setting: True, False, or "auto": where the hardware has it and the model is wide enough to gain by it.
        device_type: "cpu", "cuda", ...
        hidden_size: of the model, where it is known.

    Raises:
        ValueError: for another setting.
    """
    if setting not in (True, False, "auto"):
        raise ValueError(f"bf16 {setting!r} is unknown; use True, False or 'auto'")
    hardware = bf16_hardware(device_type)
    if setting == "auto":
        if not hardware:
            return False, f"float32: this {device_type} has no fast bfloat16"
        if device_type == "cpu" and hidden_size is not None and hidden_size < BF16_PAYS_FROM:
            return False, f"float32: hidden_size {hidden_size} is too small to gain by bfloat16"
        return True, f"bfloat16 autocast: {hardware}"
    if not setting:
        return False, "float32, as asked"
    return True, "bfloat16 autocast, as asked" + ("" if hardware else f"; slow, this {device_type} only emulates it")


def choose_kernel(setting: str, own: str, device_type: str, bf16: bool) -> str:
    """The attention kernel to train with.

    Args:
        setting: a kernel's name, or "auto": the model's own one, but for sdpa in bfloat16 on a CPU, where the formula
            written out is faster: sdpa's backward pass took a quarter of a whole training step there.
        own: the kernel that the model is set to.
        device_type: "cpu", "cuda", ...
        bf16: whether training multiplies in bfloat16.
    """
    if setting != "auto":
        return setting
    return "eager" if own == "sdpa" and device_type == "cpu" and bf16 else own
