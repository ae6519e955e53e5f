"""Finds the places of a rendered conversation at which later prompts may diverge from it.

A model whose memory cannot be truncated continues a prompt only from a saved state. The engine saves a state
at each of these places, as far as its budget allows.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from app.chat.messages import Message
from app.chat.template.turns import as_unicode

Span = tuple[int, int]

# Maximum characters between a special token's text and the content of its turn, such as ``user\n``.
_MAX_HEADER = 40


def turn_ends(
    text: str, marks: Sequence[Span], messages: Sequence[Message], last_end: int | None
) -> tuple[list[int], int | None]:
    """Find the end of the system turn, the ends of user and tool turns, and the start of the last user turn.

    Places are ends of special tokens' texts: there, tokens do not depend on the following text. A content
    that the template changes is not found, and has no place.

    Args:
        text: The rendering.
        marks: Spans of special tokens' texts that come from the template, in order.
        messages: The conversation.
        last_end: End of the last content. None: unknown.

    Returns:
        The places, in order. And the begin of the first user turn's content, if no special token's text is
        near before it: the template writes the system's text into that turn.
    """
    begins, ends = [begin for begin, _ in marks], [end for _, end in marks]
    places: set[int] = set()
    found = list(_contents(text, messages))
    if last_end is not None and messages and messages[-1].role in ("user", "tool"):
        found.append((messages[-1].role, len(text), last_end))
    users = [begin for role, begin, _ in found if role == "user" and begin < len(text)]
    for role, _, end in found:
        if role in ("user", "tool"):
            after = bisect.bisect_left(begins, end)
            places.update(ends[after : after + 1])
    start = None
    for begin in {min(users), max(users)} if users else ():
        before = bisect.bisect_right(ends, begin) - 1
        if before >= 0 and begin - ends[before] <= _MAX_HEADER:
            places.add(ends[before])
        elif begin == min(users):
            start = begin
    return sorted(places), start


def _contents(text: str, messages: Sequence[Message]) -> list[tuple[str, int, int]]:
    """Role, begin and end of contents in the text, the last first. The search begins at the end: a short
    content may also occur in the list of tools."""
    found, limit = [], len(text)
    for message in reversed(messages):
        content = str(as_unicode(message.content.strip()))
        begin = text.rfind(content, 0, limit) if content else -1
        if begin >= 0:
            found.append((message.role, begin, begin + len(content)))
            limit = begin
    return found
