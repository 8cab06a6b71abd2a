"""Phrases that a translation must contain: beam search with dynamic beam allocation (Post and Vilar 2018).

A beginning of a translation belongs to bank c when it has met c tokens of its sentence's phrases. The banks take turns
in filling the beam, the fullest bank first and each with its best, so that beginnings that have met much are not
crowded out by likelier ones that have met little. To go on with a phrase is always among the continuations to choose
from, so the fullest bank there is grows by a token every step, until all phrases are met.
"""

import torch
from torch.nn.functional import pad

NO_TOKEN = -1


class RequiredPhrases:
    """The phrases of every sentence, and how much of them a translation has met.

    A phrase is met where its tokens stand one after another; two phrases may share tokens, and one that is asked for
    twice is met once. Nothing is carried from step to step: all is read off the words.

    Args:
        phrases: for every sentence a list of phrases, each a list of token ids; at least one phrase in the batch.
    """

    def __init__(self, phrases: list[list[list[int]]], device: torch.device | str = "cpu"):
        most = max(len(sentence) for sentence in phrases)
        longest = max(len(phrase) for sentence in phrases for phrase in sentence)
        tokens = torch.full((len(phrases), most, longest), NO_TOKEN)
        for i, sentence in enumerate(phrases):
            for j, phrase in enumerate(sentence):
                tokens[i, j, : len(phrase)] = torch.tensor(phrase)
        self.tokens = tokens.to(device)  # (batch, phrases, longest)
        self.lengths = (self.tokens != NO_TOKEN).sum(dim=-1)  # (batch, phrases), 0 where a sentence has fewer phrases
        self.count = (self.lengths > 0).sum(dim=-1)  # (batch,)

    def allocate(
        self, sequences: torch.Tensor, preference: torch.Tensor, words_left: torch.Tensor, count: int
    ) -> torch.Tensor:
        """Choose continuations, the banks taking turns; those that have too few words left to meet all come last.

        Args:
            sequences: (batch, beams, length) words so far.
            preference: (batch, beams, vocabulary), what to rank the continuations of a sentence by; -inf for never.
            words_left: (batch,), how many words a translation may have after this one.

        Returns:
            (batch, count) indices into beams · vocabulary, best first. For a sentence without phrases, which has one
            bank only, the `count` continuations of the highest preference.
        """
        beams, vocabulary = preference.shape[1:]
        first_index = torch.arange(beams, device=preference.device)[:, None] * vocabulary
        likeliest = preference.argmax(dim=-1, keepdim=True)  # of every beam
        next_tokens = self.next_tokens(sequences)
        next_tokens = torch.where(next_tokens == NO_TOKEN, likeliest, next_tokens)
        ranked = preference.flatten(1)
        index = torch.cat(
            [ranked.topk(count).indices, *((tokens + first_index).flatten(1) for tokens in (likeliest, next_tokens))],
            dim=1,
        )
        repeated = (index[:, :, None] == index[:, None, :]).tril(-1).any(dim=-1)
        value = ranked.gather(1, index).masked_fill(repeated, -torch.inf)
        value, order = value.sort(dim=1, descending=True, stable=True)
        index = index.gather(1, order)

        origin = (index // vocabulary)[:, :, None].expand(-1, -1, sequences.shape[-1])
        grown = torch.cat([sequences.gather(1, origin), (index % vocabulary)[:, :, None]], dim=-1)
        tokens_met = self.tokens_met(grown)
        turn = turns(tokens_met)
        too_late = self.lengths.sum(dim=-1)[:, None] - tokens_met > words_left[:, None]
        turn = torch.where(too_late, turn + turn.amax() + 1, turn)
        turn = turn.masked_fill(value == -torch.inf, torch.iinfo(torch.long).max)
        return index.gather(1, turn.argsort(dim=1, stable=True)[:, :count])

    def hold_back(self, words: torch.Tensor, log_probs: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, beams, vocabulary) log-probabilities, with -inf for `words` where phrases are still to be met."""
        waiting = ~self.met(sequences).all(dim=-1)
        held = torch.zeros(log_probs.shape[-1], dtype=torch.bool, device=log_probs.device).index_fill(0, words, True)
        return log_probs.masked_fill(waiting[:, :, None] & held, -torch.inf)

    def met(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, n, length) words → (batch, n, phrases) bool: the phrases that stand in them; True for no phrase."""
        longest = self.tokens.shape[-1]
        windows = pad(sequences, (0, longest), value=NO_TOKEN).unfold(-1, longest, 1)
        wanted = self.tokens[:, None, :, None]
        return ((windows[:, :, None] == wanted) | (wanted == NO_TOKEN)).all(dim=-1).any(dim=-1)

    def count_met(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, n, length) words → (batch, n): how many of the phrases stand in them."""
        return (self.met(sequences) & (self.lengths > 0)[:, None]).sum(dim=-1)

    def progress(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, n, length) words → (batch, n, phrases): how many tokens of each phrase's beginning stand at the end.

        The longest such beginning counts: after 5 5 5 the phrase 5 5 6 waits for its 6.
        """
        progress = self.tokens.new_zeros(*sequences.shape[:2], self.tokens.shape[1])
        for n in range(1, min(self.tokens.shape[-1], sequences.shape[-1] + 1)):
            stands = (sequences[:, :, None, -n:] == self.tokens[:, None, :, :n]).all(dim=-1)
            progress = progress.masked_fill(stands & (n < self.lengths[:, None]), n)
        return progress

    def next_tokens(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, n, length) words → (batch, n, phrases): the token that goes on with each phrase, -1 for one met."""
        tokens = self.tokens[:, None].expand(-1, sequences.shape[1], -1, -1)
        following = tokens.gather(-1, self.progress(sequences)[..., None]).squeeze(-1)
        return following.masked_fill(self.met(sequences), NO_TOKEN)

    def tokens_met(self, sequences: torch.Tensor) -> torch.Tensor:
        """(batch, n, length) words → (batch, n): tokens of the phrases met, and of the one most advanced.

        One, not all that are under way: words that go on with it make this grow whatever becomes of the others.
        """
        met = self.met(sequences)
        under_way = self.progress(sequences).masked_fill(met, 0).amax(dim=-1)
        return (met * self.lengths[:, None]).sum(dim=-1) + under_way


def turns(banks: torch.Tensor) -> torch.Tensor:
    """(batch, n) banks, of continuations in order of preference → (batch, n) whose turn it is, the lowest first.

    Every bank's best comes before any bank's second best; among equals the fullest bank is first.
    """
    place_in_bank = (banks[:, :, None] == banks[:, None, :]).tril(-1).sum(dim=-1)
    fullest = banks.amax(dim=1, keepdim=True)
    return place_in_bank * (fullest + 1) + fullest - banks
