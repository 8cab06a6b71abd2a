"""Learning rates over time and over layers, weight decay, and the choice of the number format in which to train."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

DECAYS = ("step", "cosine")
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


class CosineSchedule(LRScheduler):
    """Linear warm-up from zero, then half a cosine down to a floor (Loshchilov & Hutter 2017, without restarts).

    How far training has come is asked for at every step, because a run that ends after so many minutes does not know
    its number of steps. What was answered at the peak is saved with the schedule, for a resumed run to go on from. One
    that is then given more steps or time goes back up to where the longer cosine is.

    Each parameter group keeps its own peak, the learning rate that it was made with.

    Args:
        progress: from a number of finished steps to the share of the run that is over, from 0 to 1.
        warmup: steps until the peak, if at least 1; below 1, the share of the run.
        floor: share of the peak at which the cosine ends.

    Raises:
        ValueError: if the warm-up is negative or the floor is not from 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, progress: Callable[[int], float], warmup: float, floor: float = 0.0):
        if warmup < 0:
            raise ValueError(f"a warm-up of {warmup} is below 0; give steps, or a share of the run below 1")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor {floor} of the cosine is not from 0 to 1; it is a share of the highest rate")
        self.ask_progress = progress
        self.warmup = warmup
        self.floor = floor
        self.progress_at_peak: float | None = None
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        factor = self._factor(min(self.ask_progress(self.last_epoch), 1.0))
        return [peak * factor for peak in self.base_lrs]

    def _factor(self, progress: float) -> float:
        if self.progress_at_peak is None:
            done = self.last_epoch if self.warmup >= 1 else progress
            if done < self.warmup:
                return done / self.warmup
            self.progress_at_peak = progress
        left = 1 - self.progress_at_peak
        share = max(progress - self.progress_at_peak, 0.0) / left if left else 1.0
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * share))

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "ask_progress"}


class LateDecay(LRScheduler):
    """Linear warm-up, then a constant rate, and less towards the end of the run (Carion et al. 2020, section 4: a
    tenth in the last third).

    As in `CosineSchedule`, progress is asked for at every step, and each parameter group keeps its own peak.

    Args:
        progress: from a number of finished steps to the share of the run that is over, from 0 to 1.
        warmup: steps until the peak, if at least 1; below 1, the share of the run.
        decay: "step": a tenth from `decay_from` on; "cosine": from there half a cosine, down to zero at the end.
        decay_from: share of the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        progress: Callable[[int], float],
        warmup: float,
        decay: str = "step",
        decay_from: float = 2 / 3,
    ):
        if decay not in DECAYS:
            raise ValueError(f"decay {decay!r} is unknown; use {' or '.join(map(repr, DECAYS))}")
        if warmup < 0:
            raise ValueError(f"a warm-up of {warmup} is below 0; give steps, or a share of the run below 1")
        self.ask_progress = progress
        self.warmup = warmup
        self.decay = decay
        self.decay_from = decay_from
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        factor = self._factor(self.last_epoch, min(self.ask_progress(self.last_epoch), 1.0))
        return [peak * factor for peak in self.base_lrs]

    def _factor(self, step: int, progress: float) -> float:
        done = step if self.warmup >= 1 else progress
        if done < self.warmup:
            return done / self.warmup
        if progress < self.decay_from:
            return 1.0
        if self.decay == "step":
            return 0.1
        left = 1 - self.decay_from
        return 0.5 * (1 + math.cos(math.pi * (progress - self.decay_from) / left)) if left else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "ask_progress"}


def has_weight_decay(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is pulled towards zero: matrices and kernels called `weight` are, nothing else.

    So biases, norms and layer scales are not (one dimension), nor class, register and mask tokens, positions and the
    query of attention pooling (which are no `weight`). This is big_vision's rule (`wd_mults` of kernels only); timm's
    (one dimension, or in the model's `no_weight_decay()`) leaves out the same, but for the pooling's query.
    """
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1].endswith("weight")


def layer_number(name: str, num_layers: int) -> int:
    """Depth of a parameter: 0 for `embeddings`, i + 1 for `layers.i`, num_layers + 1 for final norm, pooling and head.

    As in BEiT's `get_num_layer_for_vit`.
    """
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    if layer:
        return int(layer.group(1)) + 1
    return 0 if re.search(r"(?:^|\.)embeddings\.", name) else num_layers + 1


def layer_decay_groups(
    model: PreTrainedModel, weight_decay: float, layer_decay: float, learning_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: lower layers learn more slowly, and not everything decays.

    At depth i of L layers the learning rate is learning_rate · layer_decay^(L + 1 - i) (Clark et al. 2020, ELECTRA;
    BEiT and MAE fine-tune ViTs with 0.65 to 0.75). See `layer_number` and `has_weight_decay`. Parameters that need no
    gradient are left out.

    Returns:
        Groups from the head down, each with `params`, `lr`, `weight_decay` and `layer`; the first learns fastest.

    Raises:
        ValueError: if layer_decay is not above 0 and at most 1, or nothing in the model is trained.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay {layer_decay} is not above 0 and at most 1; 1 treats all layers alike")
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = layer_number(name, num_layers) if layer_decay < 1 else num_layers + 1
            groups.setdefault((layer, has_weight_decay(name, parameter)), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model requires a gradient; unfreeze some")
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (num_layers + 1 - layer),
            "weight_decay": weight_decay if decays else 0.0,
            "layer": layer,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def backbone_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, backbone_learning_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: a detector's backbone learns at a rate of its own (Carion et al. 2020).

    Everything decays, as in the authors' code. Parameters that need no gradient are left out.

    Returns:
        The group of all but the backbone, then that of the backbone where it learns; `params`, `lr`, `weight_decay`.

    Raises:
        ValueError: if nothing in the model is trained.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model requires a gradient; unfreeze some")
    groups = []
    for of_backbone, rate in ((False, learning_rate), (True, backbone_learning_rate)):
        parameters = [parameter for name, parameter in trained if (".backbone." in name) == of_backbone]
        if parameters:
            groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay})
    return groups


def device_type() -> str:
    """Where models are trained and run by default: the accelerator of this machine, or its CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


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
