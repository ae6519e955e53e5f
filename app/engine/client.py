"""The clients between which the scheduler is fair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """The origin of a request. Clients with equal names are one client.

    Attributes:
        name: Name of a key, or an address.
        priority: Clients with a higher priority are scheduled first.
        max_running: Maximum sequences with a slot. None: all slots.
        max_waiting: Maximum sequences in the queue. None: as many as the queue holds.
    """

    name: str
    priority: int = 0
    max_running: int | None = None
    max_waiting: int | None = None


LOCAL = Client("local")
"""The process itself: contexts prefilled at start, and the command line."""
