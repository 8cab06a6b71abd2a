"""What DETR returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class DetrDecoderOutput(ModelOutput):
    """As `AttnDetrModelOutput`, of the decoder alone."""

    last_hidden_state: torch.Tensor | None = None
    intermediate_hidden_states: torch.Tensor | None = None
    intermediate_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AttnDetrModelOutput(ModelOutput):
    """The decoder's last hidden states, and those of all its layers.

    last_hidden_state: (batch, queries, hidden_size).
    intermediate_hidden_states: (decoder layers, batch, queries, hidden_size), after the final norm.
    intermediate_boxes: (decoder layers, batch, queries, 4) cxcywh, fractions of the visible picture.
    encoder_last_hidden_state: (batch, tokens, hidden_size); smaller pictures end in padding.
    """

    last_hidden_state: torch.Tensor | None = None
    intermediate_hidden_states: torch.Tensor | None = None
    intermediate_boxes: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AttnDetrObjectDetectionOutput(ModelOutput):
    """What a detector says of pictures.

    loss: the weighted sum of the terms; loss_dict: the terms, by name, of all layers.
    logits: (batch, queries, classes), with one more class for "no object" unless the loss is focal.
    pred_boxes: (batch, queries, 4) cxcywh, fractions of the visible picture.
    scores: (batch, queries, num_labels), the probability of each class.
    auxiliary_outputs: `logits` and `pred_boxes` of each layer before the last.
    The others are those of `AttnDetrModelOutput`.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None
    last_hidden_state: torch.Tensor | None = None
    intermediate_hidden_states: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
