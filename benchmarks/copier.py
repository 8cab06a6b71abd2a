"""A translator that says its source once more, by construction, so that its translations end where they should.

Translations of a random model never end, or all at once; a trained one takes hours at the size of Vaswani's base. This
one has the shape, the arithmetic and so the time of any model of its size, and each translation is as long as its
source on every side and in every number format.

Words live in one half of the dimensions, and the sinusoids of the other half, the fast ones, tell places. In the last
decoder layer the cross-attention's queries and keys are these sinusoids, so that place t reads place t of the source;
its values are the words, and they drown what the decoder knew before. All other layers are weak noise. What LayerNorm
has taken off as the mean is found where words add up to nothing, and put back.
"""

from typing import Any

import torch
from torch import nn

from hf_attn.attention import MultiHeadAttention

NOISE = 0.01  # of projections; a tenth of it for those that write to the stream
LOUD = 8.0  # what is read, in relation to what is there
SHARP = 20.0  # by which the score of the right place is above all others
WORDS = 3.0  # length of words in relation to √width; the sinusoids' is 0.7
PLACES = 512  # that are told apart


@torch.no_grad()
def make_copier(model: Any, shuffled: bool = False) -> Any:
    """Turn an AttnTranslatorForConditionalGeneration into one that copies, in place.

    Args:
        shuffled: says for each word of the source, `</s>` too, the one that is nearest in a random direction instead:
            a choice among all words that is close, and so shows differences between two computations.
    """
    config = model.config
    if config.position_layout != "halves" or config.norm_position != "post":
        raise ValueError(
            f"position_layout {config.position_layout!r} and norm_position {config.norm_position!r} cannot copy here; "
            "it takes 'halves' and 'post'"
        )
    width = config.hidden_size
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            writes = name.endswith(("out_proj.weight", "down_proj.weight"))
            parameter.normal_(std=NOISE / 10 if writes else NOISE)
    quarter, half = width // 4, width // 2
    words = [torch.arange(quarter, half), torch.arange(half + quarter, width)]
    table = torch.zeros(config.vocab_size, width)
    for part in words:  # of equal length and mean: LayerNorm must not make some places louder than others
        vectors = torch.randn(config.vocab_size, len(part))
        table[:, part] = nn.functional.normalize(vectors - vectors.mean(1, keepdim=True))
    model.model.encoder.embed_tokens.weight.copy_(table * WORDS / 2**0.5)
    attention = model.model.decoder.layers[-1].cross_attention
    _read_same_place(attention, words[0])
    _say(attention, torch.cat(words), shuffled)
    return model


def _read_same_place(attention: MultiHeadAttention, zero_mean: torch.Tensor) -> None:
    width, head = attention.config.hidden_size, attention.head_dim
    used = torch.arange(head // 2) * max(1, width // 4 // (head // 2))  # which sinusoids
    frequencies = 10_000.0 ** (-2 * used / width)
    distances = torch.arange(1, PLACES)
    gap = (1 - torch.cos(distances[:, None] * frequencies)).sum(1).min().item()
    scale = (SHARP * head**0.5 / gap * (WORDS**2 + 0.5)) ** 0.5
    rows = torch.arange(width).view(-1, head)
    for projection in (attention.q_proj, attention.k_proj):
        for of_head in rows:
            projection.weight[of_head[: len(used)], used] += scale
            projection.weight[of_head[len(used) : 2 * len(used)], used + width // 2] += scale
            projection.weight[of_head[:, None], zero_mean] -= scale / len(zero_mean)


def _say(attention: MultiHeadAttention, words: torch.Tensor, shuffled: bool) -> None:
    directions = torch.eye(len(words))
    if shuffled:
        directions = torch.linalg.qr(torch.randn(len(words), len(words))).Q
    attention.v_proj.weight[words, words] += 1
    attention.out_proj.weight[words[:, None], words] += LOUD * directions
