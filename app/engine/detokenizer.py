"""Token ids to text that never ends inside a character or a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from app.engine.llama import Vocab


class Detokenizer:
    """The text of one answer, as far as it is certain.

    Bytes that are no part of a character, which a model may draw at high temperatures, are left out. Held
    back are bytes that do not end a character yet (an emoji or a CJK character may take several
    tokens) and an end of the text that may be the beginning of a stop string.
    """

    def __init__(self, vocab: Vocab, stop: Sequence[str] = ()) -> None:
        self._vocab = vocab
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Take the next token; return the text that has become certain. After a stop string: nothing."""
        if self.stopped_by is not None:
            return ""
        text = self._held + self._decoder.decode(self._vocab.piece(token))
        if not self._stop:
            return text
        found = [(at, -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back for a stop string that did not come; half a character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with but does not end with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
