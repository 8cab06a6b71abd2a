"""What goes into the translator: ids checked, padding found, targets shifted, words embedded in their places."""

import math

import torch
from torch import nn

from .configuration_translator import AttnTranslatorConfig
from .loss_translator import IGNORED
from .positions import sinusoids, token_positions


def padding_mask(ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor | None:
    """(batch, length), 1 for a token and 0 for padding; None where no id means padding."""
    return None if pad_token_id is None else (ids != pad_token_id).long()


def shift_right(labels: torch.Tensor, start_token_id: int, pad_token_id: int | None) -> torch.Tensor:
    """(batch, target): the start token, then each label but the last, with padding for labels that do not count."""
    shifted = torch.cat([torch.full_like(labels[:, :1], start_token_id), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, start_token_id if pad_token_id is None else pad_token_id)


def check_ids(ids: torch.Tensor, vocab_size: int, what: str, ignored: int | None = None) -> None:
    """Raise a ValueError that names the first id outside the vocabulary, its place, and the rule."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu":
        return  # looking would make a GPU wait, and there the look-up in the table fails by itself
    outside = (ids < 0) | (ids >= vocab_size)
    if ignored is not None:
        outside &= ids != ignored
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        ignore = f", or {ignored} to ignore it" if ignored is not None else ""
        raise ValueError(
            f"{what} {ids[row, column].item()} at row {row}, position {column} is outside the vocabulary: it must be "
            f"from 0 to {vocab_size - 1}{ignore}; was the text encoded with this model's tokenizer?"
        )


def embed_words(table: nn.Embedding, ids: torch.Tensor | None, embeds: torch.Tensor | None) -> torch.Tensor:
    """(batch, length, hidden_size) words, from (batch, length) ids or from ready embeddings.

    Raises:
        ValueError: for both, for neither, for no tokens at all, or for an id outside the table.
    """
    given = ids if embeds is None else embeds
    if given is None or (ids is not None and embeds is not None):
        came = "neither" if given is None else "both"
        raise ValueError(f"give token ids or embeddings, exactly one of the two; {came} came")
    if given.shape[1] == 0:
        raise ValueError(f"empty text: 0 tokens in a batch of {len(given)}; a text of no words still ends in </s>")
    if embeds is not None:
        return embeds
    check_ids(given, table.num_embeddings, "token id")
    return table(given)


class WordsInPlaces(nn.Module):
    """Embedded words, scaled by √hidden_size, plus the sinusoids of their positions, computed for any length."""

    def __init__(self, config: AttnTranslatorConfig):
        super().__init__()
        self.scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.layout, self.first = config.position_layout, config.first_position
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, words: torch.Tensor, attention_mask: torch.Tensor | None, seen: int | torch.Tensor = 0
    ) -> torch.Tensor:
        """(batch, length, hidden_size) → the same; `seen` positions went before, `attention_mask` covers those too."""
        length, dim = words.shape[1:]
        if attention_mask is None or attention_mask.ndim != 2:  # a mask for each query tells no places
            places = self.places(length, dim, words.device, seen)
        else:
            places = self.places(attention_mask.shape[-1], dim, words.device)[token_positions(attention_mask, length)]
        return self.dropout(words * self.scale + places.to(words.dtype))

    def places(
        self, count: int, dim: int, device: torch.device | str = "cpu", seen: int | torch.Tensor = 0
    ) -> torch.Tensor:
        """(count, dim) sinusoids of the places after the first `seen`."""
        return sinusoids(self.first + seen + torch.arange(count, device=device), dim, self.layout)
