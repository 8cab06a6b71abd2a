"""What the checkpoints of all Vision Transformers have in common: tokens and their positions, and the labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from transformers.utils import logging

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.interchange.loading import Opened
from hf_attn.interchange.names import Change, Row
from hf_attn.modeling_vit import AttnViTBackbone, AttnViTModel, AttnViTPreTrainedModel

logger = logging.get_logger(__name__)

CLASS_POSITION, POSITIONS = "model.embeddings.class_position", "model.embeddings.positions"
REGISTERS = "model.embeddings.register_tokens"

WITHOUT_BATCH = Change(lambda theirs: [theirs[0]], lambda ours: ours[0][None])  # (1, tokens, d) ↔ (tokens, d)
ROW = Change(lambda theirs: [theirs.flatten()], lambda ours: ours[0][None])  # (1, d) ↔ (d,)
# The mean of two heads, (classes, d) each ↔ one, (classes, 2 d), which reads their tokens side by side
MEAN_OF_HEADS = Change(
    lambda one, other: [torch.cat([one, other], dim=1) / 2], lambda ours: (2 * ours[0]).chunk(2, dim=1)
)
# Their biases, (classes,) each ↔ one. Only the mean counts, so on the way back both are it
MEAN_OF_BIASES = Change(lambda one, other: [(one + other) / 2], lambda ours: [ours[0], ours[0].clone()])


def image_processor(opened: Opened, place: dict[str, Any]) -> list[AttnViTImageProcessor]:
    """What prepares pictures for the model of a directory or a repository, where it says how."""
    try:
        return [AttnViTImageProcessor.from_pretrained(opened.source, **place)]
    except OSError:
        return []


def processor_of_file(settings: Callable[[AttnViTConfig], dict[str, Any]]) -> Callable[..., list[Any]]:
    """`companions` of a file of weights: what prepares pictures for such models."""
    return lambda opened, place: [AttnViTImageProcessor(**settings(AttnViTConfig(**opened.fields)))]


# What is the same for all kinds of checkpoints
OF_ALL: dict[str, Any] = {
    "config_class": AttnViTConfig,
    "head": ("classifier.",),
    "other_heads": ("decoder.", "model.embeddings.mask_token"),
    "resampled": ("model.embeddings.positions", "model.embeddings.patch_embedding.weight"),
}


def with_bias_left_out(theirs: str, ours: Sequence[str]) -> Row:
    """One or three weights without a bias, stacked: our biases are zeros, and have to be zeros on the way back."""

    def take(stacked: torch.Tensor) -> list[torch.Tensor]:
        weights = stacked.chunk(len(ours))
        return [*weights, *(torch.zeros_like(weight[:, 0]) for weight in weights)]

    def give(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if any(bias.any() for bias in parts[len(ours) :]):
            raise ValueError(f"{theirs} has no bias in this format, but the model's is not zero")
        return torch.cat(list(parts[: len(ours)]))

    names = (*(f"{name}.weight" for name in ours), *(f"{name}.bias" for name in ours))
    return Row(f"{theirs}.weight", names, Change(take, give))


def positions(config: AttnViTConfig, theirs: str, registers: str, count: int, length: int) -> list[Row]:
    """The rows of learned positions, and of registers that may have such, too.

    Args:
        theirs: the name of the positions, (1, tokens, d).
        registers: the name of the registers, (1, count, d).
        count: of the registers.
        length: tokens that have a position: patches; class token and patches; all; or 0, none.

    Raises:
        ValueError: if the grid of patches has another size.
    """
    rows, columns = config.grid_shape
    before = length - rows * columns
    if before in (count + int(config.class_token), 0) and count and before:
        ours = (*((CLASS_POSITION,) if config.class_token else ()), REGISTERS, POSITIONS)
        return [Row((registers, theirs), ours, _positions_of_all(rows, columns, count))]
    apart = [Row(registers, REGISTERS, WITHOUT_BATCH)] if count else []
    if length == 0:
        return apart
    if before == 1 and config.class_token:
        return [*apart, Row(theirs, (CLASS_POSITION, POSITIONS), _positions(rows, columns))]
    if before == 0:
        return [*apart, Row(theirs, POSITIONS, _positions(rows, columns))]
    raise ValueError(f"it has {length} positions, which do not fit a grid of {rows} rows and {columns} columns")


def _positions(rows: int, columns: int) -> Change:
    """(1, [1 +] rows · columns, d) ↔ (d,) of the class token, if it has one, and (rows, columns, d)"""

    def take(theirs: torch.Tensor) -> list[torch.Tensor]:
        tokens, patches = theirs[0, : -rows * columns], theirs[0, -rows * columns :]
        return [*tokens, patches.unflatten(0, (rows, columns))]

    def give(ours: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*(token[None] for token in ours[:-1]), ours[-1].flatten(0, 1)])[None]

    return Change(take, give)


def _positions_of_all(rows: int, columns: int, count: int) -> Change:
    """Registers in their positions ↔ their sums, for here registers have none; on the way back those are zeros."""
    apart = _positions(rows, columns)

    def take(registers: torch.Tensor, theirs: torch.Tensor) -> list[torch.Tensor]:
        *tokens, patches = apart.take(theirs)
        return [*tokens[:-count], registers[0] + torch.stack(tokens[-count:]), patches]

    def give(ours: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        *class_position, registers, patches = ours
        return [registers[None], apart.give([*class_position, *torch.zeros_like(registers), patches])]

    return Change(take, give)


def side_or_pair(height: int, width: int) -> int | list[int]:
    """A size as a configuration has it."""
    return height if height == width else [height, width]


def imagenet_labels(number: int) -> dict[str, object]:
    """`id2label`, and `label2id` where no two are the same, for as many classes as an ImageNet has; as timm does."""
    subset = infer_imagenet_subset({"num_classes": number})
    if subset is None:
        return label_fields([f"LABEL_{index}" for index in range(number)])
    info = ImageNetInfo(subset)
    return label_fields([info.index_to_description(index) for index in range(number)])


def label_fields(names: Sequence[str]) -> dict[str, object]:
    unique = len(set(names)) == len(names)
    return {
        "id2label": dict(enumerate(names)),
        **({"label2id": {name: index for index, name in enumerate(names)}} if unique else {}),
    }


def model_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The weights of one of our models by the names that they have in a model with a head.

    Raises:
        ValueError: if it is another model.
    """
    if not isinstance(model, AttnViTPreTrainedModel) or isinstance(model, AttnViTBackbone):
        raise ValueError(f"a {type(model).__name__} cannot be exported; an AttnViTModel and those with a head can")
    base = "model." if isinstance(model, AttnViTModel) else ""
    return {f"{base}{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
