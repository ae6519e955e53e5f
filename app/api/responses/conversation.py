"""Converts a request of the Responses API to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.api.http.ignored import warn_once
from app.api.http.problems import invalid, naming
from app.api.http.sources import knowledge_use
from app.api.responses.requests import (
    ROUTE,
    InputItem,
    ResponsesRequest,
    ResponseTool,
    ToolSelection,
    text_of,
)
from app.chat.messages import Message, Tool, ToolCall
from app.service import ChatPrompt, Constraint, JSONSchema, ToolUse


def conversation(body: ResponsesRequest, previous: Sequence[Message]) -> list[Message]:
    """The turns before the answer, without the instructions.

    Args:
        body: The request.
        previous: Turns of the response that this one continues.

    Raises:
        ApiError: An item is invalid.
    """
    if isinstance(body.input, str):
        return [*previous, Message("user", body.input)]
    turns = list(previous)
    thoughts = ""  # of the next assistant turn
    for index, item in enumerate(body.input or ()):
        with naming(f"input.{index}"):
            if item.type == "reasoning":
                thoughts = text_of(item.content) or text_of(item.summary)
            elif item.type == "function_call" or (item.type == "message" and item.role == "assistant"):
                _add_assistant(turns, replace(_assistant(item), thoughts=thoughts), is_new=bool(thoughts))
                thoughts = ""
            elif item.type == "message":
                role = "user" if item.role == "user" else "system"
                turns.append(Message(role, text_of(item.content)))
            elif item.type == "function_call_output":
                turns.append(Message("tool", text_of(item.output), tool_call_id=item.call_id))
    if not turns:
        raise invalid("has no message, call or result of a call", "input")
    return turns


def prompt_of(body: ResponsesRequest, turns: Sequence[Message]) -> ChatPrompt:
    """The prompt of a request.

    Raises:
        ApiError: A tool is invalid.
    """
    effort = body.reasoning.effort if body.reasoning else None
    return ChatPrompt(
        tuple(_with_system(body.instructions, turns)),
        body.context,
        _tool_use(body),
        field="input",
        knowledge=knowledge_use(body.knowledge),
        thinking=replace(body.thinking(), effort=effort),
        model=body.model,
    )


def constraint_of(body: ResponsesRequest) -> Constraint | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.schema_ if wanted.type == "json_schema" else {"type": "object"}
    assert schema is not None
    return JSONSchema(schema, "text.format.schema", bool(wanted.strict))


def _assistant(item: InputItem) -> Message:
    if item.type == "message":
        return Message("assistant", text_of(item.content))
    return Message("assistant", "", (ToolCall(item.call_id or "", item.name or "", item.arguments or "{}"),))


def _add_assistant(turns: list[Message], new: Message, *, is_new: bool) -> None:
    """Add the assistant's text or call. A call belongs to the turn of the text before it."""
    if turns and turns[-1].role == "assistant" and new.tool_calls and not is_new:
        last = turns[-1]
        turns[-1] = replace(last, tool_calls=last.tool_calls + new.tool_calls)
    else:
        turns.append(new)


def _with_system(instructions: str | None, turns: Sequence[Message]) -> list[Message]:
    """The turns, with the instructions and leading system turns as one system turn."""
    n_system = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system = [text for text in (instructions, *(turn.content for turn in turns[:n_system])) if text]
    return [*([Message("system", "\n\n".join(system))] if system else []), *turns[n_system:]]


def _tool_use(body: ResponsesRequest) -> ToolUse | None:
    if body.tool_choice == "none":
        return None
    tools = []
    for index, tool in enumerate(body.tools or ()):
        if tool.type == "function":
            with naming(f"tools.{index}"):
                tools.append(_tool(tool))
        else:
            warn_once(ROUTE, f"a tool of type {tool.type!r}")
    only, must_call = None, body.tool_choice == "required"
    if isinstance(choice := body.tool_choice, ToolSelection):
        if choice.type == "allowed_tools":
            names = {tool.name for tool in choice.tools}
            tools, must_call = [tool for tool in tools if tool.name in names], choice.mode == "required"
        elif choice.type == "function":
            only, must_call = choice.name, True
            if only not in [tool.name for tool in tools]:
                raise invalid(f"should be one of the tools, not {only!r}", "tool_choice.name")
    if must_call and not tools:
        raise invalid("requires tools of type 'function'", "tool_choice")
    if not tools:
        return None
    parallel = body.parallel_tool_calls is not False and only is None
    strict = frozenset(tool.name for tool in body.tools or () if tool.strict and tool.name)
    return ToolUse(tuple(tools), must_call=must_call, only=only, parallel=parallel, strict=strict)


def _tool(tool: ResponseTool) -> Tool:
    return Tool(tool.name or "", tool.description, tool.parameters or {})
