"""What a Vision Transformer reads: a picture cut in patches, each with its place, after the class and register tokens.

pixels (b, c, H, W) → patches (b, rows · columns, d) + positions → [class token, registers, patches] (b, tokens, d)
"""

from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from .configuration_vit import AttnViTConfig, check_divisible
from .positions import grid_sinusoids, resample_grid, resample_patch_kernel

CACHED_GRIDS = 16  # sizes whose resampled positions are kept


class PatchEmbedding(nn.Conv2d):
    """Cuts a picture in patches that do not overlap and maps each one linearly (section 3.1)."""

    def __init__(self, config: AttnViTConfig):
        super().__init__(config.num_channels, config.hidden_size, config.patch_shape, stride=config.patch_shape)
        self.pad_to_patch = config.pad_to_patch

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, hidden_size, rows, columns)"""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.in_channels:
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}, but must be (batch, channels, height, width) with "
                f"{self.in_channels} channels; an image processor gives them so"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}, but must be normalised floats; an image processor makes them"
            )
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = self.kernel_size
        check_divisible((height, width), (patch_height, patch_width), self.pad_to_patch, "the picture's size")
        if self.pad_to_patch:
            pixel_values = nn.functional.pad(pixel_values, (0, -width % patch_width, 0, -height % patch_height))
        return super().forward(pixel_values.to(self.weight.dtype))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches in a picture."""
        patch_height, patch_width = self.kernel_size
        # not -(-height // patch_height): ONNX, to which this is exported, rounds whole numbers towards zero
        return (height + patch_height - 1) // patch_height, (width + patch_width - 1) // patch_width


class ViTEmbeddings(nn.Module):
    """Patches with their places, behind the class token and the register tokens."""

    def __init__(self, config: AttnViTConfig, mask_token: bool = False):
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        width = config.hidden_size
        learned = config.position_embedding == "learned"
        self.positions = nn.Parameter(torch.zeros(*config.grid_shape, width)) if learned else None
        on_class_token = learned and config.class_token and config.position_on_class_token
        self.class_token = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.class_position = nn.Parameter(torch.zeros(width)) if on_class_token else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(registers, width)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(width)) if mask_token else None
        self.dropout = nn.Dropout(config.dropout)
        self.resampled = ResampledGrids(config.antialias_positions)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, tokens, hidden_size); masked patches become the mask token."""
        patches = self.patch_embedding(pixel_values)
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            patches = self._mask(patches, bool_masked_pos, rows, columns)
        positions = self._positions(rows, columns, patches.device)
        if positions is not None:
            patches = patches + positions.flatten(0, 1).to(patches.dtype)
        patches = drop_patches(self.dropout(patches), self.config.patch_dropout if self.training else 0.0)
        prefix = [self.dropout(tokens.expand(patches.shape[0], -1, -1)) for tokens in self._prefix()]
        return torch.cat([*prefix, patches], dim=1)

    def _prefix(self) -> list[torch.Tensor]:
        """The class token and the registers, each (tokens, hidden_size), where there are any."""
        prefix = []
        if self.class_token is not None:
            token = self.class_token if self.class_position is None else self.class_token + self.class_position
            prefix.append(token.unsqueeze(0))
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        return prefix

    def _positions(self, rows: int, columns: int, device: torch.device) -> torch.Tensor | None:
        if self.positions is not None:
            return self.resampled(self.positions, rows, columns)
        if self.config.position_embedding == "sinusoids":
            return grid_sinusoids(rows, columns, self.config.hidden_size, device)
        return None

    def _mask(self, patches: torch.Tensor, masked: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        if self.mask_token is None:
            raise ValueError("bool_masked_pos needs a mask token: build AttnViTModel(config, mask_token=True)")
        if masked.shape != patches.shape[:2]:
            raise ValueError(
                f"bool_masked_pos is {tuple(masked.shape)}, but must be (batch, patches) = {tuple(patches.shape[:2])} "
                f"for {rows} rows and {columns} columns of patches"
            )
        return torch.where(masked.unsqueeze(-1).bool(), self.mask_token.to(patches.dtype), patches)


class ResampledGrids(nn.Module):
    """Learned positions for the size at hand; on the CPU, those of the last few are kept while nothing is trained."""

    def __init__(self, antialias: bool = True) -> None:
        super().__init__()
        self.antialias = antialias
        self.kept: dict[tuple[int, int], torch.Tensor] = {}
        self.source: torch.Tensor | None = None  # a copy of what they were made of

    def forward(self, grid: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(old rows, old columns, dim) → (rows, columns, dim)"""
        is_fixed = isinstance(rows, int) and isinstance(columns, int)  # not while a model for any size is exported
        if is_fixed and (rows, columns) == grid.shape[:2]:
            return grid
        on_cpu = grid.device.type == "cpu"  # elsewhere it is quick, and comparing would make the device wait
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_fixed or not on_cpu:
            return resample_grid(grid, rows, columns, self.antialias)
        if not self._is_current(grid):
            self.kept, self.source = {}, grid.detach().clone()
        if (rows, columns) not in self.kept:
            if len(self.kept) == CACHED_GRIDS:
                self.kept.clear()
            self.kept[rows, columns] = resample_grid(grid, rows, columns, self.antialias)
        return self.kept[rows, columns]

    def _is_current(self, grid: torch.Tensor) -> bool:
        # by value: weights changed through `.data`, as averages often are, carry no mark of it
        source = self.source
        if source is None or (source.dtype, source.device) != (grid.dtype, grid.device):
            return False
        return torch.equal(source, grid)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}, "source": None}  # a copy resamples its own


def drop_patches(patches: torch.Tensor, rate: float) -> torch.Tensor:
    """Leave out a share of each picture's patches at random, keeping the order of the others (Li et al. 2023, FLIP).

    (batch, patches, hidden_size) → (batch, max(1, ⌊patches · (1 - rate)⌋), hidden_size)
    """
    if not rate:
        return patches
    number = patches.shape[1]
    kept = max(1, int(number * (1 - rate)))
    chosen = torch.rand(patches.shape[0], number, device=patches.device).topk(kept).indices.sort().values
    return patches.gather(1, chosen.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


class Resample(ConversionOps):
    """On loading: positions and patch kernels of other sizes than the model's are resampled instead of refused."""

    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **kwargs: Any) -> dict[str, Any]:
        (stored,) = input_dict.values()
        stored = stored[0] if isinstance(stored, list) else stored
        model = kwargs["model"]
        wanted = model.get_parameter(kwargs["full_layer_name"]).shape
        if stored.ndim == 3 and stored.shape[-1] == wanted[-1] and stored.shape != wanted:
            stored = resample_grid(stored, wanted[0], wanted[1], model.config.antialias_positions)
        elif stored.ndim == 4 and stored.shape[:2] == wanted[:2] and stored.shape != wanted:
            stored = resample_patch_kernel(stored, wanted[2], wanted[3])
        return {target_patterns[0]: stored}

    @property
    def reverse_op(self) -> ConversionOps:
        return _AsItIs()


class _AsItIs(ConversionOps):
    """On saving: the weights as the model has them."""

    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **kwargs: Any) -> dict[str, Any]:
        (stored,) = input_dict.values()
        return {target_patterns[0]: stored[0] if isinstance(stored, list) else stored}

    @property
    def reverse_op(self) -> ConversionOps:
        return Resample()


register_checkpoint_conversion_mapping(
    AttnViTConfig.model_type,
    [
        WeightConverter("embeddings.positions", "embeddings.positions", [Resample()]),
        WeightConverter("embeddings.patch_embedding.weight", "embeddings.patch_embedding.weight", [Resample()]),
    ],
    overwrite=True,  # the same code may come once more, with a model from the Hub
)
