"""Converts a request of the Messages API to a prompt."""

from __future__ import annotations

import json

from app.api.http.ignored import warn_once
from app.api.http.problems import invalid, naming
from app.api.messages.blocks import ROUTE, TEXTUAL
from app.api.messages.requests import CountRequest, MessageParam, system_text
from app.chat.messages import Message, Tool, ToolCall
from app.service import ChatPrompt, Constraint, JSONSchema, ToolUse


def prompt_of(body: CountRequest) -> ChatPrompt:
    """The prompt of a request. If the last message is the assistant's, the answer continues it.

    Raises:
        ApiError: A message or a tool is invalid.
    """
    turns = [Message("system", text)] if (text := system_text(body.system)) else []
    for index, message in enumerate(body.messages):
        with naming(f"messages.{index}"):
            turns += _assistant(message) if message.role == "assistant" else _user(message)
    continues = turns[-1].role == "assistant" and not turns[-1].tool_calls
    return ChatPrompt(
        tuple(turns), body.context, _tool_use(body), continues, thinking=body.thoughts(), model=body.model
    )


def constraint_of(body: CountRequest) -> Constraint | None:
    form = body.format
    return JSONSchema(form.schema_, "output_config.format.schema") if form else None


def _assistant(message: MessageParam) -> list[Message]:
    if isinstance(message.content, str):
        return [Message("assistant", message.content)]
    blocks = message.content
    text = "".join(block.shown for block in blocks if block.type == "text")
    thoughts = "\n\n".join(block.thinking for block in blocks if block.type == "thinking")
    calls = tuple(
        ToolCall(block.id or "", block.name or "", json.dumps(block.input, ensure_ascii=False))
        for block in blocks
        if block.type == "tool_use"
    )
    return [Message("assistant", text, calls, thoughts=thoughts)]


def _user(message: MessageParam) -> list[Message]:
    """The turns of a message: a turn for each result of a call, and one for the text between them."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    turns: list[Message] = []
    texts: list[str] = []

    def end_text() -> None:
        if texts:
            turns.append(Message(message.role, "\n\n".join(texts)))
            texts.clear()

    for block in message.content:
        if block.type == "tool_result":
            end_text()
            turns.append(Message("tool", block.result, tool_call_id=block.tool_use_id))
        elif block.type in TEXTUAL:
            texts.append(block.shown)
    end_text()
    return turns or [Message(message.role, "")]


def _tool_use(body: CountRequest) -> ToolUse | None:
    choice = body.tool_choice
    if choice is not None and choice.type == "none":
        return None
    tools = []
    for index, tool in enumerate(body.tools or ()):
        if tool.type in (None, "custom"):
            with naming(f"tools.{index}"):
                tools.append(Tool(tool.name, tool.description, tool.input_schema or {}))
        else:
            warn_once(ROUTE, f"a tool of type {tool.type[:64]!r}")
    must_call = choice is not None and choice.type in ("any", "tool")
    only = choice.name if choice is not None and choice.type == "tool" else None
    if only is not None and only not in [tool.name for tool in tools]:
        raise invalid(f"should be one of the tools, not {only!r}", "tool_choice.name")
    if not tools:
        if must_call:
            raise invalid("requires tools", "tool_choice")
        return None
    parallel = only is None and not (choice is not None and choice.disable_parallel_tool_use)
    strict = frozenset(tool.name for tool in body.tools or () if tool.strict)
    return ToolUse(tuple(tools), must_call=must_call, only=only, parallel=parallel, strict=strict)
