"""Converts a request's use of thoughts to variables of the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.chat.template.sandbox import RESERVED
from app.chat.template.thoughts import ThoughtSupport, switches
from app.config.contexts import Context
from app.service.errors import BadRequest
from app.service.preparing.prompts import Effort, ThinkingUse

# Templates know three levels. The others become the nearest one.
_NEAREST: dict[Effort, str] = {"minimal": "low", "xhigh": "high", "max": "high"}
_SWITCH_NAMES = tuple(switches(True))


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """Thoughts of one answer, for the chat template and the engine.

    Attributes:
        variables: Variables of the template.
        thinks: Whether the answer may have thoughts.
        budget: Maximum tokens of thoughts. None: no limit.
    """

    variables: dict[str, Any]
    thinks: bool
    budget: int | None


def template_options(use: ThinkingUse, context: Context, support: ThoughtSupport) -> TemplateOptions:
    """Merge the request's use with the context's defaults.

    Raises:
        BadRequest: An option has the name of another variable.
    """
    for name in use.options:
        if name in RESERVED:
            raise BadRequest(f"the variable {name!r} cannot be set", field="chat_template_kwargs")
    variables = dict(use.options)
    wanted = _wanted(use)
    if wanted is None:
        wanted = context.thinking
    budget = context.thinking_budget if use.budget is None else use.budget
    if support.marks is None:
        return TemplateOptions(variables, False, None)
    if context.choices is not None:  # an answer is one of them, without thoughts
        return TemplateOptions(variables | switches(False), False, 0)
    if wanted is not None:
        variables = switches(wanted) | variables
    if use.effort is not None:
        effort = _NEAREST.get(use.effort, use.effort)
        if effort in support.efforts:
            variables.setdefault("reasoning_effort", effort)
    return TemplateOptions(variables, wanted is not False, 0 if wanted is False else budget)


def _wanted(use: ThinkingUse) -> bool | None:
    if use.wanted is not None:
        return use.wanted
    if use.effort is not None:
        return use.effort != "none"
    chosen = [use.options[name] for name in _SWITCH_NAMES if name in use.options]
    return bool(chosen[0]) if chosen else None
