"""Questions about one prompt, each answered with the log-probabilities of its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import top_tokens
from app.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Question:
    """Tokens that continue a prompt, and the options that may follow them.

    Attributes:
        tokens: At least one.
        options: Each has at least one token. A label is an option of one token.
    """

    tokens: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Branch:
    """Tokens after the prompt that one pass computes.

    Attributes:
        question: Index of the question.
        tokens: Those of the question, then the first tokens of options.
        n_silent: Number of first tokens whose logits are not needed.
    """

    question: int
    tokens: tuple[int, ...]
    n_silent: int


def _branches(index: int, question: Question) -> Iterator[_Branch]:
    """The branches of a question: one if each option has one token.

    The logits after a prefix of options score the next token of all options with that prefix. So the last
    token of an option is never computed, and common prefixes are computed once.
    """
    prefixes = sorted({option[:-1] for option in question.options})
    before: tuple[int, ...] | None = None
    for prefix, following in zip(prefixes, [*prefixes[1:], None], strict=True):
        if following is not None and following[: len(prefix)] == prefix:
            continue  # the next branch contains it
        n_known = -1 if before is None else n_shared_tokens(prefix, before)
        yield _Branch(index, question.tokens + prefix, len(question.tokens) + n_known)
        before = prefix


@dataclass(slots=True, eq=False)
class ScoringSequence(Sequence):
    """A prompt and questions about it. The prompt is computed once, and the questions one after another.

    ``tokens`` holds the prompt and one branch. Before the next branch, KV memory is truncated to the tokens
    that both share.

    Attributes:
        questions: At least one.
        logprobs: Log-probability of each option of each question: the sum over its tokens.
    """

    questions: tuple[Question, ...]
    logprobs: list[list[float]] = field(init=False)
    _later: list[_Branch] = field(init=False)  # the next one is last
    _branch: _Branch = field(init=False)
    _n_later: int = field(init=False)
    _next_row: int = field(init=False)  # index in ``tokens`` of the next token whose logits are needed

    def __post_init__(self) -> None:
        self.logprobs = [[0.0] * len(question.options) for question in self.questions]
        branches = [b for i, question in enumerate(self.questions) for b in _branches(i, question)]
        self._later = branches[::-1]
        self._n_later = sum(len(branch.tokens) for branch in branches)
        self._begin(self._later.pop())
        if self._later:
            self.fork_at = len(self.prompt)

    @property
    def n_later(self) -> int:
        return self._n_later

    @property
    def n_silent(self) -> int:
        return max(self._next_row - self.n_computed, 0)

    def read(self, rows: NDArray[np.float32]) -> None:
        """Add log-probabilities from the next rows of logits."""
        branch = self._branch
        question, sums = self.questions[branch.question], self.logprobs[branch.question]
        n_question = len(question.tokens)
        for depth, logits in enumerate(rows, self._next_row + 1 - len(self.prompt) - n_question):
            log_sum, _ = top_tokens(logits, 0)
            prefix = branch.tokens[n_question : n_question + depth]
            for index, option in enumerate(question.options):
                if len(option) > depth and option[:depth] == prefix:
                    sums[index] += float(logits[option[depth]]) - log_sum
        self._next_row += len(rows)

    def advance(self) -> int | None:
        """Begin the next branch.

        Returns:
            The number of computed tokens that it shares. None: all options are scored.
        """
        if not self._later:
            return None
        before = self._branch
        self._begin(self._later.pop())
        n_shared = n_shared_tokens(before.tokens, self._branch.tokens)
        return len(self.prompt) + min(n_shared, self._branch.n_silent)

    def _begin(self, branch: _Branch) -> None:
        self._branch = branch
        self._n_later -= len(branch.tokens)
        self._next_row = len(self.prompt) + branch.n_silent
        self.tokens = [*self.prompt, *branch.tokens]
