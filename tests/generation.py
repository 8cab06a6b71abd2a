"""What the tests of generation share: tiny translators, sentences for them, and the slow, sure way to the answers."""

import itertools

import torch

from hf_attn import AttnTranslatorForConditionalGeneration
from tests.tiny import tiny_translator

START, PAD, END = 0, 1, 2


def translator(seed: int = 0, end_bias: float = 0.0, **config) -> AttnTranslatorForConditionalGeneration:
    """A tiny translator in float64, where no two hypotheses tie, that ends sentences more readily with `end_bias`."""
    model = tiny_translator(seed, logits_bias=True, **config).double()
    model.logits_bias.data[END] += end_bias
    return model


def sources(*lengths: int, seed: int = 0, vocab_size: int = 41) -> torch.Tensor:
    """(sentences, longest) random ids, each sentence ending in </s>, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randint(3, vocab_size, (length,), generator=generator)
        row[length - 1] = END
    return batch


def translations_of(out) -> list[list[int]]:
    """The words of each sequence, </s> too. The beam indices know their number: padding is a word to these models."""
    lengths = (out.beam_indices >= 0).sum(1).tolist()
    return [sequence[1 : 1 + n].tolist() for sequence, n in zip(out.sequences, lengths, strict=True)]


def all_translations(vocab_size: int, limit: int) -> list[tuple[int, ...]]:
    """Every sequence of at most `limit` words that ends in </s>, or has none and is `limit` long."""
    others = [word for word in range(vocab_size) if word != END]
    ended = [(*words, END) for n in range(limit) for words in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=limit))


def log_probabilities(model, source: torch.Tensor, translations: list[tuple[int, ...]]) -> torch.Tensor:
    """log p(translation | source) of each, by teacher forcing."""
    longest = max(map(len, translations))
    labels = torch.tensor([[*words, *[-100] * (longest - len(words))] for words in translations])
    with torch.no_grad():
        logits = model(source.expand(len(labels), -1), labels=labels).logits
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return chosen.masked_fill(labels == -100, 0.0).sum(1)


def penalty(length: int, gnmt_alpha: float | None, length_penalty: float = 1.0) -> float:
    return ((5 + length) / 6) ** gnmt_alpha if gnmt_alpha is not None else length**length_penalty
