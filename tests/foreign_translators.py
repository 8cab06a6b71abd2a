"""What the tests of transformers' translators share: a shape that is small, sources, and what is said to them."""

from typing import Any

import torch

SHAPE = {
    "vocab_size": 61,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "dropout": 0.0,
}


def padded_sources(count: int, words: range, end: int, pad: int) -> dict[str, torch.Tensor]:
    """A batch of sentences of 1 to 12 of these words, the last of which is `end`."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 13, (count,), generator=generator)
    ids = torch.randint(words.start, words.stop, (count, 12), generator=generator)
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids[torch.arange(count), lengths - 1] = end
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor], target: list[int]) -> torch.Tensor:
    """What the model says after each word of the target, the same for all sources."""
    targets = torch.tensor([target]).expand(len(batch["input_ids"]), -1)
    return model(**batch, decoder_input_ids=targets, use_cache=False).logits
