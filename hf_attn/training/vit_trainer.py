"""Trainer for picture classifiers: the recipe of the Vision Transformer, runs that survive a kill."""

from typing import Any

import torch

from hf_attn.training.arguments import ViTTrainingArguments
from hf_attn.training.optimization import layer_decay_groups
from hf_attn.training.picture_trainer import PictureTrainer


class ViTTrainer(PictureTrainer):
    """Trains a Vision Transformer. Beside what `PictureTrainer` does, tokens, positions, norms, layer scales and
    biases do not decay, and lower layers may learn more slowly."""

    arguments_class = ViTTrainingArguments

    args: ViTTrainingArguments

    def parameter_groups(self, model: Any, learning_rate: float) -> list[dict[str, Any]]:
        return layer_decay_groups(model, self.args.weight_decay, self.args.layer_decay, learning_rate)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Of the matrix products with weights, forward and back; all tokens of all pictures."""
        pictures, _, height, width = inputs["pixel_values"].shape
        rows, columns = self.model.base_model.patch_grid(height, width)
        return self.flops_per_position * pictures * (rows * columns + self.model.config.num_prefix_tokens)
