"""Fields, tools and items of a request that the server ignores."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger("tokenstream.api")

_MOST_WARNINGS = 1000  # the names are the clients'
_warned: set[tuple[str, str]] = set()


def ignore(route: str, fields: Iterable[str]) -> None:
    """Log at level debug that a route ignores fields of a request."""
    for name in sorted(fields):
        logger.debug("%s: the field %r is ignored", route, name[:64])


def warn_once(route: str, what: str) -> None:
    """Log that a route ignores something, once per process."""
    if (route, what) not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add((route, what))
        logger.warning("%s: %s is ignored", route, what)
