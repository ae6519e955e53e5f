"""Detects how a template and its model write thoughts."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from app.chat.messages import Message
from app.chat.template.sandbox import TemplateFailure, TemplateRejection
from app.engine.thoughts import ThoughtMarks

logger = logging.getLogger("tokenstream.template")

# Marks of known models. A template may omit past thoughts, so that its renderings do not show the marks.
_KNOWN = (
    ThoughtMarks("<think>", "</think>"),
    ThoughtMarks("<seed:think>", "</seed:think>"),
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("[THINK]", "[/THINK]", lead="", gap=""),
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>", lead="", gap=""),
    ThoughtMarks("<|channel>thought", "<channel|>", gap=""),  # Gemma 4
)
_CHANNELS = ThoughtMarks(  # gpt-oss
    "<|channel|>analysis<|message|>",
    "<|end|>",
    lead="",
    gap="<|start|>assistant<|channel|>final<|message|>",
    header_end="<|message|>",
)
_RESPONSE, _END_OF_RESPONSE = "<response>", "</response>"  # Granite 3

# Keys of thoughts in a template's messages, and variables of templates that turn thinking on or off.
_KEYS = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("enable_thinking", "thinking")
EFFORTS = ("low", "medium", "high")

_TAG = r"<[^<>\s]+>|\[/?[A-Z_]+\]"
_LAST_TAG = re.compile(rf"(?:{_TAG})(?=\s*\Z)")
_IS_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
_FIRST_TAG = re.compile(rf"\s*({_TAG})")

_USER = Message("user", "Which birds come by in March")
_THOUGHTS = "Geese fly north when the ice breaks"
_ANSWER = Message("assistant", "Mostly geese and some swallows", thoughts=_THOUGHTS)


@dataclass(frozen=True, slots=True)
class ThoughtSupport:
    """Thoughts in a template.

    Attributes:
        marks: Text around thoughts. None: the model does not think.
        key: Key of past thoughts in a message.
        efforts: Values of ``reasoning_effort`` with an effect.
        stop: Texts after an answer that has a thought.
    """

    marks: ThoughtMarks | None = None
    key: str = _KEYS[0]
    efforts: frozenset[str] = frozenset()
    stop: tuple[str, ...] = ()


class Render(Protocol):
    def __call__(
        self,
        messages: Sequence[Message],
        support: ThoughtSupport,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render the template.

        Raises:
            TemplateRejection, TemplateFailure: The template does not support the messages or variables.
        """


def switches(is_on: bool) -> dict[str, Any]:
    """Variables that turn thinking on or off, for all known templates."""
    return dict.fromkeys(_SWITCHES, is_on)


def known_thoughts(text: str, vocabulary: Collection[str]) -> ThoughtSupport:
    """Support by marks of known models in the text of a template, or in the vocabulary."""
    for marks in _KNOWN:
        if marks.end in text or {marks.begin, marks.end} <= set(vocabulary):
            if _RESPONSE in text:
                return ThoughtSupport(replace(marks, gap=f"\n{_RESPONSE}"), stop=(_END_OF_RESPONSE,))
            return ThoughtSupport(marks)
    return ThoughtSupport()


def try_thoughts(render: Render, text: str, vocabulary: Collection[str]) -> tuple[ThoughtSupport, list[str]]:
    """Detect the thoughts of a template.

    Args:
        render: Renders the template.
        text: Literals of the template.
        vocabulary: Texts of the model's special tokens.

    Returns:
        The support, and the renderings of the trials.
    """
    trials = _Trials(render)
    support = _shown_thoughts(trials, text)
    if support is None:
        off = trials.write([_USER], ThoughtSupport(), switches(False), add_generation_prompt=True) or ""
        support = known_thoughts(text + off, vocabulary)
        marks, turn = support.marks, off.rpartition(_USER.content)[2]
        if marks is not None and not support.stop and marks.end in turn:  # an empty thought, thinking is off
            support = replace(support, marks=replace(marks, gap=turn.rpartition(marks.end)[2]))
    if (marks := support.marks) is not None:
        support = replace(support, efforts=_efforts(trials))
        logger.info("thoughts of the model are between %r and %r", marks.begin, marks.end)
    return support, trials.written


@dataclass(slots=True)
class _Trials:
    render: Render
    written: list[str] = field(default_factory=list)

    def write(
        self,
        messages: Sequence[Message],
        support: ThoughtSupport,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
    ) -> str | None:
        """The rendering; None if the template does not support the messages or variables."""
        try:
            text = self.render(messages, support, variables, add_generation_prompt=add_generation_prompt)
        except (TemplateFailure, TemplateRejection) as error:
            logger.debug("a trial of thoughts failed: %s", error)
            return None
        self.written.append(text)
        return text


def _shown_thoughts(trials: _Trials, text: str) -> ThoughtSupport | None:
    """Support by a rendering of a past thought; None if the template does not render it."""
    if "<|channel|>" in text and "<|message|>" in text:
        return ThoughtSupport(_CHANNELS, "thinking")
    for key in _KEYS:
        support = ThoughtSupport(key=key)
        written = trials.write([_USER, _ANSWER], support, switches(True)) or ""
        before, found, behind = written.partition(_THOUGHTS)
        between, answer, _ = behind.partition(_ANSWER.content)
        if found and answer and (marks := _marks_around(before, between)):
            return replace(support, marks=marks)
    return None


def _marks_around(before: str, between: str) -> ThoughtMarks | None:
    """The marks in the text before a thought, and in the text between it and the answer."""
    for known in _KNOWN:
        lead, end, gap = between.partition(known.end)
        if end and before.rstrip().endswith(known.begin):
            return replace(known, lead=lead, gap=gap)
    begin, end_tag = _LAST_TAG.search(before), _FIRST_TAG.match(between)
    if begin is None or end_tag is None or not _IS_THOUGHT.search(begin[0]):
        return None
    lead = between[: end_tag.start(1)]
    return ThoughtMarks(begin[0], end_tag[1], lead=lead, gap=between[end_tag.end() :])


def _efforts(trials: _Trials) -> frozenset[str]:
    """The values of ``reasoning_effort`` that the template accepts, if they make a difference."""
    written = {
        effort: trials.write(
            [_USER],
            ThoughtSupport(),
            switches(True) | {"reasoning_effort": effort},
            add_generation_prompt=True,
        )
        for effort in EFFORTS
    }
    accepted = {effort for effort, text in written.items() if text is not None}
    return frozenset(accepted) if len(set(written.values())) > 1 else frozenset()
