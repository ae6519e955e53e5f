"""The interface of samplers."""

from __future__ import annotations

from typing import Protocol

from app.engine.llama import Logits


class Sampler(Protocol):
    """Chooses the tokens of one answer, one at a time."""

    @property
    def is_finished(self) -> bool:
        """Whether no token can follow."""

    def forced(self, limit: int, /) -> list[int]:
        """The next tokens, at most ``limit``, if they are determined."""

    def sample(self, logits: Logits, /) -> int:
        """Choose the next token. The logits may be overwritten.

        Raises:
            GrammarError: The grammar's tokens cannot be computed.
            NoTokenError: No logit is finite.
        """

    def close(self) -> None:
        """Free native memory."""
