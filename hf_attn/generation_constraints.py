"""What every sentence of a batch asks for itself: how long its translation may be, and with which words it begins."""

import operator
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria


class MaxLengthPerSentence(StoppingCriteria):
    """Ends every translation at the greatest length of its own sentence.

    `max_lengths` is (batch,), in ids, prompt included; there may be several translations of each sentence.
    """

    def __init__(self, max_lengths: torch.Tensor):
        self.max_lengths = max_lengths

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs):
        translations = input_ids.shape[0] // len(self.max_lengths)
        return (self.max_lengths <= input_ids.shape[1]).repeat_interleave(translations)


class ForcedPrefixes(LogitsProcessor):
    """Forces the first words of translations, one a step, and lets the other processors at what follows.

    A forced word keeps its own log-probability, so that the score of a translation is the model's.

    Args:
        prefixes: for every sentence the token ids that its translation begins with, perhaps none.
        prompt_length: ids that come before them.
        processors: those for all other words.
    """

    def __init__(
        self,
        prefixes: list[list[int]],
        prompt_length: int,
        processors: LogitsProcessorList,
        device: torch.device | str = "cpu",
    ):
        longest = max(map(len, prefixes))
        filled = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes]
        self.prefixes = torch.tensor(filled, device=device)  # (batch, longest), -1 after the end
        self.prompt_length = prompt_length
        self.processors = processors

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor):
        step = input_ids.shape[1] - self.prompt_length
        if step >= self.prefixes.shape[1]:
            return self.processors(input_ids, scores)
        token = self.prefixes[:, step, None].repeat_interleave(input_ids.shape[0] // len(self.prefixes), dim=0)
        inside, token = token >= 0, token.clamp(min=0)
        forced = torch.full_like(scores, -torch.inf).scatter(1, token, scores.gather(1, token))
        return torch.where(inside, forced, self.processors(input_ids, scores))


def token_lists(value: Any, name: str, depth: int) -> list | None:
    """Lists of token ids, in lists `depth` deep, from whatever is like them; None where there are no ids at all.

    Raises:
        ValueError: if it is not as deep as that, or holds anything but whole numbers.
    """

    def as_lists(value: Any, depth: int) -> Any:
        return [as_lists(part, depth - 1) for part in value] if depth else operator.index(value)

    if value is None:
        return None
    try:
        lists = as_lists(value, depth)
    except TypeError:
        like = {2: "[[5, 6], [], ...]", 3: "[[[5, 6], [7]], [], ...]"}[depth]
        raise ValueError(f"{name} must be one entry per sentence, like {like}, of token ids; got {value!r}") from None
    return lists if any(lists) else None


def check_token_lists(
    sentences: list[list[list[int]]], name: str, limits: list[int], config: PreTrainedConfig
) -> None:
    """Refuse what no translation can contain.

    Args:
        sentences: for every sentence the runs of token ids that its translation is to contain.
        limits: how many new tokens each sentence may have.

    Raises:
        ValueError: that names the sentence, the number and the remedy.
    """
    if len(sentences) != len(limits):
        raise ValueError(
            f"{name} has {len(sentences)} entries for {len(limits)} sentences; give one for each, [] for none"
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    never = {
        **dict.fromkeys(ends, "the end of a sentence"),
        config.pad_token_id: "padding: lists may differ in length",
    }
    for i, run in ((i, run) for i, sentence in enumerate(sentences) for run in sentence):
        if not run:
            raise ValueError(f"{name}[{i}] has an empty phrase; leave it out")
        if len(run) > limits[i]:
            raise ValueError(
                f"{name}[{i}] has {len(run)} tokens in a row, but sentence {i} may have {limits[i]} new tokens; "
                "shorten it, or raise max_new_tokens_over_source, max_new_tokens or max_length"
            )
        for token in run:
            if not 0 <= token < config.decoder_vocab_size:
                last = config.decoder_vocab_size - 1
                raise ValueError(f"{name}[{i}] has token id {token}, outside the vocabulary; ids are from 0 to {last}")
            if token in never:
                raise ValueError(f"{name}[{i}] has token id {token}, which is {never[token]}; leave it out")
