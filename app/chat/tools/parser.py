"""Finds the calls of functions in an answer while it is written."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from app.chat.messages import Tool
from app.chat.tools.format import ToolFormat

_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_FIRST_KEY = re.compile(r'\{\s*(?:"((?:[^"\\]|\\[\s\S])*)"\s*\S|[^\s"])')
_PROBE = '{"": null}'  # stands for the arguments that are to come


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A call begins.

    Attributes:
        index: Which of the answer's calls it is, from 0.
        id: A name for it that no other call has.
        name: The function's name.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Delta = ContentDelta | CallDelta | ArgumentsDelta


class ToolCallParser:
    """Tells calls of functions from text, in an answer that comes piece by piece.

    Around the calls it allows for what models do without a grammar: other white space, a list where the
    format has single calls, ``parameters`` in place of ``arguments``. What looks like a call but is none
    (it is no JSON, or calls an unknown function) is text.
    """

    def __init__(self, format_: ToolFormat, tools: Sequence[Tool], *, constrained: bool = False) -> None:
        """Begin an answer.

        Args:
            format_: How the model writes calls.
            tools: The functions that there are.
            constrained: Whether the answer keeps to ``tool_grammar``. Arguments are then handed out as they
                come; otherwise all at once, when the call is known to be one.
        """
        self._marker, self._closing = format_.marker, format_.closing
        self._names = frozenset(tool.name for tool in tools)
        self._name_keys = {format_.name_key, "name"}
        self._arguments_keys = {format_.arguments_key, "arguments", "parameters"}
        self._keys = self._name_keys | self._arguments_keys | {"type", "id"}
        self._constrained = constrained
        self._step: Callable[[], bool] = self._read_text if self._marker else self._read_beginning
        self._pending = ""  # what has come and is not decided upon
        self._is_whole = False  # whether no more will come
        self._deltas: list[Delta] = []
        self._n_calls = 0
        self._marker_end = 0  # in what is pending
        self._object = _Object(0)
        self._in_list = self._is_closed = False

    def feed(self, text: str) -> list[Delta]:
        """Go on by a piece of the answer.

        Returns:
            What is certain by now; none of its texts is empty.
        """
        self._pending += text
        return self._read()

    def finish(self) -> list[Delta]:
        """End the answer.

        Returns:
            What was held back.
        """
        self._is_whole = True
        return self._read()

    def _read(self) -> list[Delta]:
        while self._pending and self._step():
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    # --- steps: each decides upon some of what is pending, or returns False when it has to wait for more

    def _read_text(self) -> bool:
        if not self._marker:
            self._write(len(self._pending))
            return False
        # White space in front of a call is the format's, not the text's.
        at = self._pending.find(self._marker)
        if at >= 0:
            n_text = len(self._pending[:at].rstrip())
            self._write(n_text)
            self._marker_end = at - n_text + len(self._marker)
            self._step = self._read_opening
            return True
        if self._is_whole:
            self._write(len(self._pending))
        else:
            n_begun = _n_begun(self._pending, self._marker)
            self._write(len(self._pending[: len(self._pending) - n_begun].rstrip()))
        return False

    def _read_beginning(self) -> bool:
        """Without a marker, an answer is calls if it begins as one."""
        at = _skip_space(self._pending)
        if at == len(self._pending) and not self._is_whole:
            return False
        self._step = self._read_opening if self._pending.startswith(("{", "["), at) else self._read_text
        return True

    def _read_opening(self) -> bool:
        at = _skip_space(self._pending, self._marker_end)
        self._in_list = self._pending.startswith("[", at)
        if self._in_list:
            at = _skip_space(self._pending, at + 1)
        if at == len(self._pending) and not self._is_whole:
            return False
        first = _FIRST_KEY.match(self._pending, at)
        if not self._marker and self._pending.startswith("{", at) and not first and not self._is_whole:
            return False
        # Without a marker much may begin with a brace, and would be held back to the end.
        if self._pending.startswith("{", at) and (self._marker or (first and first[1] in self._keys)):
            self._begin_object(at)
        else:
            self._give_up(self._marker_end)
        return True

    def _read_object(self) -> bool:
        call = self._object
        while call.end < len(self._pending):
            call.follow(self._pending[call.end])
            if self._constrained and call.has_opened_inner and not call.is_told:
                self._tell_early(call)
            if call.arguments_at is not None and call.depth == 1:
                self._hand_out(call.arguments_at, call.end)
                call.arguments_at = None
            if call.depth == 0:
                self._end_object(call)
                return True
        if call.arguments_at is not None:
            self._hand_out(call.arguments_at, call.end)
            self._pending, call.arguments_at, call.end = "", 0, 0
        elif self._is_whole and not call.is_told:
            self._give_up(len(self._pending))
        return False

    def _read_closing(self) -> bool:
        """Behind a call: the rest of its list or block, another call, or text again."""
        at = _skip_space(self._pending)
        rest = self._pending[at:]
        if self._in_list and rest.startswith(","):
            at = _skip_space(self._pending, at + 1)
            if at == len(self._pending):
                return False
            if self._pending.startswith("{", at):
                self._begin_object(at)
                return True
        elif self._in_list and rest.startswith("]"):
            self._in_list = False
            self._pending = rest[1:]
            return True
        elif self._closing and not self._is_closed and rest.startswith(self._closing):
            self._in_list, self._is_closed = False, True
            self._pending = rest[len(self._closing) :]
            return True
        elif not self._is_closed and rest.startswith("{"):
            self._begin_object(at)
            return True
        elif not rest or (not self._is_closed and self._closing.startswith(rest)):
            return False  # for ever, should no more come: it is of no use as text
        self._step = self._read_text
        return True

    # --- what they decide

    def _begin_object(self, at: int) -> None:
        self._object = _Object(at)
        self._is_closed = False
        self._step = self._read_object

    def _tell_early(self, call: _Object) -> None:
        """Tell of a call as soon as its arguments begin."""
        found = self._members(self._pending[call.begin : call.end - 1] + _PROBE + "}")
        if found and found[1] == _PROBE:
            call.is_told, call.arguments_at = True, call.end - 1
            self._tell(found[0])

    def _end_object(self, call: _Object) -> None:
        if not call.is_told:
            found = self._members(self._pending[call.begin : call.end])
            if found is None:
                self._give_up(call.end)
                return
            self._tell(found[0])
            self._deltas.append(ArgumentsDelta(self._n_calls - 1, found[1]))
        self._pending = self._pending[call.end :]
        self._step = self._read_closing

    def _members(self, text: str) -> tuple[str, str] | None:
        """The name and the arguments' text in the JSON of a call of a known function."""
        try:
            members = _members(text)
        except (ValueError, RecursionError):
            return None
        name = next((value for key, value, _ in members if key in self._name_keys), None)
        arguments = next((raw for key, value, raw in members if self._are_arguments(key, value)), None)
        if isinstance(name, str) and name in self._names and arguments is not None:
            return name, arguments
        return None

    def _are_arguments(self, key: str, value: object) -> bool:
        return key in self._arguments_keys and isinstance(value, dict)

    def _tell(self, name: str) -> None:
        self._deltas.append(CallDelta(self._n_calls, f"call_{secrets.token_hex(12)}", name))
        self._n_calls += 1

    def _hand_out(self, begin: int, end: int) -> None:
        if begin < end:
            self._deltas.append(ArgumentsDelta(self._n_calls - 1, self._pending[begin:end]))

    def _give_up(self, end: int) -> None:
        """What is pending up to ``end`` is text after all."""
        self._write(end)
        self._step = self._read_text

    def _write(self, end: int) -> None:
        if end:
            self._deltas.append(ContentDelta(self._pending[:end]))
            self._pending = self._pending[end:]


@dataclass(slots=True)
class _Object:
    """A JSON object that is read up to ``end``.

    Attributes:
        begin: Where it begins.
        end: Up to where it has been followed.
        depth: How many brackets are open.
        is_told: Whether its call has been told of.
        arguments_at: Where its arguments begin that are to be handed out as they come.
        has_opened_inner: Whether the last character opened an object in it.
    """

    begin: int
    end: int = field(init=False)
    depth: int = 0
    is_told: bool = False
    arguments_at: int | None = None
    has_opened_inner: bool = False
    _in_string: bool = False
    _is_escaped: bool = False

    def __post_init__(self) -> None:
        self.end = self.begin

    def follow(self, character: str) -> None:
        """Go on by a character."""
        self.end += 1
        self.has_opened_inner = False
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self.depth += 1
            self.has_opened_inner = character == "{" and self.depth == 2
        elif character in "}]":
            self.depth -= 1


def _members(text: str) -> list[tuple[str, Any, str]]:
    """Key, value and the value's own text of each member of a JSON object.

    Raises:
        ValueError: The text is no JSON object.
    """
    if not isinstance(json.loads(text, parse_constant=_refuse_constant), dict):
        raise ValueError("no object")
    members: list[tuple[str, Any, str]] = []
    at = _skip_space(text, 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        begin = _skip_space(text, _skip_space(text, at) + 1)  # behind the colon
        value, end = _DECODER.raw_decode(text, begin)
        members.append((key, value, text[begin:end]))
        at = _skip_space(text, end)
        at = _skip_space(text, at + 1) if text[at] == "," else at
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _skip_space(text: str, at: int = 0) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _n_begun(text: str, marker: str) -> int:
    """How many characters at the end of a text could be the beginning of the marker."""
    longest = min(len(marker) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
