"""Speculative decoding by prompt lookup: drafts are copied from an earlier occurrence of the last tokens.

Answers that quote, correct or continue their prompt repeat long parts of it. A draft takes microseconds, and
one decode verifies it. Literature: Saxena, "Prompt Lookup Decoding" (2023); llama.cpp's ``examples/lookup``
and ``common/ngram-map.cpp``; vLLM's ``NgramProposer``.

On a CPU, a rejected token costs a fifth to a half of a decode of one sequence. Three rules limit that cost.
They were tuned on 36 answers of SmolLM2-135M (stories, letters, code, SQL, corrections, quotations):

- A match has at least three tokens. With two, half of the drafts were rejected completely.
- A draft is at most half as long as its match. With matches of eight tokens, one draft in twenty was rejected
  completely. The limit doubles after an accepted draft and halves after a rejected token.
- After a completely rejected draft, drafting pauses. Each pause is twice as long as the last.
"""

from __future__ import annotations

from itertools import cycle, islice

_NGRAM_LENGTHS = (4, 3)  # tokens; the longer match is preferred
_MIN_PAUSE, _MAX_PAUSE = 2, 64  # tokens


class PromptLookup:
    """Drafts the next tokens of a sequence from its prompt and output."""

    def __init__(self, max_draft: int = 16) -> None:
        """Start a sequence; ``max_draft``: maximum tokens per draft, at least 1."""
        if max_draft < 1:
            raise ValueError(f"max_draft={max_draft}: should be at least 1")
        self._max_draft = max_draft
        self._draft_length = 1
        self._pause = _MIN_PAUSE
        self._resume_at = 0  # length of the text at the end of the pause
        self._n_tokens = 0  # length of the text at the last proposal
        self._n_indexed = 0  # length of the indexed text
        # Position after the last occurrence of each n-gram.
        self._followers: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in _NGRAM_LENGTHS}

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        """Draft the next tokens.

        Args:
            tokens: Prompt and output; later calls may only append.
            limit: Maximum length of the draft.

        Returns:
            A draft; empty without a match or during a pause.
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
                    length //= 2  # ends at 1, because n > 2 tokens match
                return _continuation(tokens, follower, length)
        return []

    def report(self, n_proposed: int, n_accepted: int) -> None:
        """Adapt the draft length and the pause to the result of the last draft.

        Raises:
            ValueError: ``n_accepted`` is greater than ``n_proposed``.
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
            self._pause = _MIN_PAUSE
        else:
            # The verifying decode also yields one token: 1 more than the pause.
            self._resume_at = self._n_tokens + 1 + self._pause
            self._pause = min(_MAX_PAUSE, 2 * self._pause)

    def _index(self, tokens: list[int]) -> None:
        """Index the new n-grams, except the one at the end of the text, which would match itself."""
        for n, followers in self._followers.items():
            for position in range(max(n, self._n_indexed), len(tokens)):
                followers[tuple(tokens[position - n : position])] = position
        self._n_indexed = len(tokens)


def _continuation(tokens: list[int], begin: int, length: int) -> list[int]:
    """``length`` tokens from ``begin``, repeated from ``begin`` past the end of the text."""
    draft = tokens[begin : begin + length]
    return draft if len(draft) == length else list(islice(cycle(draft), length))
