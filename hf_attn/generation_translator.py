"""`generate()` for translators: lengths that follow the source, GNMT's length penalty, first words that are
given, phrases that must appear, and a beam search that translates every sentence of a batch as if it were alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import (
    GenerateBeamEncoderDecoderOutput,
    GenerateEncoderDecoderOutput,
    LogitsProcessorList,
)
from transformers.utils import logging
from transformers.utils.deprecation import deprecate_kwarg

from .generation_beam_search import BeamSearch
from .generation_constraints import ForcedPrefixes, MaxLengthPerSentence, check_token_lists, token_lists
from .generation_greedy import greedy_search
from .generation_required_phrases import RequiredPhrases
from .generation_steps import Bans, DecodingSteps, ForwardSteps, can_change_rows, know_no_rows, own_decoding

logger = logging.get_logger(__name__)

OWN_ENTRIES = {  # of a generation config, and their defaults
    "max_new_tokens_over_source": 50,
    "gnmt_alpha": None,
    "early_stopping_heuristic": False,
}
SPECIAL_TOKENS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")


def paper_generation_config(**overrides) -> GenerationConfig:
    """How Vaswani et al. 2017 (section 6.1) translate: beam 4, GNMT length penalty with α 0.6, at most 50 tokens more
    than the source. `overrides` are any entries of a `GenerationConfig`."""
    return GenerationConfig(**{"num_beams": 4, "gnmt_alpha": 0.6, "max_new_tokens_over_source": 50, **overrides})


class TranslatorGeneration(GenerationMixin):
    """What translation needs of `generate()`, to stand first among the bases of a model.

    `generation_config` has three entries of its own, saved and loaded with the others:

    max_new_tokens_over_source: how many tokens more than its source a translation may have, each sentence by itself;
        `</s>` counts, padding does not. 50 by default. Where `max_length` or `max_new_tokens` is given, that counts.
    gnmt_alpha: the α of the length penalty ((5 + |Y|) / 6)^α of beam search (Wu et al. 2016, equation 14); |Y| counts
        the new tokens, `</s>` too. Where it is None, |Y|^`length_penalty` counts, as everywhere in transformers.
    early_stopping_heuristic: whether `early_stopping` False means what it means in transformers: a sentence is done,
        too, where none of its beams, as they are, is better than the last of `num_beams` hypotheses, though it might
        become so. False by default, and True for models that come from there, which translate as they did there.

    What the caller of `generate()` says goes before what the model's `generation_config` says: his `max_length` before
    its `max_new_tokens_over_source`, his `length_penalty` before its `gnmt_alpha`.

    In beam search `early_stopping` False, without the heuristic, and "never" are the same: no translation that could
    still win is given up. With True a sentence is done at its first `num_beams` hypotheses, which is faster.
    """

    # The methods with an underscore are steps of transformers' generate(), in the order in which it takes them. What
    # belongs to one call travels between them as private entries of its own copy of the generation config, the way
    # transformers passes on the ids of special tokens.

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._complete_generation_config()

    def adjust_generation_fn(self, *args, **kwargs):
        """The last step of `from_pretrained`."""
        super().adjust_generation_fn(*args, **kwargs)
        self._complete_generation_config()

    def _complete_generation_config(self):
        """Give the model's generation config what a translator's must have, wherever it came from."""
        config = self.generation_config
        config._from_model_config = None  # what is marked so would be loaded without its own entries
        for name, default in OWN_ENTRIES.items():
            if not hasattr(config, name):
                setattr(config, name, default)
        for name in SPECIAL_TOKENS:
            if getattr(config, name) is None:
                setattr(config, name, getattr(self.config, name))
        if _is_filled_in(config):
            config.max_length = None

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")  # here too: it names the line of the caller
    def generate(  # type: ignore[override]
        self: Any,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        target_prefixes: Sequence[Sequence[int]] | None = None,
        required_phrases: Sequence[Sequence[Sequence[int]]] | None = None,
        **kwargs,
    ):
        """Translate. Takes everything that transformers' `generate()` takes, and two things more.

        With `return_dict_in_generate=True` beam search always returns `sequences_scores`. A place of the n-best list
        that no hypothesis fills holds padding and the score -inf.

        Args:
            target_prefixes: for every sentence the token ids that its translation begins with, the start token left
                out; of any lengths, and empty for none. They count as new tokens and keep their own log-probability
                in the score; no other rule (bad words, temperature, ...) applies to them.
            required_phrases: for every sentence a list of phrases, each a list of token ids, that must all appear in
                its translation, in any order (beam search only; Post and Vilar 2018). Where they do not all fit, the
                translation that contains most of them is returned, and a warning names the sentence.

        Raises:
            ValueError: if there is not one entry per sentence, if a prefix or phrase is longer than the translation
                may be or holds an id outside the vocabulary, `</s>` or padding, if a phrase is empty, or if phrases
                are required without beam search.
        """
        return GenerationMixin.generate(
            self,
            inputs,
            generation_config,
            *args,
            target_prefixes=target_prefixes,
            required_phrases=required_phrases,
            **kwargs,
        )

    def _prepare_generation_config(self, generation_config, target_prefixes=None, required_phrases=None, **kwargs):
        self._complete_generation_config()
        said = [kwargs, {} if generation_config is None else vars(generation_config), vars(self.generation_config)]
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)

        length = _nearest(said, "max_length", "max_new_tokens", "max_new_tokens_over_source")
        config._length_follows_source = length == "max_new_tokens_over_source"
        if config._length_follows_source:
            config.max_length = config.max_new_tokens = None
        if _nearest(said, "gnmt_alpha", "length_penalty") == "length_penalty":
            config.gnmt_alpha = None
        _check_entries(config)
        config._target_prefixes = token_lists(target_prefixes, "target_prefixes", depth=2)
        config._required_phrases = token_lists(required_phrases, "required_phrases", depth=3)
        return config, model_kwargs

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor, model_kwargs, model_input_name, generation_config
    ):
        mask = model_kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(inputs_tensor.shape[:2], dtype=torch.long, device=inputs_tensor.device)
        generation_config._source_lengths = mask.sum(dim=1)
        model_kwargs = super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )
        if mask.all():
            model_kwargs["attention_mask"] = None  # without padding the decoder reads the memory faster without a mask
        return model_kwargs

    def _prepare_generated_length(
        self,
        generation_config,
        has_default_max_length,
        has_default_min_length,
        model_input_name,
        input_ids_length,
        inputs_tensor,
    ):
        limits = generation_config._source_lengths
        if generation_config._length_follows_source:
            limits = (limits + generation_config.max_new_tokens_over_source).clamp(min=1)
            generation_config.max_new_tokens = int(limits.max())
            has_default_max_length = True  # which lets max_new_tokens decide, without a warning
        config = super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )
        if not config._length_follows_source:
            limits = torch.full_like(limits, config.max_length - input_ids_length)
        config._max_new_tokens_per_sentence = limits
        return config

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        limits = generation_config._max_new_tokens_per_sentence.tolist()
        prefixes, phrases = generation_config._target_prefixes, generation_config._required_phrases
        if prefixes is not None:
            prefixes = [[prefix] if prefix else [] for prefix in prefixes]
            check_token_lists(prefixes, "target_prefixes", limits, self.config)
        if phrases is not None:
            check_token_lists(phrases, "required_phrases", limits, self.config)
            if generation_config.num_beams == 1:
                raise ValueError("required_phrases need beam search, but num_beams is 1; set num_beams to 4 or more")

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, *args, **kwargs):
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, *args, **kwargs)
        prefixes = generation_config._target_prefixes
        if prefixes is None:
            return processors
        device = generation_config._source_lengths.device
        return LogitsProcessorList([ForcedPrefixes(prefixes, input_ids_seq_length, processors, device)])

    def _get_stopping_criteria(self, generation_config, *args, **kwargs):
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        if generation_config._length_follows_source and generation_config.num_beams == 1:  # beam search sees to it
            limits = generation_config._max_new_tokens_per_sentence
            criteria.append(MaxLengthPerSentence(generation_config.max_length - limits.max() + limits))
        return criteria

    def _sample(
        self: Any,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        """Greedy search by `greedy_search`; sampling, and what only `forward` gives, by transformers' own loop."""
        decoding = None
        if not (generation_config.do_sample or synced_gpus or streamer is not None):
            decoding = own_decoding(self.decoder_twin(), generation_config, model_kwargs, len(input_ids))
        if decoding is None:
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        limits = generation_config._max_new_tokens_per_sentence
        record = _wanted_outputs(generation_config)
        pad_token_id = int(generation_config._pad_token_tensor)
        sequences = greedy_search(
            decoding, input_ids, limits, logits_processor, stopping_criteria, pad_token_id, record
        )
        if not generation_config.return_dict_in_generate:
            return sequences
        steps = {name: tuple(steps) for name, steps in record.items()}
        return GenerateEncoderDecoderOutput(sequences=sequences, **steps)

    def _beam_search(
        self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, **model_kwargs
    ):
        """The search itself is `BeamSearch`; this is its traffic with the model."""
        phrases, limits = generation_config._required_phrases, generation_config._max_new_tokens_per_sentence
        phrases = None if phrases is None else RequiredPhrases(phrases, input_ids.device)
        record, beams = _wanted_outputs(generation_config), generation_config.num_beams
        cache, encoder_outputs = model_kwargs.get("cache"), model_kwargs["encoder_outputs"]
        # rows may come and go where nobody but this loop keeps account of them
        flexible = not record and can_change_rows(cache)
        is_usual = flexible and not phrases and know_no_rows(logits_processor) and know_no_rows(stopping_criteria)
        search = BeamSearch(input_ids, limits, stopping_criteria, generation_config, phrases, drops_done=is_usual)
        decoding, steps = None, None
        if not (record or synced_gpus):
            decoding = own_decoding(self.decoder_twin(), generation_config, model_kwargs, len(input_ids) // beams)
        if decoding is not None:
            steps = DecodingSteps(decoding, input_ids, alike=beams)
        else:
            steps = ForwardSteps(self, generation_config, model_kwargs, beams, flexible)
        bans = Bans.of(logits_processor) if is_usual and not generation_config.do_sample else None
        while self._has_unfinished_sequences(search.is_over, synced_gpus, input_ids.device):
            words = search.sequences.flatten(0, 1)
            logits = steps(words)
            if search.is_over:
                continue  # the other processes of a sharded model are not done: keep step with them

            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if bans is not None and bans.say_all(words.shape[1]):
                rows, sentences = search.advance_by_logits(logits, bans)
            else:
                log_probs = logits_processor(words, logits.log_softmax(dim=-1))
                for name, values in record.items():
                    values.append({**steps.outputs, "scores": log_probs, "logits": logits}[name])
                rows, sentences = search.advance(log_probs, record.get("scores"))
            if not search.is_over or synced_gpus:
                steps.pick(rows, sentences)

        if phrases is not None:
            _warn_of_unmet_phrases(search, phrases)
        found = search.results(int(generation_config._pad_token_tensor))
        if not generation_config.return_dict_in_generate:
            return found["sequences"]
        return GenerateBeamEncoderDecoderOutput(
            **found,
            encoder_attentions=encoder_outputs.get("attentions"),
            encoder_hidden_states=encoder_outputs.get("hidden_states"),
            cache=cache if decoding is None else None,
            **{name: tuple(values) for name, values in record.items()},
        )

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, ...],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ):
        """As in transformers, whose own takes the vocabulary of the source for that of the target.

        Returns:
            (rows, words) the score of every new word, 0 beyond the end of a translation that beam search found.
        """
        steps = torch.stack(scores, dim=1)  # (rows, words, vocabulary)
        if normalize_logits:
            steps = steps.log_softmax(dim=-1)
        if beam_indices is None:
            beam_indices = torch.arange(len(steps), device=steps.device)[:, None].expand(-1, len(scores))
        longest = int((beam_indices >= 0).sum(dim=1).max())
        rows, words = beam_indices[:, :longest], sequences[:, sequences.shape[1] - longest :]
        chosen = steps[rows.clamp(min=0), torch.arange(longest, device=steps.device), words]
        return chosen.masked_fill(rows < 0, 0.0)


def _nearest(levels: Sequence[Mapping[str, Any]], *names: str) -> str | None:
    """The first of the names that is not None at the first level where any of them is not."""
    return next((name for level in levels for name in names if level.get(name) is not None), None)


def _is_filled_in(config: GenerationConfig) -> bool:
    """Whether the library's defaults stand in a generation config, `max_length` 20 among them, as if someone had asked
    for them: Seq2SeqTrainer writes them there after its first batch."""
    defaults = GenerationConfig._get_default_generation_params()
    return config.max_length == defaults["max_length"] and all(
        getattr(config, name) is not None for name, default in defaults.items() if default is not None
    )


def _check_entries(config: Any) -> None:
    more, alpha = config.max_new_tokens_over_source, config.gnmt_alpha
    if not isinstance(more, int) or more < 0:
        raise ValueError(f"max_new_tokens_over_source is {more!r}; it must be a whole number from 0, 50 by default")
    if not isinstance(alpha, int | float | None):
        raise ValueError(f"gnmt_alpha is {alpha!r}; it must be a number (the paper's is 0.6) or None")


def _wanted_outputs(config: GenerationConfig) -> dict[str, list]:
    """A list, to be filled step by step, for each thing that the caller wants to see of every step."""
    if not config.return_dict_in_generate:
        return {}
    wanted = {
        "scores": config.output_scores,
        "logits": config.output_logits,
        "decoder_attentions": config.output_attentions,
        "cross_attentions": config.output_attentions,
        "decoder_hidden_states": config.output_hidden_states,
    }
    return {name: [] for name, is_wanted in wanted.items() if is_wanted}


def _warn_of_unmet_phrases(search: BeamSearch, phrases: RequiredPhrases) -> None:
    met, wanted, limits = (x.tolist() for x in (search.hypotheses.phrases_met[:, 0], phrases.count, search.limits))
    for i in range(len(wanted)):
        if met[i] < wanted[i]:
            logger.warning(
                f"the translation of sentence {i} contains {met[i]} of its {wanted[i]} required phrases: no more were "
                f"found within {limits[i]} new tokens; raise max_new_tokens_over_source, max_new_tokens or num_beams"
            )
