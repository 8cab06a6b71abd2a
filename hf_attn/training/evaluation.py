"""Loss and translations of many sentences, in token batches sorted by length, given back in order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration
from hf_attn.training.sampler import IGNORED_LABEL, TokenBatchSampler, pad_right


@torch.no_grad()
def summed_loss(model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The negative log-likelihood of all labels in nats, without label smoothing, and how many labels there are.

    Each word of the corpus counts the same, in whichever batch it lies, so the quotient of the two does not depend on
    the batches.

    Returns:
        (2,) float64 on the model's device.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total[0] += model(**batch, num_items_in_batch=1, use_cache=False).loss
        total[1] += (batch["labels"] != IGNORED_LABEL).sum()
    return total


@torch.no_grad()
def generate_all(
    model: AttnTranslatorForConditionalGeneration,
    sources: Sequence[Sequence[int]],
    max_tokens: int,
    on_sentences: Callable[[int], None] | None = None,
    **generate_arguments: Any,
) -> list[list[int]]:
    """Generate a target for each source.

    Args:
        sources: token ids, each ending in `</s>`.
        max_tokens: bound on sentences times longest source of a batch; a longer source stands alone.
        on_sentences: told after each batch how many sentences it held.
        generate_arguments: of `model.generate`.

    Returns:
        Token ids in the order of the sources, without the start token and padding, up to and with `</s>`.

    Raises:
        ValueError: if the model has no id for padding, or not one for the end.
    """
    model.eval()
    padding, end = model.config.pad_token_id, model.config.eos_token_id
    if not isinstance(padding, int) or not isinstance(end, int):
        raise ValueError(f"pad_token_id {padding} and eos_token_id {end} must be one id each")
    lengths = [len(source) for source in sources]
    generated: list[list[int]] = [[]] * len(sources)
    for rows in TokenBatchSampler(lengths, lengths, max(max_tokens, *lengths), shuffle=False):
        ids, mask = pad_right([sources[row] for row in rows], padding)
        output = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), **generate_arguments)
        for row, ids_of_row in zip(rows, output[:, 1:].tolist(), strict=True):
            generated[row] = up_to_end(ids_of_row, end, padding)
        if on_sentences is not None:
            on_sentences(len(rows))
    return generated


def up_to_end(ids: list[int], end: int, padding: int) -> list[int]:
    """The ids up to and with the first `end`; where there is none, because they became too long, up to the padding."""
    if end in ids:
        return ids[: ids.index(end) + 1]
    return ids[: ids.index(padding)] if padding in ids else ids
