"""Chooses servers by prefix: requests with a common beginning go to the server that has it in its cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from starlette.datastructures import Headers

from app.api.http.affinity import HEADER

Name = TypeVar("Name")

# Characters of a request that its key depends on. System prompts and documents worth a cache are longer.
N_CHARACTERS = 512

# Fields with the beginning of a prompt, in the order of the rendered prompt: of all dialects.
_FIELDS = (
    "context",
    "tools",
    "system",
    "instructions",
    "state",
    "messages",
    "input",
    "query",
    "inputs",
    "prompt",
)


def routing_key(headers: Headers, body: bytes) -> str:
    """The key of a request.

    Args:
        headers: A X-Prefix-Key in them is the key.
        body: JSON. Bodies without a prompt share a key.
    """
    sent = headers.get(HEADER)
    return sent if sent is not None else hashlib.blake2b(_beginning(body).encode(), digest_size=8).hexdigest()


def _beginning(body: bytes) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    return "\n".join(_text(fields[name]) for name in _FIELDS if name in fields)[:N_CHARACTERS]


def _text(value: Any) -> str:
    """The texts of a field. A turn's text is the same as a string and as a list of parts."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return "\n".join(_text(value[key]) for key in sorted(value) if key not in ("role", "type"))
    return str(value)


def by_preference(key: str, names: Sequence[Name]) -> list[Name]:
    """Order names by rendezvous hashing.

    When names come or go, the first name changes only for the keys of those names.
    Source: Thaler and Ravishankar, 1998, "Using name-based mappings to increase hit rates".
    """

    def weight(name: Name) -> bytes:
        return hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()

    return sorted(names, key=weight, reverse=True)


def chosen(preferred: Sequence[Name], running: Mapping[Name, int], slack: int) -> Name:
    """The first name, unless it has more than ``slack`` requests above the least loaded one.

    Args:
        preferred: Names in order of preference.
        running: Requests of each name; missing: 0.
        slack: Requests that a warm prefix is worth.
    """
    least = min(preferred, key=lambda name: running.get(name, 0))
    is_overloaded = running.get(preferred[0], 0) - running.get(least, 0) > slack
    return least if is_overloaded else preferred[0]
