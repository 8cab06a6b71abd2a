"""ResNets by the names of timm, which are torchvision's, too, and by those of transformers (He et al. 2016)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hf_attn.interchange.names import Row

BASIC, BOTTLENECK = "basic", "bottleneck"  # blocks of two 3×3 convolutions, and of 1×1, 3×3 and 1×1
EXPANSION = {BASIC: 1, BOTTLENECK: 4}  # of a block's inner channels, by its last convolution
RESNETS: dict[
    tuple[str, tuple[int, ...]], str
] = {  # He et al. 2016, table 1: the kind of block, and how many a stage has
    (BASIC, (2, 2, 2, 2)): "resnet18",
    (BASIC, (3, 4, 6, 3)): "resnet34",
    (BOTTLENECK, (3, 4, 6, 3)): "resnet50",
    (BOTTLENECK, (3, 4, 23, 3)): "resnet101",
    (BOTTLENECK, (3, 8, 36, 3)): "resnet152",
}
STAGES = 4
STEM_CHANNELS = 64
CHANNELS = (64, 128, 256, 512)  # within the blocks of each stage
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def timm_resnet(block: str, depths: Sequence[int], channels: Sequence[int] = CHANNELS) -> dict[str, Any]:
    """`backbone` and `backbone_kwargs` of a network with such blocks, and of so many channels within them.

    Raises:
        ValueError: if there are not four stages.
    """
    if len(depths) != STAGES or len(channels) != STAGES:
        raise ValueError(f"a ResNet of {len(depths)} stages of {list(depths)} blocks: those of timm have {STAGES}")
    kwargs: dict[str, Any] = {}
    name = RESNETS.get((block, tuple(depths)))
    if name is None:
        name, kwargs["layers"] = ("resnet18" if block == BASIC else "resnet50"), list(depths)
    if tuple(channels) != CHANNELS:
        kwargs["channels"] = list(channels)
    return {"backbone": name, "backbone_kwargs": kwargs}


def resnet_of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`backbone`, `backbone_kwargs` and `num_channels` of a ResNet, by the names and shapes of its tensors.

    Raises:
        ValueError: if these are no ResNet's.
    """
    firsts = [tensors.get(f"layer{stage}.0.conv1.weight") for stage in range(1, STAGES + 1)]
    stem = tensors.get("conv1.weight")
    if stem is None or any(first is None for first in firsts):
        raise ValueError("the backbone is no ResNet: it lacks conv1.weight or layer1.0.conv1.weight to layer4")
    depths = [
        sum(name.startswith(f"layer{stage}.") and name.endswith(".conv1.weight") for name in tensors)
        for stage in range(1, STAGES + 1)
    ]
    block = BOTTLENECK if "layer1.0.conv3.weight" in tensors else BASIC
    channels = [len(first) for first in firsts if first is not None]
    return {**timm_resnet(block, depths, channels), "num_channels": stem.shape[1]}


def resnet_of_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone`, `backbone_kwargs` and `num_channels` of a ResNet of transformers, by its configuration.

    Raises:
        ValueError: for a setting that timm's ResNets do not have.
    """
    depths = theirs.get("depths") or (3, 4, 6, 3)
    only = {
        "embedding_size": STEM_CHANNELS,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": f"stage{len(depths)}",
    }
    given = {name: theirs[name] for name in only if theirs.get(name) is not None}
    if "out_features" in given:
        given["out_features"] = given["out_features"][-1]
    for name, value in given.items():
        if value != only[name]:
            raise ValueError(f"{name} of backbone_config is {value!r}: timm's ResNets have {only[name]!r}")
    block = theirs.get("layer_type") or BOTTLENECK
    if block not in EXPANSION:
        raise ValueError(f"layer_type of backbone_config is {block!r}: timm's ResNets have {', '.join(EXPANSION)}")
    sizes = theirs.get("hidden_sizes") or (256, 512, 1024, 2048)
    channels = [size // EXPANSION[block] for size in sizes]
    return {**timm_resnet(block, depths, channels), "num_channels": theirs.get("num_channels", 3)}


def same_names(theirs: str, ours: str, tensors: Iterable[str]) -> list[Row]:
    """For those tensors that begin with `theirs`, of which the rest of the name is the same."""
    return [Row(name, ours + name.removeprefix(theirs)) for name in tensors if name.startswith(theirs)]


def transformers_names(theirs: str, ours: str) -> list[Row]:
    """From `embedder.embedder.convolution` ↔ `conv1` on; both begin as given."""
    rows = _convolution(f"{theirs}embedder.embedder", f"{ours}conv1", f"{ours}bn1")
    for stage in range(STAGES):
        block, layer = f"{theirs}encoder.stages.{stage}.layers.{{}}", f"{ours}layer{stage + 1}.{{}}"
        for number in range(3):
            rows += _convolution(f"{block}.layer.{number}", f"{layer}.conv{number + 1}", f"{layer}.bn{number + 1}")
        rows += _convolution(f"{block}.shortcut", f"{layer}.downsample.0", f"{layer}.downsample.1")
    return rows


def _convolution(theirs: str, convolution: str, norm: str) -> list[Row]:
    return [
        Row(f"{theirs}.convolution.weight", f"{convolution}.weight"),
        *(Row(f"{theirs}.normalization.{part}", f"{norm}.{part}") for part in BATCH_NORM),
    ]
