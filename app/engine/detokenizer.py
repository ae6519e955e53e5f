"""Token ids to text that never ends inside a character or a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from app.engine.llama import Vocab


class Detokenizer:
    """The text of one answer, as far as it is certain.

    Bytes that are no part of a character, which a model may draw at high temperatures, are left out. Held
    back are bytes that do not end a character yet (an emoji or a CJK character may take several
    tokens) and an end of the text that may be the beginning of a stop string.
    """

    def __init__(
        self,
        vocab: Vocab,
        stop: Sequence[str] = (),
        *,
        keeps_stop: bool = False,
        visible: Collection[int] = frozenset(),
    ) -> None:
        """Begin an answer.

        Args:
            vocab: The vocabulary.
            stop: Texts before which the answer ends.
            keeps_stop: Whether it ends behind them instead; nothing is then held back for their sake.
            visible: Control tokens that are part of the text, such as those that mark a tool call.
        """
        self._vocab = vocab
        self._keeps_stop = keeps_stop
        self._visible = visible
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""  # the end that may be the beginning of a stop string
        self._n_said = 0  # how much of it was handed out
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Take the next token; return the text that has become certain. After a stop string: nothing."""
        if self.stopped_by is not None:
            return ""
        piece = self._vocab.text(token).encode() if token in self._visible else self._vocab.piece(token)
        text = self._held + self._decoder.decode(piece)
        if not self._stop:
            return text
        n_said = self._n_said
        found = [(at, -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            self._held, self._n_said = "", 0
            return text[n_said : at + len(self.stopped_by)] if self._keeps_stop else text[:at]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        if self._keeps_stop:
            self._n_said = keep
            return text[n_said:]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back for a stop string that did not come; half a character is dropped."""
        text, self._held, self._n_said = self._held[self._n_said :], "", 0
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with but does not end with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
