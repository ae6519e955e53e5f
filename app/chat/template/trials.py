"""Finds out what a template knows of tools, by having it write some."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.chat.messages import Message, Tool, ToolCall
from app.chat.template.sandbox import TemplateFailure, TemplateRefusal
from app.chat.template.turns import ToolSupport
from app.chat.tools.format import learn_format

logger = logging.getLogger("tokenstream.template")

_TOOL = Tool(
    "count_geese",
    "Counts geese that pass a lighthouse",
    {
        "type": "object",
        "properties": {"month": {"type": "string", "description": "When they pass"}},
        "required": ["month"],
    },
)
_CALLS = (
    ToolCall("call_KbR5sOQ2mTzWc8xJ1vLhU7dE", "count_geese", '{"month": "March"}'),
    ToolCall("call_9fGyN3aPqXe0ZtM6iSwBj4Co", "count_geese", '{"month": "April"}'),
)
_SYSTEM = Message("system", "Speak like the keeper of a lighthouse")
_USER = Message("user", "Which birds come by in spring")
_ANSWER = Message("assistant", "Mostly swallows, and some herons")
_RESULT = Message("tool", "Two hundred and eleven", tool_call_id=_CALLS[0].id, name="count_geese")
# A list of tools that asks for calls in the format of our own.
_ASKS_FOR_HERMES = re.compile(r'<tool_call>\s*\{\s*"name"')


class Render(Protocol):
    """Renders the template."""

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        support: ToolSupport,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """What the template writes.

        Raises:
            TemplateRefusal, TemplateFailure: It does not take this.
        """


def try_tools(render: Render) -> tuple[ToolSupport, list[str]]:
    """What the template knows of tools, and what it wrote to show that."""
    trials = _Trials(render)
    listing = trials.write([_SYSTEM, _USER], ToolSupport(lists=True))
    lists = listing is not None and all(
        text in listing for text in (_TOOL.name, str(_TOOL.description), "When they pass", _SYSTEM.content)
    )
    support = _try_calls(trials, ToolSupport(lists=lists, calls=True))
    if support is None:
        lists = lists and bool(_ASKS_FOR_HERMES.search(listing or ""))
        support = ToolSupport(lists=lists)
    if support.lists or support.calls:  # others may write any role's name, and mean nothing by it
        support = _try_results(trials, replace(support, results=True))
    known = [part for part in ("lists", "calls", "results") if getattr(support, part)]
    logger.info(
        "of tools the chat template knows %s; calls are written as %r",
        ", ".join(known) or "nothing",
        support.format.write([("name", "{…}")]),
    )
    return support, trials.written


@dataclass(slots=True)
class _Trials:
    render: Render
    written: list[str] = field(default_factory=list)

    def write(
        self, messages: Sequence[Message], support: ToolSupport, *, add_generation_prompt: bool = False
    ) -> str | None:
        """What the template writes; None if it does not take the messages, which is what a trial asks."""
        tools = [_TOOL] if support.lists else []
        try:
            text = self.render(messages, tools, support, add_generation_prompt=add_generation_prompt)
        except (TemplateFailure, TemplateRefusal) as error:
            logger.debug("the chat template does not take a trial of tools: %s", error)
            return None
        self.written.append(text)
        return text


def _try_calls(trials: _Trials, support: ToolSupport) -> ToolSupport | None:
    """How the template takes calls, and how it writes them; None if it does not, or not as JSON."""
    prompt = trials.write([_USER], support, add_generation_prompt=True)
    plain = trials.write([_USER, _ANSWER], support)
    if prompt is None or plain is None or _ANSWER.content not in plain:
        return None
    for text_arguments, short_ids in ((False, False), (False, True), (True, False), (True, True)):
        support = replace(support, text_arguments=text_arguments, short_ids=short_ids)
        one = trials.write([_USER, Message("assistant", tool_calls=_CALLS[:1])], support)
        if one is None:
            continue
        if one.count(_TOOL.name) == plain.count(_TOOL.name):  # it leaves calls out, whatever they are like
            return None
        two = trials.write([_USER, Message("assistant", tool_calls=_CALLS)], support)
        first, second = (replace(call, id=support.rendered_id(call.id)) for call in _CALLS)
        format_ = learn_format((first, second), _ANSWER.content, prompt=prompt, plain=plain, one=one, two=two)
        if format_ is not None:
            return replace(support, format=format_)
    return None


def _try_results(trials: _Trials, support: ToolSupport) -> ToolSupport:
    calls = Message("assistant", tool_calls=_CALLS[:1])
    text = trials.write([_USER, calls, _RESULT, _ANSWER, _USER], support, add_generation_prompt=True)
    return support if text is not None and _RESULT.content in text else replace(support, results=False)
