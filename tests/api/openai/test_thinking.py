"""Thoughts in OpenAI's chat and in ``/token_stream``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

QUESTION: list[Any] = [{"role": "user", "content": "Where is located Paris ?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
BUDGET = {"thinking_budget": 10}


@pytest.fixture(scope="module")
def thinker(thinking_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinking_url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    defaults: dict[str, Any] = {"model": "m", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    return client.chat.completions.create(**(defaults | fields))


def test_thoughts_are_separate_in_whole_answers_and_streams(thinker: openai.OpenAI) -> None:
    whole = ask(thinker, extra_body=BUDGET, logprobs=True)
    message = whole.choices[0].message
    assert message.reasoning_content
    assert message.reasoning == message.reasoning_content
    assert message.content
    assert "think>" not in message.content + message.reasoning
    details = whole.usage.completion_tokens_details
    assert 10 <= details.reasoning_tokens < whole.usage.completion_tokens
    assert "".join(entry.token for entry in whole.choices[0].logprobs.content).strip() == message.content
    thought = answer = ""
    chunks = ask(thinker, extra_body=BUDGET, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        if chunk.choices:
            delta = chunk.choices[0].delta
            thought += getattr(delta, "reasoning_content", "")
            assert getattr(delta, "reasoning", "") == getattr(delta, "reasoning_content", "")
            answer += delta.content or ""
        else:
            assert chunk.usage == whole.usage.model_copy(
                update={"prompt_tokens_details": chunk.usage.prompt_tokens_details}
            )
    assert (thought, answer) == (message.reasoning_content, message.content)


def test_several_system_messages_are_accepted_by_a_template_with_one(thinker: openai.OpenAI) -> None:
    system, developer = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Rhyme."}
    joined = {"role": "system", "content": "Be brief.\n\nRhyme."}
    asked = [ask(thinker, messages=[*turns, *QUESTION]) for turns in ([system, developer], [joined])]
    assert asked[0].usage.prompt_tokens == asked[1].usage.prompt_tokens
    assert asked[0].choices[0].message == asked[1].choices[0].message
    later = ask(thinker, messages=[system, *QUESTION, developer])
    assert (
        later.usage.prompt_tokens
        == ask(
            thinker, messages=[system, *QUESTION, {"role": "user", "content": "Rhyme."}]
        ).usage.prompt_tokens
    )


def test_a_schema_and_tools_hold_after_the_thought(thinker: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    message = ask(thinker, extra_body=BUDGET, response_format=form).choices[0].message
    assert message.reasoning
    assert json.loads(message.content)["city"] in ("Paris", "Rome")
    tool = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}
    choice = ask(thinker, extra_body=BUDGET, tools=[tool], tool_choice="required", max_tokens=80).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_thinking_is_turned_off(off: dict[str, Any], thinker: openai.OpenAI) -> None:
    answer = ask(thinker, extra_body=off, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.model_extra == {}
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_thoughts_of_the_current_turn_are_in_the_prompt(thinker: openai.OpenAI) -> None:
    def n_prompt(**fields: Any) -> int:
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
        turns = [
            {"role": "assistant", "content": "", "tool_calls": [call], **fields},
            {"role": "tool", "tool_call_id": "c1", "content": "Found."},
        ]
        return int(ask(thinker, messages=[*QUESTION, *turns], max_tokens=1).usage.prompt_tokens)

    thought = "A map helps to find a city."
    with_thought = n_prompt(reasoning_content=thought)
    assert with_thought == n_prompt(reasoning=thought) > n_prompt() + 5


@pytest.mark.parametrize("name", ["messages", "bos_token"])
def test_variables_of_every_rendering_cannot_be_set(name: str, thinker: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as error:
        ask(thinker, extra_body={"chat_template_kwargs": {name: "x"}})
    assert error.value.param == "chat_template_kwargs"


def test_token_stream_omits_thoughts_unless_requested(thinking_url: str) -> None:
    def stream(**fields: Any) -> str:
        body = {"query": "Where is located Paris ?", "temperature": 0, "max_tokens": 40} | BUDGET | fields
        response = httpx.post(f"{thinking_url}/token_stream", json=body, timeout=90)
        assert response.status_code == 200
        return response.text

    answer, shown = stream(), stream(show_thinking=True)
    assert shown.startswith("<think>\n")
    thought, _, rest = shown.removeprefix("<think>\n").partition("\n</think>\n\n")
    assert thought
    assert rest == answer
