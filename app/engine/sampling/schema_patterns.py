"""Regular expressions of JSON schemas."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?<?[=!]|\(|\)|.", re.DOTALL)
_QUANTIFIER = re.compile(r"[*+?]\??|\{\d+(?:,\d*)?\}\??")


def without_look_around(pattern: str) -> str | None:
    """An expression without look-ahead and look-behind. It matches at least the same texts.

    None: the parentheses do not match.
    """
    kept: list[str] = []
    depth = 0
    ends_at: int | None = None  # depth of the look-around that is left out
    at = 0
    while at < len(pattern):
        match = _TOKEN.match(pattern, at)
        assert match is not None
        token, at = match[0], match.end()
        if token.startswith("(") and token != "(" and ends_at is None:
            ends_at = depth
        if token.startswith("("):
            depth += 1
        if ends_at is None:
            kept.append(token)
        if token == ")":
            depth -= 1
            if depth == ends_at:
                ends_at = None
                quantifier = _QUANTIFIER.match(pattern, at)
                at = quantifier.end() if quantifier else at
        if depth < 0:
            return None
    return "".join(kept) if depth == 0 else None
