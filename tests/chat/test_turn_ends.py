"""The next turn, and other conversations with the same system turn, begin with parts that were found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from app.chat.messages import Message, Tool, ToolCall
from app.chat.template.template import ChatTemplate, choose_template
from app.chat.turn_ends import turn_ends

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
SYSTEM = Message("system", "Speak like the keeper of a lighthouse")
TOOL = Tool("count_geese", "Counts geese", {"type": "object", "properties": {"month": {"type": "string"}}})
CALL = ToolCall("call00001", "count_geese", '{"month": "March"}')


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda path: path.stem)
def template(request: pytest.FixtureRequest) -> Iterator[ChatTemplate]:
    source = request.param.read_text()
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    template = choose_template(
        source, special_tokens=special, vocabulary=_MARK.findall(source), time_limit=10
    )
    yield template
    template.close()


def places(template: ChatTemplate, messages: list[Message]) -> tuple[str, list[int]]:
    rendering = template.render(messages, tools=[TOOL])
    marks = [match.span() for match in _MARK.finditer(rendering.traced)]
    found, start = turn_ends(rendering.traced, marks, messages, rendering.contents[-1][1])
    return rendering.traced, sorted({*found, *([start] if start else [])})


def test_a_place_is_near_before_the_first_difference_of_the_next_turn(template: ChatTemplate) -> None:
    """Templates drop thoughts of the last answer, or of all answers since the last user turn, or none."""
    messages = [SYSTEM, Message("user", "Which birds come by")]
    for turns in (
        [
            Message("assistant", thoughts="Count them", tool_calls=(CALL,)),
            Message("tool", "11", tool_call_id=CALL.id),
        ],
        [Message("assistant", "Eleven", thoughts="So eleven"), Message("user", "And 11 in April")],
        [Message("assistant", "None", thoughts="They are gone"), Message("user", "Why")],
    ):
        text, found = places(template, messages)
        messages = [*messages, *turns]
        following, _ = places(template, messages)
        n_shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, following, strict=False))))
        n_reused = max(place for place in found if place <= n_shared)
        assert n_shared - n_reused < 60, f"{text[n_reused:n_shared]!r} is prefilled again"


def test_another_conversation_begins_with_the_same_system_turn(template: ChatTemplate) -> None:
    text, found = places(template, [SYSTEM, Message("user", "Which birds come by")])
    other, _ = places(template, [SYSTEM, Message("user", "Why")])
    assert other.startswith(text[: found[0]])
    assert text.index(SYSTEM.content) < found[0]


def test_a_content_in_the_list_of_tools_is_not_its_turn(template: ChatTemplate) -> None:
    text, found = places(template, [SYSTEM, Message("user", "Counts geese")])
    assert found[-1] > text.rindex("Counts geese")
