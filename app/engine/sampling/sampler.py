"""The interface of samplers."""

from __future__ import annotations

from typing import Protocol

from app.engine.llama import Context


class Sampler(Protocol):
    """Chooses the tokens of one answer, one at a time."""

    @property
    def is_finished(self) -> bool:
        """Whether no token can follow."""

    def forced(self, limit: int, /) -> list[int]:
        """The next tokens, at most ``limit``, if they are determined."""

    def sample(self, context: Context, row: int) -> int:
        """Choose the next token from a row of the last decode's logits, which may be overwritten."""

    def close(self) -> None:
        """Free native memory."""
