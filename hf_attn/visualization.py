"""Attention as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch


def draw_alignment(
    source_words: Sequence[str],
    target_words: Sequence[str],
    weights: torch.Tensor,
    path: str | os.PathLike,
    title: str = "Where each word of the translation looks",
) -> None:
    """Write a heat map as a PNG: source words from left to right, target words from top to bottom.

    Args:
        source_words: the labels of the columns.
        target_words: the labels of the rows.
        weights: (target words, source words), from 0 to 1; see `TranslationPipeline.align`.
        path: the file to write; nothing half-written is left there.

    Raises:
        ValueError: if the weights have another shape than the words, or there are no words.
    """
    from matplotlib.figure import Figure  # takes a second to import, and is needed by few

    if tuple(weights.shape) != (len(target_words), len(source_words)) or not weights.numel():
        raise ValueError(
            f"weights are {tuple(weights.shape)} for {len(target_words)} target and {len(source_words)} source words; "
            "they must be (target words, source words), at least one of each"
        )
    figure = Figure(figsize=(2.5 + 0.45 * len(source_words), 1.8 + 0.4 * len(target_words)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights.float().numpy(), cmap="Blues", vmin=0.0, aspect="auto")
    axes.set_xticks(range(len(source_words)), source_words, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(target_words)), target_words)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    axes.set_title(title)
    figure.colorbar(image, label="share of the attention")

    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(unfinished, format="png", dpi=150)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
