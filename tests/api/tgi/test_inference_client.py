"""huggingface_hub's InferenceClient, connected to the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

from tests.api.tgi.tgi_calls import FRANCE

MESSAGES = [{"role": "user", "content": "Where is located Paris ?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "rivers": {"enum": [1, 2]}},
    "required": ["city", "rivers"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[InferenceClient]:
    with InferenceClient(base_url=server_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model_client(server_url: str) -> Iterator[InferenceClient]:
    """A client whose base URL is the route of a model."""
    with InferenceClient(model=f"{server_url}/model/some/name/", timeout=60) as client:
        yield client


def test_text_is_returned_with_or_without_the_prompt(
    client: InferenceClient, model_client: InferenceClient
) -> None:
    answer = client.text_generation(FRANCE, max_new_tokens=8, return_full_text=False)
    assert "Paris" in answer
    assert client.text_generation(FRANCE, max_new_tokens=8) == FRANCE + answer
    assert model_client.text_generation(FRANCE, max_new_tokens=8, return_full_text=False) == answer


def test_details_have_seed_prefill_and_top_tokens(client: InferenceClient) -> None:
    answer = client.text_generation(
        FRANCE,
        max_new_tokens=8,
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
        do_sample=True,
        seed=7,
    )
    assert answer.details.finish_reason == "length"
    assert answer.details.seed == 7
    assert answer.details.prefill[0].text == "The"
    assert answer.details.prefill[0].logprob is None
    assert answer.generated_text == FRANCE + "".join(token.text for token in answer.details.tokens)
    assert len(answer.details.top_tokens[0]) == 2


def test_streamed_text_equals_the_whole_text(client: InferenceClient) -> None:
    whole = client.text_generation(FRANCE, max_new_tokens=12, return_full_text=False)
    assert "".join(client.text_generation(FRANCE, max_new_tokens=12, stream=True)) == whole
    *parts, last = client.text_generation(
        FRANCE, max_new_tokens=12, stream=True, details=True, return_full_text=False
    )
    assert all(part.generated_text is None for part in parts)
    assert last.generated_text == whole
    assert last.index == last.details.generated_tokens == 12
    assert last.details.input_length == 5


def test_all_parameters_can_be_combined(client: InferenceClient) -> None:
    answer = client.text_generation(
        FRANCE,
        adapter_id=None,
        best_of=2,
        details=True,
        decoder_input_details=True,
        do_sample=True,
        frequency_penalty=0.2,
        grammar={"type": "json", "value": SCHEMA},
        max_new_tokens=60,
        repetition_penalty=1.1,
        return_full_text=False,
        stop=["absent"],
        temperature=0.8,
        top_k=40,
        top_n_tokens=3,
        top_p=0.9,
        truncate=4,
        typical_p=0.9,
        watermark=True,
    )
    assert json.loads(answer.generated_text).keys() == {"city", "rivers"}
    assert len(answer.details.prefill) == 4
    [other] = answer.details.best_of_sequences
    assert json.loads(other.generated_text).keys() == {"city", "rivers"}


def test_invalid_parameters_raise_validation_errors(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="`top_p` must be > "):
        client.text_generation(FRANCE, top_p=2.0)
    with pytest.raises(ValidationError, match="is not supported when streaming tokens"):
        list(client.text_generation(FRANCE, best_of=2, do_sample=True, stream=True))


def test_chat_has_logprobs_and_is_reproducible(client: InferenceClient) -> None:
    answer = client.chat_completion(
        MESSAGES, max_tokens=16, logprobs=True, top_logprobs=2, seed=1, temperature=0.1
    )
    [choice] = answer.choices
    assert choice.message.content
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert answer.usage.completion_tokens == len(choice.logprobs.content)
    again = client.chat.completions.create(messages=MESSAGES, max_tokens=16, seed=1, temperature=0.1)
    assert again.choices[0].message.content == choice.message.content


def test_streamed_chat_equals_the_whole_answer(client: InferenceClient) -> None:
    whole = client.chat_completion(MESSAGES, max_tokens=16).choices[0].message.content
    chunks = list(
        client.chat_completion(MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.total_tokens > 16


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": SCHEMA},
    ],
    ids=lambda response_format: str(response_format["type"]),
)
def test_response_format_can_be_a_schema(response_format: dict[str, Any], client: InferenceClient) -> None:
    answer = client.chat_completion(MESSAGES, response_format=response_format, max_tokens=60)
    assert json.loads(answer.choices[0].message.content).keys() == {"city", "rivers"}


def test_response_format_can_be_a_regular_expression(client: InferenceClient) -> None:
    response_format = {"type": "regex", "value": "(Paris|Rome), [0-9]{3}"}
    answer = client.chat_completion(MESSAGES, response_format=response_format, max_tokens=20)
    assert answer.choices[0].message.content[-5:-3] == ", "


@pytest.mark.parametrize(
    "tool_choice", ["required", {"function": {"name": "get_weather"}}], ids=["any", "named"]
)
def test_tool_calls_match_their_schema_whole_and_streamed(tool_choice: Any, client: InferenceClient) -> None:
    messages = [{"role": "user", "content": "What is the weather in Rome?"}]
    answer = client.chat_completion(messages, tools=[WEATHER], tool_choice=tool_choice, max_tokens=100)
    calls = answer.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments).keys() == {"city"}
    chunks = list(
        client.chat_completion(
            messages, tools=[WEATHER], tool_choice=tool_choice, max_tokens=100, stream=True
        )
    )
    deltas = [
        tool for c in chunks if c.choices for tool in c.choices[0].delta.tool_calls or () if not tool.index
    ]
    assert deltas[0].function.name == "get_weather"
    assert json.loads("".join(delta.function.arguments for delta in deltas)).keys() == {"city"}


def test_a_tool_result_is_valid_input(client: InferenceClient) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
    ]
    assert client.chat_completion(messages, tools=[WEATHER], max_tokens=16).choices[0].message


def test_the_asynchronous_client_gets_equal_texts_whole_and_streamed(server_url: str) -> None:
    async def texts() -> tuple[str, str]:
        async with AsyncInferenceClient(base_url=server_url, timeout=60) as client:
            whole = await client.text_generation(FRANCE, max_new_tokens=8, return_full_text=False)
            parts = [
                part async for part in await client.text_generation(FRANCE, max_new_tokens=8, stream=True)
            ]
            return whole, "".join(parts)

    whole, streamed = asyncio.run(texts())
    assert whole == streamed
