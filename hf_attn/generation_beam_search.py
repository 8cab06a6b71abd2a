"""Beam search: of every sentence the k best beginnings of a translation, all grown by one word a step.

k beams (batch, k, length) → log-probabilities of the next word (batch, k, vocabulary) → the best continuations of a
sentence's beams, in order → those of the first k that end are hypotheses; the first k that do not end are the next
beams … until no beam can overtake the hypotheses any more.
"""

import math
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig
from transformers.generation import StoppingCriteriaList

from .generation_required_phrases import RequiredPhrases

NOTHING = -torch.inf  # the score of a beam, or of a place among the hypotheses, that no translation fills


class Continuations(NamedTuple):
    """Beams grown by one word; every field is (batch, n), in order of preference."""

    score: torch.Tensor  # log-probability of all words
    beam: torch.Tensor  # which of the sentence's beams it continues
    word: torch.Tensor  # the token id that it adds

    def pick(self, index: torch.Tensor) -> "Continuations":
        return Continuations(*(field.gather(1, index) for field in self))


class Hypotheses(NamedTuple):
    """Finished translations, known by how they end; every field is (batch, n), best first."""

    score: torch.Tensor  # log-probability over length penalty
    phrases_met: torch.Tensor
    step: torch.Tensor  # at which the last word was added; -1 where there is no hypothesis
    beam: torch.Tensor  # which the last word continues
    word: torch.Tensor  # the last word

    @classmethod
    def none(cls, batch: int, n: int, device: torch.device) -> "Hypotheses":
        zeros = torch.zeros(batch, n, dtype=torch.long, device=device)
        return cls(torch.full((batch, n), NOTHING, device=device), zeros, zeros - 1, zeros, zeros)

    def or_better(self, others: "Hypotheses") -> "Hypotheses":
        """The best of both, as many as here: most phrases first, then the highest score, then the one found first."""
        both = Hypotheses(*(torch.cat(fields, dim=1) for fields in zip(self, others, strict=True)))
        order = both.score.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, both.phrases_met.gather(1, order).argsort(dim=1, descending=True, stable=True))
        return Hypotheses(*(field.gather(1, order[:, : self.score.shape[1]]) for field in both))


class Translations(NamedTuple):
    """The best hypotheses of some sentences, read back; words and beams beyond the end of one are to be ignored."""

    sentence: torch.Tensor  # (sentences,) their places in the batch
    words: torch.Tensor  # (sentences, n, longest)
    beams: torch.Tensor  # (sentences, n, longest), which beam each word continues; -1 beyond the end
    score: torch.Tensor  # (sentences, n)


class BeamSearch:
    """The search itself: log-probabilities in, hypotheses out; it knows no model.

    A sentence is done when its `num_return_sequences` best hypotheses cannot be overtaken any more: when none of its
    beams, whose log-probability can only fall, could reach the last of them by ending now or at the sentence's limit.
    With `early_stopping=True` it is done when it has `num_beams` hypotheses; so it is with one beam, which is greedy
    search. With `early_stopping_heuristic` it is done when no beam, ended now, could reach the last of `num_beams`
    hypotheses. Nothing of this depends on the other sentences of the batch.

    Args:
        prompt: (batch · num_beams, length) ids that all beams begin with.
        limits: (batch,), at most so many words of each sentence.
        stopping_criteria: which translations end, besides those at their limit.
        phrases: what the translations must contain, if anything.
        drops_done: forget the beams of sentences that are done; only where nobody else counts on a row for each beam.
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        limits: torch.Tensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        phrases: RequiredPhrases | None = None,
        drops_done: bool = False,
    ):
        self.config = generation_config
        self.num_beams = generation_config.num_beams
        heuristic = getattr(generation_config, "early_stopping_heuristic", False)
        self.has_heuristic = heuristic and not generation_config.early_stopping  # which is False, not "never"
        end_tokens = generation_config._eos_token_tensor
        self.end_tokens = prompt.new_empty(0) if end_tokens is None else end_tokens
        self.stopping_criteria = stopping_criteria
        self.phrases = phrases
        self.drops_done = drops_done

        self.sequences = prompt.unflatten(0, (-1, self.num_beams))  # (batch, beams, length)
        batch, _, self.prompt_length = self.sequences.shape
        self.prompt = self.sequences[:, :1]
        self.scores = torch.full((batch, self.num_beams), NOTHING, device=prompt.device)
        self.scores[:, 0] = 0.0  # all beams begin alike: one of them is enough
        self.limits = limits
        self.hypotheses = Hypotheses.none(batch, self.num_beams, prompt.device)
        self.is_done = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
        self.num_done = 0
        self.steps: list[Continuations] = []
        # which sentences of the batch all these belong to, and what is known of those that were dropped
        self.sentences = torch.arange(batch, device=prompt.device)
        self.translations: list[Translations] = []

    @property
    def is_over(self) -> bool:
        return self.num_done == len(self.sentences)

    def advance(
        self, log_probs: torch.Tensor, all_scores: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Grow every beam by one word.

        Args:
            log_probs: (sentences · num_beams, vocabulary), of the next word.
            all_scores: those of all steps, for stopping criteria that look at them.

        Returns:
            (sentences · num_beams,) which row each beam continues; where sentences were dropped, fewer rows, and the
            places of those that stay among the sentences so far, else None.
        """
        log_probs = log_probs.unflatten(0, self.scores.shape)
        if self.phrases is not None:
            log_probs = self.phrases.hold_back(self.end_tokens, log_probs, self.sequences[:, :, 1:])
        return self._grow(self._best_continuations(self.scores[:, :, None] + log_probs), all_scores)

    def advance_by_logits(self, logits: torch.Tensor, bans: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `advance` by the logits' log-softmax, where nothing counts but it and `bans`; few are looked at twice."""
        count = min(self._wanted(), logits.shape[-1])
        all_log_probs = logits.log_softmax(dim=-1)
        bans.apply(all_log_probs, self.sequences.shape[-1])
        log_probs, word = top_k(all_log_probs, count)
        scores = (self.scores[:, :, None] + log_probs.unflatten(0, self.scores.shape)).flatten(1)
        score, index = scores.topk(min(self._wanted(), scores.shape[1]))
        word = word.unflatten(0, self.scores.shape).flatten(1).gather(1, index)
        return self._grow(Continuations(score, index // count, word), None)

    def _grow(
        self, best: Continuations, all_scores: list[torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        grown = torch.cat([_rows(self.sequences, best.beam), best.word[:, :, None]], dim=-1)
        ends = self.stopping_criteria(grown.flatten(0, 1), all_scores).view(best.word.shape)
        ends = ends | (self.limits <= grown.shape[-1] - self.prompt_length)[:, None]
        self._collect(best, grown, ends)

        go_on = ends.long().argsort(dim=1, stable=True)[:, : self.num_beams]
        best = best.pick(go_on)
        self.scores = best.score.masked_fill(ends.gather(1, go_on), NOTHING)
        self.sequences = _rows(grown, go_on)
        self.steps.append(best)
        self.is_done = self.is_done | self._is_settled()
        self.num_done = int(self.is_done.sum())

        rows = best.beam + self.num_beams * torch.arange(len(best.beam), device=best.beam.device)[:, None]
        if self.drops_done and not self.is_over and self.num_done and 4 * self.num_done >= len(self.sentences):
            stay = (~self.is_done).nonzero()[:, 0]
            self._drop_done()
            return rows[stay].flatten(), stay
        return rows.flatten(), None

    def _best_continuations(self, scores: torch.Tensor) -> Continuations:
        """(batch, beams, vocabulary) log-probabilities → enough continuations for k that go on, whatever ends."""
        count = min(self._wanted(), scores[0].numel())
        # the n highest of log-probability + Gumbel noise are a sample without replacement (Kool et al. 2019)
        preference = scores - torch.empty_like(scores).exponential_().log() if self.config.do_sample else scores
        if self.phrases is None:
            index = preference.flatten(1).topk(count).indices
        else:
            words_left = self.limits - (self.sequences.shape[-1] + 1 - self.prompt_length)
            index = self.phrases.allocate(self.sequences[:, :, 1:], preference, words_left, count)
        vocabulary = scores.shape[-1]
        return Continuations(scores.flatten(1).gather(1, index), index // vocabulary, index % vocabulary)

    def _wanted(self) -> int:
        """So many continuations of a sentence that `num_beams` go on, whatever ends."""
        return self.num_beams * (1 + max(1, len(self.end_tokens)))

    def _collect(self, best: Continuations, grown: torch.Tensor, ends: torch.Tensor) -> None:
        """Take over as hypotheses those of the k best continuations that end."""
        score, beam, word = (field[:, : self.num_beams] for field in best)
        ended = ends[:, : self.num_beams] & ~self.is_done[:, None] & (score > NOTHING)
        if not ended.any():
            return
        score = score / length_penalty(grown.shape[-1] - self.prompt_length, self.config)
        met = 0 if self.phrases is None else self.phrases.count_met(grown[:, : self.num_beams, 1:])
        step = torch.full_like(word, len(self.steps))
        new = Hypotheses(score.masked_fill(~ended, NOTHING), met * ended, step.masked_fill(~ended, -1), beam, word)
        self.hypotheses = self.hypotheses.or_better(new)

    def _is_settled(self) -> torch.Tensor:
        """(batch,) whether what will be returned cannot be overtaken by any beam."""
        score, phrases_met = self.hypotheses.score, self.hypotheses.phrases_met
        likeliest = self.scores.amax(dim=1)
        if self.config.early_stopping is True or self.num_beams == 1:
            return (score > NOTHING).all(dim=1) | (likeliest == NOTHING)
        # the penalty is monotonic in the length, so a beam's quotient is best at one end of the lengths it may reach
        next_length = self.sequences.shape[-1] - self.prompt_length + 1
        reachable = torch.maximum(
            likeliest / length_penalty(next_length, self.config), likeliest / length_penalty(self.limits, self.config)
        )
        last = self.config.num_return_sequences - 1
        if self.has_heuristic:
            reachable, last = likeliest / length_penalty(next_length - 1, self.config), self.num_beams - 1
        settled = score[:, last] >= reachable
        if self.phrases is not None:
            settled &= (phrases_met[:, last] == self.phrases.count) | (likeliest == NOTHING)
        return settled

    def _drop_done(self) -> None:
        """Read the translations of the sentences that are done, and go on with the others alone."""
        self.translations.append(self._read_back(self.is_done))
        others = ~self.is_done
        for name in ("sequences", "scores", "limits", "is_done", "sentences"):
            setattr(self, name, getattr(self, name)[others])
        self.hypotheses = Hypotheses(*(field[others] for field in self.hypotheses))
        self.steps = [Continuations(*(field[others] for field in step)) for step in self.steps]
        self.num_done = 0

    def _read_back(self, chosen: torch.Tensor) -> Translations:
        """Follow the best hypotheses of the chosen sentences from their last word to their first."""
        n = self.config.num_return_sequences
        found = Hypotheses(*(field[chosen, :n] for field in self.hypotheses))
        longest = int(found.step.max()) + 1
        words = found.word.new_zeros(*found.word.shape, longest)
        beams = torch.full_like(words, -1)
        slot = found.beam
        for step in reversed(range(longest)):
            word, beam = self.steps[step].word[chosen].gather(1, slot), self.steps[step].beam[chosen].gather(1, slot)
            word = torch.where(found.step == step, found.word, word)
            beam = torch.where(found.step == step, found.beam, beam)
            begun = found.step >= step
            words[:, :, step] = word
            beams[:, :, step] = beam.masked_fill(~begun, -1)
            slot = torch.where(begun, beam, slot)
        return Translations(self.sentences[chosen], words, beams, found.score)

    def results(self, pad_token_id: int) -> dict[str, torch.Tensor]:
        """The `num_return_sequences` best hypotheses of every sentence, under transformers' names.

        Returns:
            `sequences`, (rows, length) ids, prompt included, padded on the right; `sequences_scores`, (rows,), -inf
            for a row that no hypothesis fills; `beam_indices`, (rows, words), of each word the row of the batch that
            it continued, padded with -1.
        """
        parts = [*self.translations, self._read_back(torch.ones_like(self.is_done))]
        longest = max(part.words.shape[-1] for part in parts)
        order = torch.cat([part.sentence for part in parts]).argsort()
        score = torch.cat([part.score for part in parts])[order]
        words, beams = (
            torch.cat([pad(field, (0, longest - field.shape[-1]), value=-1) for field in fields])[order]
            for fields in ([part.words for part in parts], [part.beams for part in parts])
        )
        rows = beams + self.num_beams * torch.arange(len(order), device=order.device)[:, None, None]
        padding = beams < 0
        prompt = self.prompt.expand(-1, words.shape[1], -1)
        sequences = torch.cat([prompt, words.masked_fill(padding, pad_token_id)], dim=-1)
        rows = rows.masked_fill(padding, -1)
        found = {"sequences": sequences, "sequences_scores": score, "beam_indices": rows}
        return {name: field.flatten(0, 1) for name, field in found.items()}


def top_k(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest of each row of (rows, n), with their places; of long rows it looks at blocks that hold one, only.

    A block that holds one of the k greatest is among the k whose greatest are greatest.
    """
    side = math.isqrt(x.shape[-1])
    if side <= 4 * k:
        return x.topk(k)
    blocks = x[:, : side * side].unflatten(1, (side, side))
    chosen = blocks.amax(dim=-1).topk(k).indices  # (rows, k) blocks
    inside = blocks.gather(1, chosen[:, :, None].expand(-1, -1, side)).flatten(1)
    rest = x[:, side * side :]
    greatest, index = torch.cat([inside, rest], dim=1).topk(k)
    place = chosen.gather(1, (index // side).clamp(max=k - 1)) * side + index % side
    return greatest, torch.where(index < k * side, place, index - k * side + side * side)


def length_penalty(length: int | torch.Tensor, generation_config: Any) -> float | torch.Tensor:
    """What the log-probability of `length` words is divided by, the end of the sentence being a word.

    With `gnmt_alpha` α it is ((5 + length) / 6)^α (Wu et al. 2016, equation 14), else length^`length_penalty`.
    """
    if generation_config.gnmt_alpha is not None:
        return ((5 + length) / 6) ** generation_config.gnmt_alpha
    return length**generation_config.length_penalty


def _rows(sequences: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(batch, n, length) sequences and (batch, m) indices → (batch, m, length)"""
    return sequences.gather(1, index[:, :, None].expand(-1, -1, sequences.shape[-1]))
