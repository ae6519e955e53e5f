"""Shares of clients: deficit round robin over tokens (Shreedhar and Varghese 1995)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from app.engine.client import Client
from app.engine.sequence import Sequence

# Tokens of a client per round. Within a round the order of the scheduler applies.
_QUANTUM = 512


class Shares:
    """Counts the computed tokens of each client with unfinished sequences."""

    def __init__(self) -> None:
        self._n_tokens: dict[str, int] = {}
        self._n_sequences: Counter[str] = Counter()

    def add(self, client: Client) -> None:
        """Note a new sequence. A new client begins in the current round."""
        if not self._n_sequences[client.name]:
            self._n_tokens[client.name] = min(self._n_tokens.values(), default=0)
        self._n_sequences[client.name] += 1

    def remove(self, client: Client) -> None:
        """Note the end of a sequence."""
        self._n_sequences[client.name] -= 1
        if not self._n_sequences[client.name]:
            del self._n_sequences[client.name], self._n_tokens[client.name]

    def charge(self, client: Client, n_tokens: int) -> None:
        self._n_tokens[client.name] += n_tokens

    def turn(self, client: Client) -> tuple[int, int]:
        """Sort key of a client: its priority, then its number of rounds."""
        return -client.priority, self._n_tokens[client.name] // _QUANTUM


def victim(client: Client, running: Iterable[Sequence]) -> Sequence | None:
    """The running sequence that should leave its slot to a client; None if the client must wait.

    A client takes a slot from a lower priority, and from a client that still has as many slots afterwards.
    The newest sequence of the client with the most slots leaves.
    """
    running = [s for s in running if s.can_be_suspended]
    n_slots = Counter(s.client.name for s in running)
    candidates = [
        s
        for s in running
        if s.client.priority < client.priority
        or (s.client.priority == client.priority and n_slots[s.client.name] > n_slots[client.name] + 1)
    ]
    return max(
        candidates, key=lambda s: (-s.client.priority, n_slots[s.client.name], s.submitted_at), default=None
    )
