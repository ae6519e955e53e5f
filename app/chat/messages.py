"""Conversations as data: messages, tools and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

# Templates write roles between control tokens, or build control tokens from them (``'<|' + role + '|>'``).
# A role is therefore one of these words, never user text.
ROLES = ("system", "user", "assistant", "tool")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # names of servers of tools precede those of their tools
_MAX_DEPTH = 100  # JSON nesting levels; more would exceed the interpreter's stack in json.dumps


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: 1 to 128 letters, digits, ``_``, ``.`` and ``-``.
        description: Purpose of the function, for the model.
        parameters: JSON schema of the arguments object. An empty schema means no arguments.

    Raises:
        ValueError: ``name`` or ``parameters`` is invalid.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.parameters.get("type", "object") != "object":
            raise ValueError(
                f"parameters of function {self.name!r}: type {self.parameters['type']!r}: should be 'object'"
            )
        if _is_deeper(self.parameters, _MAX_DEPTH):
            raise ValueError(f"parameters of function {self.name!r}: nested deeper than {_MAX_DEPTH} levels")

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments, with an explicit ``type`` and ``properties``."""
        if not self.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", "properties": {}, **self.parameters}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call by the assistant.

    Attributes:
        id: Id, used by the message with the result.
        name: Name of the function.
        arguments: JSON text of an object.
        by_name: The parsed arguments.

    Raises:
        ValueError: ``name`` or ``arguments`` is invalid.
    """

    id: str
    name: str
    arguments: str
    by_name: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "by_name", _parse_arguments(self.arguments))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: One of ROLES; ``tool`` is the result of a call.
        content: Text of the turn.
        tool_calls: Calls by the assistant, after the text.
        tool_call_id: For role ``tool``: id of the call.
        name: For role ``tool``: name of the called function.
        thoughts: The assistant's thoughts before the text.

    Raises:
        ValueError: ``role`` or ``name`` is invalid, or a role other than the assistant has calls.
    """

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    thoughts: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r}: should be one of {', '.join(ROLES)}")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls of role {self.role!r}: only the assistant calls functions")
        if self.name is not None:
            _check_name(self.name)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"function name {name!r}: should be 1 to 128 letters, digits, '_', '.' and '-'")


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"arguments {_shortened(text)}: should be the JSON text of an object") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments {_shortened(text)}: should be the JSON text of an object")
    if _is_deeper(arguments, _MAX_DEPTH):
        raise ValueError(f"arguments {_shortened(text)}: nested deeper than {_MAX_DEPTH} levels")
    return arguments


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _is_deeper(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels == 0 or any(_is_deeper(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_is_deeper(inner, levels - 1) for inner in value)
    return False
