"""Reading a translation again, all words at once: how likely each token was, and where it looked.

`generate()` can keep the scores of its steps, but those are (steps, beams, vocabulary) numbers. One more forward, with
the translation given, takes less memory, and says the same after greedy search, beam search and sampling.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**26  # 256 MiB in float32


class CrossAttention(NamedTuple):
    """Whose cross-attention to average: by default all decoder layers and all heads.

    In small models that average aligns words about as well as the best layer; of six layers, Garg et al. 2019 take
    the last but one. Row i of the decoder reads token i and predicts token i + 1. `rows` says which row stands for a
    token: "predicts", the one that predicts it, or "reads", the next one, which reads it (Chen et al. 2020).
    """

    layers: list[int] | None = None
    heads: list[int] | None = None
    rows: str = "predicts"


def read_again(
    model: PreTrainedModel,
    source: dict[str, torch.Tensor],
    sequences: torch.Tensor,
    attention: CrossAttention | None = None,
) -> dict[str, torch.Tensor]:
    """Log-probabilities of given translations, and on request the attention that they paid.

    Args:
        model: an encoder-decoder; for `attention` a translator of this package.
        source: `input_ids` and `attention_mask`, each (batch, source).
        sequences: (batch · translations, 1 + target), the start token first, as `generate()` returns them.
        attention: which weights to give, if any.

    Returns:
        `log_probs`, (batch · translations, target), the log-probability of each token after those before it, and
        `weights`, (batch · translations, target, source), rows summing to one, where `attention` asks for them.
    """
    translations = len(sequences) // len(source["input_ids"])
    source = {name: tensor.repeat_interleave(translations, dim=0) for name, tensor in source.items()}
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = max(1, LOGITS_AT_ONCE // (sequences.shape[1] * vocabulary))
    parts = [
        _read_rows(model, {name: tensor[part] for name, tensor in source.items()}, sequences[part], attention)
        for part in (slice(i, i + rows) for i in range(0, len(sequences), rows))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _read_rows(
    model: PreTrainedModel, source: dict[str, torch.Tensor], sequences: torch.Tensor, attention: CrossAttention | None
) -> dict[str, torch.Tensor]:
    recording = nullcontext() if attention is None else _recording(model, attention)
    with recording as record:
        logits = model(**source, decoder_input_ids=sequences, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.gather(2, sequences[:, 1:, None]).squeeze(2) - logits.logsumexp(dim=-1)
    if record is None or attention is None:
        return {"log_probs": log_probs}
    layers = [weights.to(log_probs).mean(dim=1) for [weights] in record.maps.values()]
    weights = torch.stack(layers).mean(dim=0)  # (rows, 1 + target, source)
    return {"log_probs": log_probs, "weights": weights[:, 1:] if attention.rows == "reads" else weights[:, :-1]}


def _recording(model: PreTrainedModel, attention: CrossAttention) -> AbstractContextManager:
    if attention.rows not in ("predicts", "reads"):
        raise ValueError(f"alignment rows {attention.rows!r} are unknown; use 'predicts' or 'reads'")
    for name in ("layers", "heads"):
        if getattr(attention, name) == []:
            raise ValueError(f"no alignment {name} are chosen; name some, or leave the choice out for all")
    # The model's own, because code that came with a model from the Hub has classes of its own.
    modules = [
        sys.modules[type(m).__module__] for name, m in model.named_modules() if name.endswith("cross_attention")
    ]
    if not modules or not hasattr(modules[0], "record_attention"):
        raise ValueError(f"{type(model).__name__} shows no cross-attention; alignments need a translator of hf_attn")
    return modules[0].record_attention(model, "cross_attention", layers=attention.layers, heads=attention.heads)
