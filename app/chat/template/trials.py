"""Detects the tool features of a template by trial renderings."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.chat.messages import Message, Tool, ToolCall
from app.chat.template.sandbox import TemplateFailure, TemplateRejection
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
# A list of tools that requests calls in the Hermes format.
_REQUESTS_HERMES = re.compile(r'<tool_call>\s*\{\s*"name"')


class Render(Protocol):
    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        support: ToolSupport,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render the template.

        Raises:
            TemplateRejection, TemplateFailure: The template does not support the messages or tools.
        """


def try_tools(render: Render) -> tuple[ToolSupport, list[str]]:
    """Test a template's tool features; returns them with the renderings of the trials."""
    trials = _Trials(render)
    listing = trials.write([_SYSTEM, _USER], ToolSupport(lists=True))
    lists = listing is not None and all(
        text in listing for text in (_TOOL.name, str(_TOOL.description), "When they pass", _SYSTEM.content)
    )
    support = _try_calls(trials, ToolSupport(lists=lists, calls=True))
    if support is None:
        lists = lists and bool(_REQUESTS_HERMES.search(listing or ""))
        support = ToolSupport(lists=lists)
    if support.lists or support.calls:  # other templates may render any role without supporting it
        support = _try_results(trials, replace(support, results=True))
    known = [part for part in ("lists", "calls", "results") if getattr(support, part)]
    logger.info(
        "the chat template supports these tool features: %s; format of calls: %r",
        ", ".join(known) or "none",
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
        """The rendering; None if the template does not support the messages."""
        tools = [_TOOL] if support.lists else []
        try:
            text = self.render(messages, tools, support, add_generation_prompt=add_generation_prompt)
        except (TemplateFailure, TemplateRejection) as error:
            logger.debug("a trial of tools failed: %s", error)
            return None
        self.written.append(text)
        return text


def _try_calls(trials: _Trials, support: ToolSupport) -> ToolSupport | None:
    """Find the form of calls that the template renders as JSON objects; None: no form."""
    prompt = trials.write([_USER], support, add_generation_prompt=True)
    plain = trials.write([_USER, _ANSWER], support)
    if prompt is None or plain is None or _ANSWER.content not in plain:
        return None
    for text_arguments, short_ids in ((False, False), (False, True), (True, False), (True, True)):
        support = replace(support, text_arguments=text_arguments, short_ids=short_ids)
        one = trials.write([_USER, Message("assistant", tool_calls=_CALLS[:1])], support)
        if one is None:
            continue
        if one.count(_TOOL.name) == plain.count(_TOOL.name):  # it omits calls in any form
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
