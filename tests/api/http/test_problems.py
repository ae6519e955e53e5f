"""Messages about invalid bodies name fields, values and what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.http.problems import ApiError, validation_problem
from app.api.ollama.requests import OllamaChatRequest, Options
from app.api.openai.chat import chat_prompt
from app.api.openai.decisions import DecisionRequest
from app.api.openai.requests import ChatRequest
from app.api.systemone.systemone import SystemOneRequest


def system_one(**question: Any) -> dict[str, Any]:
    return {"state": "s", "questions": {"choice": question}}


def decision(*items: Any) -> dict[str, Any]:
    return {"input": [*items], "questions": [{"type": "predicate", "instructions": "x"}]}


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (
            SystemOneRequest,
            system_one(type="rank"),
            "questions.choice.type: should be one of 'noul', 'choice', 'score', not \"rank\"",
        ),
        (SystemOneRequest, system_one(instructions="x"), "questions.choice.type: is required"),
        (SystemOneRequest, system_one(type="choice"), "questions.choice.criteria: is required"),
        (
            SystemOneRequest,
            system_one(type="choice", criteria=dict.fromkeys(map(str, range(256)))),
            "questions.choice.criteria: object should have at most 255 items, not 256",
        ),
        (
            SystemOneRequest,
            system_one(type="choice", criteria={"choice": 5}),
            "questions.choice.criteria.choice: should be a valid string or an object or a valid array, not 5",
        ),
        (
            DecisionRequest,
            decision({"role": "user", "content": [{"type": "input_image"}]}),
            "input.0.content.0.type: should be one of 'input_text', 'output_text', 'refusal', 'input_json', "
            'not "input_image"',
        ),
        (
            DecisionRequest,
            decision({"type": "function_call_output", "call_id": "c", "output": "x"}),
            "input.0.call_id: 'c' is no call before it",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type: should be one of 'text', 'refusal', not \"image_url\"",
        ),
        (
            OllamaChatRequest,
            {"model": "m", "think": "much"},
            "think: should be a valid boolean or 'low', 'medium', 'high' or 'max', not \"much\"",
        ),
    ],
)
def test_a_message_names_field_value_and_what_is_allowed(
    model: type[BaseModel], body: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(json.dumps(body))
    problem = validation_problem(error.value, body)
    assert problem.message == message
    assert problem.field == message.partition(":")[0]


def test_whole_numbers_may_have_a_fraction_of_zero() -> None:
    options = Options.model_validate_json('{"num_predict": 3.0, "top_k": 40.0, "seed": 1.0, "stop": [""]}')
    assert options.num_predict == 3
    assert options.sampling() == {"top_k": 40, "seed": 1, "stop": ()}
    with pytest.raises(ValidationError):
        Options.model_validate_json('{"num_predict": 3.5}')


def test_top_p_0_keeps_only_the_most_likely_token() -> None:
    assert 0 < Options(top_p=0).sampling()["top_p"] < 1e-5


def test_names_of_persons_and_long_names_of_functions_are_accepted() -> None:
    name = "server__" + "x" * 100
    user = {"role": "user", "name": "José Müller", "content": "Hello"}
    tool = {"type": "function", "function": {"name": name}}
    [message] = chat_prompt(ChatRequest.model_validate({"messages": [user], "tools": [tool]})).messages
    assert message.name is None
    result = {"role": "function", "name": "José Müller", "content": "5"}
    with pytest.raises(ApiError, match="function name 'José Müller': should be 1 to 128 letters"):
        chat_prompt(ChatRequest.model_validate({"messages": [result]}))


def test_a_refusal_of_the_assistant_is_its_text() -> None:
    turn = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert ChatRequest.model_validate({"messages": [turn]}).messages[0].text == "No."
