"""Past responses, for ``previous_response_id`` and for clients that retrieve them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.chat.messages import Message

LIFETIME = 3600.0  # seconds
MOST_CHARACTERS = 32 << 20  # of all responses


_VALUE = 100  # bytes of an object in memory, with its place in its container


def _size(value: object) -> int:
    """Approximate bytes of parsed JSON."""
    if isinstance(value, Mapping):
        return _VALUE + sum(len(key) + _VALUE + _size(inner) for key, inner in value.items())
    if isinstance(value, list):
        return _VALUE + sum(map(_size, value))
    return _VALUE + (len(value) if isinstance(value, str) else 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """A response.

    Attributes:
        body: Its JSON.
        conversation: Turns of its input, then its answer.
        key: Name of the key of API_KEYS that created it. Other keys have no access.
    """

    body: bytes
    conversation: tuple[Message, ...]
    key: str | None = None

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""
        turns = self.conversation
        size = 100 + len(self.body) + sum(len(m.content) + len(m.thoughts) + 100 for m in turns)
        return size + sum(len(c.arguments) + _size(c.by_name) for m in turns for c in m.tool_calls)


class ResponseStore:
    """Responses in memory, by id. The oldest are dropped at the limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, int, Stored]] = OrderedDict()
        self._n_characters = 0

    def add(self, id_: str, body: bytes, conversation: Sequence[Message], key: str | None = None) -> None:
        stored = Stored(body, tuple(conversation), key)
        size = stored.size
        if size > MOST_CHARACTERS:
            return
        self._entries[id_] = (self._clock() + LIFETIME, size, stored)
        self._n_characters += size
        self._drop_old()

    def get(self, id_: str, key: str | None = None) -> Stored | None:
        """A response. None: it is unknown, dropped, or of another key."""
        self._drop_old()
        entry = self._entries.get(id_)
        return entry[2] if entry and entry[2].key == key else None

    def drop(self, id_: str) -> None:
        """Drop a response."""
        _, size, _ = self._entries.pop(id_)
        self._n_characters -= size

    def _drop_old(self) -> None:
        now = self._clock()
        while self._entries:
            id_, (expires, _, _) = next(iter(self._entries.items()))
            if expires > now and self._n_characters <= MOST_CHARACTERS:
                return
            self.drop(id_)
