"""Conversations of past responses, for ``previous_response_id``."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from app.chat.messages import Message

LIFETIME = 3600.0  # seconds
MOST_CHARACTERS = 32 << 20  # of all conversations


_VALUE = 100  # bytes of an object in memory, with its place in its container


def _size(value: object) -> int:
    """Approximate bytes of parsed JSON."""
    if isinstance(value, Mapping):
        return _VALUE + sum(len(key) + _VALUE + _size(inner) for key, inner in value.items())
    if isinstance(value, list):
        return _VALUE + sum(map(_size, value))
    return _VALUE + (len(value) if isinstance(value, str) else 0)


class ResponseStore:
    """Conversations in memory, by response id. The oldest are dropped at the limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, int, tuple[Message, ...]]] = OrderedDict()
        self._n_characters = 0

    def add(self, id_: str, conversation: Sequence[Message]) -> None:
        size = 100 + sum(len(m.content) + len(m.thoughts) + 100 for m in conversation)
        size += sum(len(c.arguments) + _size(c.by_name) for m in conversation for c in m.tool_calls)
        if size > MOST_CHARACTERS:
            return
        self._entries[id_] = (self._clock() + LIFETIME, size, tuple(conversation))
        self._n_characters += size
        self._drop_old()

    def get(self, id_: str) -> tuple[Message, ...] | None:
        """The turns up to a response and its answer. None: unknown or dropped."""
        self._drop_old()
        entry = self._entries.get(id_)
        return entry[2] if entry else None

    def _drop_old(self) -> None:
        now = self._clock()
        while self._entries:
            expires, size, _ = next(iter(self._entries.values()))
            if expires > now and self._n_characters <= MOST_CHARACTERS:
                return
            self._entries.popitem(last=False)
            self._n_characters -= size
