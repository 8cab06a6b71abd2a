"""The translator's loss: label-smoothed cross-entropy, exact under gradient accumulation."""

import torch
from torch import nn

IGNORED = -100  # the label of a position that does not count
CHUNK_ELEMENTS = 1 << 20  # logits taken at a time: 4 MiB in float32, so that each stays in a core's cache


def label_smoothed_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy against (1 - smoothing) of the right word and smoothing spread evenly over the vocabulary
    (Szegedy et al. 2016, section 7).

    Args:
        logits: (batch, target, vocabulary).
        labels: (batch, target), already where the logits predict them (not to be shifted); -100 does not count.
        num_items_in_batch: what the sum is divided by; by default the number of labels that count.

    Returns:
        A float32 (or float64) scalar; zero, with zero gradients, where no label counts.
    """
    count = (labels != IGNORED).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    count = count.to(logits.device).clamp(min=1)
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if logits.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler fuses the passes itself
        return _reference_loss(logits, labels, smoothing) / count
    return _SmoothedCrossEntropy.apply(logits, labels, smoothing) / count


def _reference_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The same sum by torch's own operators, which go over (tokens, vocabulary) seven times."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(
        logits, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Σ log Σ exp(x) - (1 - s) x[label] - s mean(x), whose gradient is softmax(x) - (1 - s) onehot(label) - s/V.

    Half of a small model's training step goes into its logits, so they are read twice, a few rows at a time, and never
    copied as a whole to float32.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        counts = labels != IGNORED
        targets = labels.clamp(min=0).unsqueeze(-1)
        normaliser = logits.new_empty(len(logits), dtype=precise)
        losses = logits.new_empty(len(logits), dtype=precise)
        for rows in _row_chunks(logits):
            x = logits[rows].to(precise)
            normaliser[rows] = x.logsumexp(dim=-1)
            target = x.gather(-1, targets[rows]).squeeze(-1)
            losses[rows] = normaliser[rows] - (1 - smoothing) * target
            if smoothing:
                losses[rows] -= smoothing * x.mean(dim=-1)
        ctx.save_for_backward(logits, targets, counts, normaliser)
        ctx.smoothing = smoothing
        return losses.masked_fill(~counts, 0.0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        logits, targets, counts, normaliser = ctx.saved_tensors
        weights = (counts * gradient).to(normaliser.dtype).unsqueeze(-1)
        right_word = normaliser.new_full((1, 1), ctx.smoothing - 1.0)
        gradients = torch.empty_like(logits)
        for rows in _row_chunks(logits):
            x = (logits[rows].to(normaliser.dtype) - normaliser[rows].unsqueeze(-1)).exp_()
            if ctx.smoothing:
                x -= ctx.smoothing / x.shape[-1]
            x.scatter_add_(-1, targets[rows], right_word.expand(len(x), 1))
            gradients[rows] = x.mul_(weights[rows])
        return gradients, None, None


def _row_chunks(logits: torch.Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
