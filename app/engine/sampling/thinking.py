"""Samples thoughts before an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.engine.llama import Logits
from app.engine.sampling.grammar import Grammar
from app.engine.sampling.sampler import Sampler
from app.engine.thoughts import ThoughtReader


class ThinkingSampler:
    """Leaves thoughts unconstrained, ends them at their budget, and applies a grammar to the answer."""

    def __init__(
        self, sampler: Sampler, grammar: Grammar | None, thoughts: ThoughtReader, begin: Sequence[int]
    ) -> None:
        """``begin``: tokens before a thought."""
        self._sampler = sampler
        self._grammar = grammar
        self._matcher = grammar.matcher() if grammar else None
        self._thoughts = thoughts
        self._begin = begin
        self._n_begun = 0  # sampled tokens of ``begin``
        self._may_answer = True  # the sampled tokens fit the grammar

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete, so that no end token is needed."""
        return self._matcher is not None and self._thoughts.is_over and self._matcher.is_finished

    def forced(self, limit: int) -> list[int]:
        if self._thoughts.forced:
            return list(self._thoughts.forced[:limit])
        return self._matcher.forced(limit) if self._matcher and self._thoughts.is_over else []

    def sample(self, logits: Logits, /) -> int:
        """Choose a token.

        Raises:
            GrammarError: The allowed tokens cannot be computed.
        """
        if self._thoughts.forced:
            logits[:] = -np.inf
            logits[self._thoughts.forced[0]] = 0
            return self._sampler.sample(logits)
        if self._matcher is None:
            return self._sampler.sample(logits)
        if self._thoughts.is_thinking:  # the answer must follow
            return self._thoughts.instead_of(self._sampler.sample(logits))
        if not self._thoughts.is_over:
            return self._sample_opening(logits)
        self._matcher.mask(logits)
        token = self._sampler.sample(logits)
        self._matcher.accept(token)
        return token

    def _sample_opening(self, logits: Logits) -> int:
        """Choose a token that begins a thought or the answer."""
        assert self._matcher is not None
        assert self._grammar is not None
        begin = self._begin[self._n_begun]
        value = logits[begin]
        if self._may_answer:
            self._matcher.mask(logits)
        else:
            logits[:] = -np.inf
        is_allowed = bool(np.isfinite(logits[begin]))
        logits[begin] = value
        token = self._sampler.sample(logits)
        if token != begin:
            self._matcher.accept(token)
            self._thoughts.begin_answer()
            return token
        self._n_begun += 1
        if self._n_begun == len(self._begin):
            self._matcher = self._grammar.matcher()
        elif is_allowed:
            self._matcher.accept(token)
        else:
            self._may_answer = False
        return token

    def close(self) -> None:
        self._sampler.close()
