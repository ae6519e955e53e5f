"""Streaming parser for tool calls in answers constrained by :func:`app.chat.tools.tool_grammar`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.chat.messages import Tool
from app.chat.tools.format import ToolFormat

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
# Results of _end_of besides a position.
_INCOMPLETE, _DIFFERENT = -1, -2


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Start of a call.

    Attributes:
        index: Index of the call in the answer, from 0.
        id: Unique id of the call.
        name: Name of the function.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More JSON text of a call's arguments."""

    index: int
    text: str


Delta = ContentDelta | CallDelta | ArgumentsDelta


class ToolCallParser:
    """Splits one streamed answer into text and tool calls.

    The grammar guarantees the format of calls and validates their arguments, so arguments are emitted as
    they arrive. White space between JSON tokens is ignored. Text that only resembles a call stays text.
    """

    def __init__(self, format_: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format_
        self._marker = format_.marker
        self._names = frozenset(tool.name for tool in tools)
        first = format_.begin[len(self._marker) :] + format_.head
        # Without a marker the grammar accepts both.
        typed = [] if self._marker else [first.replace("{", '{"type": "function", ', 1)]
        self._first_openings = self._openings = [first, *typed]
        self._step: Callable[[], bool] = self._read_text if self._marker else self._read_opening
        self._pending = ""  # received, not yet classified
        self._is_finished = False
        self._deltas: list[Delta] = []
        self._n_calls = 0
        self._opening_at = 0  # end of the marker in _pending
        self._call = _Brackets()

    def feed(self, text: str) -> list[Delta]:
        """Parse a piece of the answer.

        Returns:
            Deltas that later text cannot change, without empty texts.
        """
        self._pending += text
        return self._read()

    def finish(self) -> list[Delta]:
        """End the answer.

        Returns:
            Deltas for the text that was held back.
        """
        self._is_finished = True
        return self._read()

    def _read(self) -> list[Delta]:
        while self._pending and self._step():
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    # --- steps: each consumes pending text, or returns False to wait for more

    def _read_text(self) -> bool:
        if not self._marker:
            self._write(len(self._pending))
            return False
        # White space before a call belongs to the format.
        at = self._pending.find(self._marker)
        if at >= 0:
            n_text = len(self._pending[:at].rstrip())
            self._write(n_text)
            self._opening_at = at - n_text + len(self._marker)
            self._openings = self._first_openings
            self._step = self._read_opening
            return True
        if self._is_finished:
            self._write(len(self._pending))
        else:
            n_begun = _overlap(self._pending, self._marker)
            self._write(len(self._pending[: len(self._pending) - n_begun].rstrip()))
        return False

    def _read_opening(self) -> bool:
        """Read a call up to the first brace of its arguments."""
        ends = [_end_of(opening, self._pending, self._opening_at) for opening in self._openings]
        name_at = max(ends)
        if name_at >= 0:
            match = _NAME.match(self._pending, name_at)
            name = match[0] if match else ""
            name_end = name_at + len(name)
            end = _end_of(self._format.middle + "{", self._pending, name_end, in_string=True)
            if end >= 0 and name in self._names:
                self._begin_call(name, end - 1)
                return True
            is_begun = end == _INCOMPLETE
        else:
            is_begun = name_at == _INCOMPLETE
        if is_begun and not self._is_finished:
            return False
        self._write(len(self._pending) if is_begun else self._opening_at)
        self._step = self._read_text
        return True

    def _begin_call(self, name: str, arguments_at: int) -> None:
        self._deltas.append(CallDelta(self._n_calls, f"call_{secrets.token_hex(12)}", name))
        self._n_calls += 1
        self._pending, self._opening_at = self._pending[arguments_at:], 0
        self._call = _Brackets()
        self._step = self._read_arguments

    def _read_arguments(self) -> bool:
        end = self._call.end(self._pending)
        at = len(self._pending) if end is None else end
        self._deltas.append(ArgumentsDelta(self._n_calls - 1, self._pending[:at]))
        self._pending = self._pending[at:]
        if end is not None:
            self._call = _Brackets(depth=1)
            self._step = self._read_tail
        return end is not None

    def _read_tail(self) -> bool:
        """Skip the remaining keys of the call's object, such as its id."""
        end = self._call.end(self._pending)
        self._pending = "" if end is None else self._pending[end:]
        if end is not None:
            self._step = self._read_closing
        return end is not None

    def _read_closing(self) -> bool:
        """Read the separator before another call, or the end of all calls."""
        separator, end = self._format.separator, self._format.end
        separator_end = _DIFFERENT if separator is None else _end_of(separator + "{", self._pending, 0)
        if separator_end >= 0:
            self._openings = [f"{separator}{self._format.head}"]
            self._step = self._read_opening
            return True
        end_at = _end_of(end, self._pending, 0)
        if _INCOMPLETE in (separator_end, end_at):
            if self._is_finished:  # an incomplete separator or end is not shown as text
                self._pending = ""
            return False
        self._pending = self._pending[max(end_at, 0) :]
        self._step = self._read_text
        return True

    def _write(self, end: int) -> None:
        """Emit pending text up to ``end`` as content."""
        if end:
            self._deltas.append(ContentDelta(self._pending[:end]))
            self._pending = self._pending[end:]
        self._opening_at = 0


@dataclass(slots=True)
class _Brackets:
    """Bracket depth of JSON text that arrives in pieces."""

    depth: int = 0
    _in_string: bool = False
    _is_escaped: bool = False

    def end(self, text: str) -> int | None:
        """Position in ``text`` after the bracket that closes the outermost one, or None."""
        for at, character in enumerate(text, 1):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return at
        return None


def _end_of(expected: str, text: str, at: int, *, in_string: bool = False) -> int:
    """Position after ``expected`` in ``text`` from ``at``, ignoring white space outside JSON strings.

    Returns:
        _INCOMPLETE if ``text`` ends first, _DIFFERENT if it differs.
    """
    for character in expected:
        if not in_string:
            if character.isspace():
                continue
            space = _SPACE.match(text, at)
            at = space.end() if space else at
        if at >= len(text):
            return _INCOMPLETE
        if text[at] != character:
            return _DIFFERENT
        in_string ^= character == '"'
        at += 1
    return at


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of ``marker`` that ``text`` ends with."""
    longest = min(len(marker) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
