"""Speculation by prompt lookup: what followed the last tokens earlier may follow them again.

Answers that quote, correct or go on with their prompt repeat long pieces of it. A draft copied from there
costs microseconds, and the model verifies all of it in one decode. Literature: Saxena, "Prompt Lookup
Decoding" (2023); llama.cpp's ``examples/lookup`` and ``common/ngram-map.cpp``; vLLM's ``NgramProposer``.

A token that is verified in vain is not free on a CPU: in a batch of one sequence each costs a fifth to a
half of a decode. Three rules keep drafts where they pay; they were chosen by what such prices leave of 36
answers of SmolLM2-135M (stories, letters, code, SQL, corrections, quotations):

- A match of three tokens at least: of two, every second draft was wrong from its first token.
- A draft is at most half as long as the match behind it: after eight tokens one draft in twenty was wrong
  from its first token. It doubles while drafts are right to the end and halves when they are not.
- After a draft that was wrong from its first token the sequence rests, each time twice as long.
"""

from __future__ import annotations

from itertools import cycle, islice

_NGRAM_LENGTHS = (4, 3)  # tokens, longest first: of two earlier places the one more alike is the better
_SHORTEST_REST, _LONGEST_REST = 2, 64  # tokens


class PromptLookup:
    """Proposes the next tokens of one sequence from its own prompt and output."""

    def __init__(self, max_draft: int = 16) -> None:
        """Begin a sequence.

        Args:
            max_draft: The longest draft, in tokens; at least 1.
        """
        if max_draft < 1:
            raise ValueError(f"max_draft={max_draft}: should be at least 1")
        self._max_draft = max_draft
        self._draft_length = 1
        self._rest = _SHORTEST_REST
        self._resume_at = 0  # length of the text at which the rest is over
        self._n_tokens = 0  # length of the text at the last proposal
        self._n_indexed = 0  # length of the text when it was last indexed
        # Where an n-gram was last followed by something: n-gram → position of what followed.
        self._followers: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in _NGRAM_LENGTHS}

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        """Draft the tokens that may come next.

        Args:
            tokens: Prompt and output so far; from call to call it may only grow at its end.
            limit: The most tokens that are of use.

        Returns:
            At most ``limit`` tokens; none if the end of the text is new or the sequence rests.
        """
        self._n_tokens = len(tokens)
        if self._n_tokens < self._resume_at or limit <= 0:
            return []
        self._index(tokens)
        for n, followers in self._followers.items():
            follower = followers.get(tuple(tokens[-n:]))
            if follower is not None:
                length = min(limit, self._draft_length)
                while tokens[max(0, follower - 2 * length) : follower] != tokens[-2 * length :]:
                    length //= 2  # ends at 1: the n tokens are the same
                return _continuation(tokens, follower, length)
        return []

    def report(self, n_proposed: int, n_accepted: int) -> None:
        """Learn how the last draft fared: how many of the tokens verified were right.

        Raises:
            ValueError: More tokens were accepted than proposed.
        """
        if not 0 <= n_accepted <= n_proposed:
            raise ValueError(f"n_accepted={n_accepted}: should be 0 to n_proposed={n_proposed}")
        if n_proposed == 0:
            return
        if n_accepted == n_proposed:
            self._draft_length = min(self._max_draft, max(self._draft_length, 2 * n_proposed))
        else:
            self._draft_length = max(1, self._draft_length // 2)
        if n_accepted > 0:
            self._rest = _SHORTEST_REST
        else:
            # Verifying gave the one token that was right instead of the draft's first.
            self._resume_at = self._n_tokens + 1 + self._rest
            self._rest = min(_LONGEST_REST, 2 * self._rest)

    def _index(self, tokens: list[int]) -> None:
        """Enter the n-grams that have been followed by a token since the last time.

        The n-gram at the very end of the text is not among them, so it does not find itself.
        """
        for n, followers in self._followers.items():
            for position in range(max(n, self._n_indexed), len(tokens)):
                followers[tuple(tokens[position - n : position])] = position
        self._n_indexed = len(tokens)


def _continuation(tokens: list[int], begin: int, length: int) -> list[int]:
    """The ``length`` tokens from ``begin`` on; past the end of the text they repeat themselves."""
    draft = tokens[begin : begin + length]
    return draft if len(draft) == length else list(islice(cycle(draft), length))
