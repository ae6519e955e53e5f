"""Converts messages and tools to the input of a chat template.

Tools, calls and results that a template does not support are written into message contents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.chat.messages import Message, Tool, ToolCall
from app.chat.tools.format import HERMES, ToolFormat

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """Tool features of a template. Features without support are written into message contents.

    Attributes:
        format: Format of calls.
        lists: Whether the template lists the tools.
        calls: Whether the template renders the assistant's calls.
        results: Whether the template renders results of calls.
        text_arguments: Whether the template expects arguments as JSON text, not as an object.
        short_ids: Whether the template requires ids of nine letters and digits, such as Mistral's.
    """

    format: ToolFormat = HERMES
    lists: bool = False
    calls: bool = False
    results: bool = False
    text_arguments: bool = False
    short_ids: bool = False

    def rendered_id(self, id_: str) -> str:
        """An id in the template's form."""
        if not self.short_ids or _SHORT_ID.fullmatch(id_):
            return id_
        return hashlib.sha256(id_.encode("utf-8", "replace")).hexdigest()[:9]


def as_schema(tool: Tool) -> dict[str, Any]:
    """A tool as the JSON object that templates expect."""
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.schema}
    schema: dict[str, Any] = as_unicode({"type": "function", "function": function})
    return schema


def in_words(messages: Sequence[Message], tools: Sequence[Tool], support: ToolSupport) -> list[Message]:
    """The messages, with unsupported tool features written into their contents."""
    written: list[Message] = []
    after_results = False  # whether the last written turn contains results
    for message in _listing(messages, tools, support.format) if tools and not support.lists else messages:
        is_result = message.role == "tool" and not support.results
        if message.tool_calls and not support.calls:
            calls = support.format.write([(call.name, call.arguments) for call in message.tool_calls])
            content = "\n".join(filter(None, [message.content, calls]))
            message = replace(message, content=content, tool_calls=())
        elif is_result:
            message = Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
        if after_results and message.role == "user":  # many templates require alternating turns
            message = Message("user", f"{written.pop().content}\n{message.content}")
        written.append(message)
        after_results = is_result or (after_results and message.role == "user")
    return written


def as_turns(
    messages: Sequence[Message], support: ToolSupport, thought_key: str = ""
) -> list[dict[str, Any]]:
    """Convert messages to the input of ``apply_chat_template`` of Hugging Face's transformers.

    Lone surrogates are replaced by question marks.

    Args:
        messages: The conversation.
        support: Tool features of the template.
        thought_key: Key of thoughts in a message; empty: thoughts are omitted.
    """
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # functions by call id
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thoughts and thought_key:
            turn[thought_key] = message.thoughts
        if message.tool_calls:
            turn["tool_calls"] = [_as_call(call, support) for call in message.tool_calls]
            names |= {call.id: call.name for call in message.tool_calls}
        if message.tool_call_id is not None:
            turn["tool_call_id"] = support.rendered_id(message.tool_call_id)
        name = message.name or names.get(message.tool_call_id or "")
        if message.role == "tool" and name:
            turn["name"] = name
        turns.append(as_unicode(turn))
    return turns


def _as_call(call: ToolCall, support: ToolSupport) -> dict[str, Any]:
    arguments = call.arguments if support.text_arguments else call.by_name
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "id": support.rendered_id(call.id), "function": function}


def _listing(messages: Sequence[Message], tools: Sequence[Tool], format_: ToolFormat) -> list[Message]:
    """The messages, with a list of tools at the end of the first system turn."""
    lines = "\n".join(json.dumps(as_schema(tool), ensure_ascii=False) for tool in tools)
    example = format_.write([("<name>", "<arguments>")])
    listing = (
        "You can call these functions, of which each line describes one as JSON:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "To call one, answer with its name and with a JSON object of arguments that fits its parameters, "
        f"in this form:\n{example}"
    )
    for at, message in enumerate(messages):
        if message.role == "system":
            system = Message("system", "\n\n".join(filter(None, [message.content, listing])))
            return [*messages[:at], system, *messages[at + 1 :]]
    return [Message("system", listing), *messages]


def as_unicode(value: Any) -> Any:
    """A JSON value with question marks instead of lone surrogates."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {as_unicode(key): as_unicode(inner) for key, inner in value.items()}
    return list(map(as_unicode, value)) if isinstance(value, list) else value
