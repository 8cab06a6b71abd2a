"""Mixup and CutMix as a collator around a collator: pictures and labels of a batch mixed in pairs."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torchvision.transforms.v2 import CutMix, MixUp  # type: ignore[import-untyped]

from hf_attn.training.augmentation import Batch, FollowsEpochs, row_numbers
from hf_attn.training.resumable import seeded


class MixupCutmixCollator(FollowsEpochs):
    """Batches of another collator, a share `probability` of them mixed, with soft labels (batch, num_classes) float32.

    Mixup (Zhang et al. 2018) adds two pictures, weighted by a share drawn from Beta(`mixup_alpha`, `mixup_alpha`);
    CutMix (Yun et al. 2019) puts a rectangle of one into the other, of an area drawn with `cutmix_alpha`. An alpha of
    0 switches one of them off; of both, each is taken half of the time. The labels are mixed in the same proportion,
    measured in pixels. Each batch draws once, and each of its pictures is mixed with the one before it: torchvision's
    MixUp and CutMix, which take batches of any size. A batch of one picture stays as it is.

    Labels may be class numbers (batch,), smoothed towards all classes alike by `label_smoothing`, or zeros and ones
    (batch, num_classes) of pictures with several labels, smoothed towards 0.5. Batches that are not mixed get them in
    the same form.

    For training only: for evaluation the Trainer needs the inner collator. What is drawn depends on the `seed` of the
    inner collator, the epoch and the `index` of the rows, so that it is the same in every worker and resumed run.

    Raises ValueError for alphas that are negative or both 0, and shares out of their range.
    """

    def __init__(
        self,
        collator: Callable[[Any], Batch],
        num_classes: int,
        mixup_alpha: float = 0.2,
        cutmix_alpha: float = 0.0,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__(getattr(collator, "seed", 0))
        if min(mixup_alpha, cutmix_alpha) < 0 or mixup_alpha == cutmix_alpha == 0:
            raise ValueError(f"mixup_alpha {mixup_alpha} and cutmix_alpha {cutmix_alpha}: one above 0, none below")
        if not 0 <= probability <= 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"probability {probability} must be in [0, 1], label_smoothing {label_smoothing} in [0, 1)"
            )
        self.collator = collator
        self.num_classes = num_classes
        self.probability = probability
        self.label_smoothing = label_smoothing
        self.mixtures = [MixUp(alpha=mixup_alpha)] if mixup_alpha else []
        self.mixtures += [CutMix(alpha=cutmix_alpha)] if cutmix_alpha else []

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if isinstance(self.collator, FollowsEpochs):
            self.collator.set_epoch(epoch)

    def __call__(self, rows: Any) -> Batch:
        batch = self.collator(rows)
        pixel_values, labels = batch["pixel_values"], self.soft_labels(batch["labels"])
        with seeded(self.seed, self.epoch, *row_numbers(rows).tolist()):
            if random.random() < self.probability:
                pixel_values, labels = random.choice(self.mixtures)(pixel_values, labels)
        return {**batch, "pixel_values": pixel_values, "labels": labels}

    def soft_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """(batch,) class numbers or (batch, num_classes) zeros and ones to (batch, num_classes) smoothed."""
        smoothing = self.label_smoothing
        if labels.ndim == 2:
            return labels * (1 - smoothing) + smoothing / 2
        return functional.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / self.num_classes
