"""Greedy search: of every sentence the likeliest next word, step by step; sentences that are done leave the batch."""

import torch
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from .generation_beam_search import top_k
from .generation_constraints import MaxLengthPerSentence
from .generation_steps import Bans, DecodingSteps, know_no_rows
from .inference_translator import Decoding


def greedy_search(
    decoding: Decoding,
    prompt: torch.Tensor,
    limits: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    pad_token_id: int,
    record: dict[str, list[torch.Tensor]],
) -> torch.Tensor:
    """Translate the sentences of a decoding.

    Args:
        prompt: (sentences, length) ids that translations begin with.
        limits: (sentences,) words that each may have at most.
        stopping_criteria: which end a translation, besides its limit.
        record: lists named "scores" and "logits", filled with (sentences, vocabulary) of every step.

    Returns:
        (sentences, length) ids, the prompt included, padded on the right.
    """
    ends = [rule.eos_token_id for rule in stopping_criteria if isinstance(rule, EosTokenCriteria)]
    known = (EosTokenCriteria, MaxLengthCriteria, MaxLengthPerSentence)  # which is what `ends` and `limits` say
    others = StoppingCriteriaList([rule for rule in stopping_criteria if not isinstance(rule, known)])
    bans = Bans.of(logits_processor)
    drops = not record and know_no_rows(logits_processor) and know_no_rows(others)

    steps = DecodingSteps(decoding, prompt)
    length, longest = prompt.shape[1], int(limits.max())
    sequences = torch.cat([prompt, prompt.new_full((len(prompt), longest), pad_token_id)], dim=1)
    rows = torch.arange(len(prompt), device=prompt.device)  # which go on
    is_done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    so_far, words_left = sequences, limits
    for now in range(length, length + longest):
        logits = steps(so_far[:, :now])
        scores = logits
        if bans is not None and not record and bans.say_all(now):
            bans.apply(logits, now)
        elif logits_processor or record:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            scores = logits_processor(so_far[:, :now], logits.clone() if record else logits)
        for name, values in record.items():
            values.append({"scores": scores, "logits": logits}[name])
        words = top_k(scores, 1)[1][:, 0]
        so_far[:, now] = words if drops else words.masked_fill(is_done, pad_token_id)
        words_left = words_left - 1
        is_done = is_done | (words_left <= 0)
        for end in ends:
            is_done = is_done | (words[:, None] == end).any(dim=1)
        if others:
            is_done = is_done | others(so_far[:, : now + 1], record.get("scores"))
        number_done = int(is_done.sum())
        if number_done == len(is_done):
            break
        if drops and number_done:
            sequences[rows[is_done]] = so_far[is_done]
            stay = (~is_done).nonzero()[:, 0]
            steps.pick(stay, stay)
            rows, so_far, words_left, is_done = rows[stay], so_far[stay], words_left[stay], is_done[stay]
    if so_far is not sequences:
        sequences[rows] = so_far
    return sequences[:, : now + 1]
