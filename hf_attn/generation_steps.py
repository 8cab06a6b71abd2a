"""How `generate()` has the model read one word more: by decoding with the twin, or by the model's `forward`.

Both take the words so far of all rows and give the logits of the next; then they are told which rows go on.
"""

import math
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import (
    EosTokenCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .inference_translator import Decoding, ReadyDecoder

# What looks at a row by itself, so that rows may go
KNOW_NO_ROWS = (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def know_no_rows(rules: LogitsProcessorList | StoppingCriteriaList) -> bool:
    """Whether no rule can tell one sentence of the batch from another by its place."""
    return all(type(rule) in KNOW_NO_ROWS for rule in rules)


class Bans:
    """What the usual rules say of the next word, said of the few words that it is about instead of all: these may not
    come, or not yet.

    Raises:
        LookupError: if there is a rule of another kind.
    """

    def __init__(self, rules: LogitsProcessorList):
        self.until: list[tuple[float, list[int]]] = []  # the length from which on words may come, and the words
        self.forced_at: int | None = None  # a length at which another rule has the last word
        for rule in rules:
            if type(rule) is MinLengthLogitsProcessor:
                self.until.append((rule.min_length, rule.eos_token_id.tolist()))
            elif type(rule) is MinNewTokensLengthLogitsProcessor:
                shortest = rule.prompt_length_to_skip + rule.min_new_tokens
                self.until.append((shortest, rule.eos_token_id.tolist()))
            elif type(rule) is SuppressTokensLogitsProcessor:
                self.until.append((math.inf, rule.suppress_tokens.tolist()))
            elif type(rule) is NoBadWordsLogitsProcessor and all(len(words) == 1 for words in rule.sequence_bias):
                self.until.append((math.inf, [word for [word] in rule.sequence_bias]))
            elif type(rule) is ForcedEOSTokenLogitsProcessor:
                self.forced_at = rule.max_length - 1
            else:
                raise LookupError(type(rule).__name__)

    @classmethod
    def of(cls, rules: LogitsProcessorList) -> "Bans | None":
        """What these rules say, or None where they say more."""
        try:
            return cls(rules)
        except LookupError:
            return None

    def say_all(self, length: int) -> bool:
        """Whether they are all that is said of the word after so many."""
        return length != self.forced_at

    def apply(self, logits: torch.Tensor, length: int) -> None:
        """Change (rows, vocabulary) logits of the word after `length` ids, prompt included."""
        for until, words in self.until:
            if length < until:
                logits[:, words] = -torch.inf


class DecodingSteps:
    """By `Decoding`, which keeps the memory once per sentence, whatever number of rows a sentence has.

    Args:
        prompt: (rows, length) ids that all rows begin with.
        alike: rows of each sentence; they begin alike, so until the first choice one of them stands for all.
    """

    def __init__(self, decoding: Decoding, prompt: torch.Tensor, alike: int = 1):
        self.decoding, self.alike = decoding, alike
        for ids in prompt[::alike, :-1].unbind(1):
            decoding.step(ids)

    def __call__(self, words: torch.Tensor) -> torch.Tensor:
        """(rows, length) words so far → (rows, vocabulary) logits"""
        logits = self.decoding.step(words[:: self.alike, -1])
        return logits.repeat_interleave(self.alike, dim=0) if self.alike > 1 else logits

    def pick(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
        """Go on with the chosen rows, in their order, and with the chosen sentences, where some are done."""
        self.decoding.pick(rows // self.alike, sentences)
        self.alike = 1


class ForwardSteps:
    """By `forward`, with a cache where there is one, for all that is to be seen or is not ours.

    Args:
        flexible: rows may come and go.
    """

    def __init__(self, model: Any, config: GenerationConfig, model_kwargs: dict[str, Any], alike: int, flexible: bool):
        self.model, self.config, self.model_kwargs = model, config, model_kwargs
        self.cache = model_kwargs.get("cache")
        self.alike = alike if flexible and self.cache is not None else 1
        self.is_first = True
        self.outputs: Any = {}
        if self.alike > 1:
            rows = len(model_kwargs["encoder_outputs"].last_hidden_state)
            self._pick(torch.arange(0, rows, self.alike, device=model.device))

    def __call__(self, words: torch.Tensor) -> torch.Tensor:
        words = words[:: self.alike]
        if self.is_first:
            self.outputs = self.model._prefill(words, self.config, self.model_kwargs)
        else:
            new = 1 if self.model_kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(words, next_sequence_length=new, **self.model_kwargs)
            self.outputs = self.model(**inputs, return_dict=True)
        self.is_first = False
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            self.outputs, self.model_kwargs, is_encoder_decoder=True
        )
        logits = self.outputs.logits[:, -1]
        return logits.repeat_interleave(self.alike, dim=0) if self.alike > 1 else logits

    def pick(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
        if self.alike > 1 or sentences is not None:
            self._pick(rows // self.alike)
            self.alike = 1
        elif self.cache is not None:  # beams never leave their sentence, and all of a sentence read the same memory
            own = self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache
            own.reorder_cache(rows)

    def _pick(self, rows: torch.Tensor) -> None:
        """The chosen rows, in their order, of all that the model is given."""

        def pick(value: Any) -> Any:
            return value.index_select(0, rows) if isinstance(value, torch.Tensor) else value

        if self.cache is not None:
            self.cache.reorder_cache(rows)
        memory = self.model_kwargs["encoder_outputs"]
        memory = type(memory)({name: pick(value) for name, value in memory.items()})
        picked = {name: pick(value) for name, value in self.model_kwargs.items()}
        self.model_kwargs = {**picked, "encoder_outputs": memory}


def own_decoding(
    decoder: ReadyDecoder | None, config: GenerationConfig, model_kwargs: dict[str, Any], sentences: int
) -> Decoding | None:
    """The state of a decoding with the twin, or None where something is asked for that only `forward` does.

    Args:
        sentences: in the batch; the memory may hold each several times over.
    """
    memory, mask = model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs.get("attention_mask")
    cache = model_kwargs.get("cache")
    unusual = ("decoder_attention_mask", "decoder_inputs_embeds", "cross_attn_head_mask", "decoder_head_mask")
    if (
        decoder is None
        or config.output_attentions
        or config.output_hidden_states
        or config.cache_implementation is not None
        or config.compile_config is not None
        or cache is None
        or getattr(cache, "_is_user_defined", False)
        or not can_change_rows(cache)
        or any(model_kwargs.get(name) is not None for name in unusual)
        or (mask is not None and (mask.ndim != 2 or not mask.any(dim=1).all()))
    ):
        return None
    copies = len(memory) // sentences
    return Decoding(decoder, memory[::copies], None if mask is None else mask[::copies])


def can_change_rows(cache: Cache | None) -> bool:
    """Whether a cache, if there is one, is empty and takes as many rows as it is given."""
    if cache is None:
        return True
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if isinstance(cache, EncoderDecoderCache) else ()
    return bool(parts) and all(type(part) is DynamicCache for part in parts) and cache.get_seq_length() == 0
