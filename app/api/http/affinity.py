"""Keys of prefixes. With a consistent hash of it, a load balancer sends a prefix to one server."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence

from starlette.datastructures import Headers

HEADER = "X-Prefix-Key"

# Tokens that a key depends on: enough to tell contexts apart, and few enough that most requests have as many.
N_TOKENS = 64

_ACCEPTED = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")


def prefix_key(headers: Headers, prompt: Sequence[int]) -> str:
    """The key of an answer.

    Args:
        headers: Of the request. A valid key in them is returned, so a conversation keeps its first key.
        prompt: Token ids.
    """
    sent = headers.get(HEADER, "")
    if _ACCEPTED.fullmatch(sent):
        return sent
    return hashlib.blake2b(array("i", prompt[:N_TOKENS]).tobytes(), digest_size=8).hexdigest()
