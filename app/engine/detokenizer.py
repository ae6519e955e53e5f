"""Incremental detokenization that never splits a character or a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from app.engine.llama import Vocab


class Detokenizer:
    """The text of one answer.

    Incomplete UTF-8 characters are held back: an emoji or a CJK character may take several tokens. So is a
    possible beginning of a stop string at the end. Invalid bytes, as at high temperatures, are dropped.
    """

    def __init__(
        self,
        vocab: Vocab,
        stop: Sequence[str] = (),
        *,
        keeps_stop: bool = False,
        visible: Collection[int] = frozenset(),
    ) -> None:
        """Start an answer.

        Args:
            vocab: The vocabulary.
            stop: Stop strings. The answer ends before the first one.
            keeps_stop: The answer includes the stop string. No text is then held back for it.
            visible: Control tokens whose text is part of the answer, such as markers of tool calls.
        """
        self._vocab = vocab
        self._keeps_stop = keeps_stop
        self._visible = visible
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""  # possible beginning of a stop string
        self._n_returned = 0  # characters of it already returned
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Add a token. Returns the new final text; empty after a stop string."""
        piece = self._vocab.text(token).encode() if token in self._visible else self._vocab.piece(token)
        return self.add(self._decoder.decode(piece))

    def add(self, text: str) -> str:
        """Add text. Returns the new final text; empty after a stop string."""
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        if not self._stop:
            return text
        n_returned = self._n_returned
        found = [(at, -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            self._held, self._n_returned = "", 0
            return text[n_returned : at + len(self.stopped_by)] if self._keeps_stop else text[:at]
        keep = max(overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        if self._keeps_stop:
            self._n_returned = keep
            return text[n_returned:]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text that was held back for a stop string. An incomplete character is dropped."""
        text, self._held, self._n_returned = self._held[self._n_returned :], "", 0
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
