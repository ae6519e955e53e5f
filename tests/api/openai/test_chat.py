"""/v1/chat/completions with OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.conftest import Server
from tests.engine.sampling.test_grammar import HARD_SCHEMAS
from tests.tiny_models import TinyModel

MESSAGES: list[Any] = [{"role": "user", "content": "Name a colour."}]


def test_an_answer_has_the_fields_of_the_protocol(client: openai.OpenAI, model_name: str) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=20)
    [choice] = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == model_name, "the served model, not the requested one"
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 20
    assert answer.system_fingerprint
    again = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=20)
    assert again.id != answer.id
    assert again.system_fingerprint == answer.system_fingerprint
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


def test_a_stream_equals_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=24, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in pieces[1:])
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert pieces[-1].choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_has_usage_on_request_only(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=3, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


@pytest.mark.anyio
async def test_the_asynchronous_client_gets_the_same_answer_whole_and_streamed(server_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=90, stop=" ")
        assert answer.choices[0].message.content
        async with client.chat.completions.stream(
            model="m", messages=MESSAGES, max_tokens=90, stop=" "
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == answer.choices[0].message.content


def test_several_choices_differ_and_their_prompt_is_prefilled_once(
    client: openai.OpenAI, server_url: str
) -> None:
    def prefilled() -> float:
        lines = httpx.get(f"{server_url}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("prompt_tokens_total{")).split()[-1])

    before = prefilled()
    fact = "The lighthouse keeper counts geese, swallows and cranes that pass in March. " * 20
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": fact + "What does she count?"}],
        n=4,
        temperature=1.5,
        seed=7,
        max_tokens=16,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) == 4
    assert answer.usage is not None
    assert prefilled() - before < 1.5 * answer.usage.prompt_tokens
    stream = client.chat.completions.create(
        model="m", messages=MESSAGES, n=3, temperature=1.5, max_tokens=8, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert all(texts.values())
    assert sorted(ends) == [0, 1, 2]


def test_equal_seeds_give_equal_answers(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        return (
            client.chat.completions.create(
                model="m", messages=MESSAGES, temperature=2, top_p=1, seed=seed, max_tokens=12
            )
            .choices[0]
            .message.content
        )

    assert ask(-5) == ask(-5)
    assert ask(-5) != ask(6)


def test_best_of_returns_the_likeliest_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        temperature=1.5,
        max_tokens=8,
        n=1,
        logprobs=True,
        seed=3,
        extra_body={"best_of": 4},
    )
    singles = [
        client.chat.completions.create(
            model="m", messages=MESSAGES, temperature=1.5, max_tokens=8, logprobs=True, seed=3 + i
        )
        for i in range(4)
    ]

    def mean(one: Any) -> float:
        found = [token.logprob for token in one.choices[0].logprobs.content]
        return float(sum(found) / len(found))

    assert len(answer.choices) == 1
    # Log-probabilities differ by rounding between batches of one and of four.
    assert mean(answer) >= max(map(mean, singles)) - 0.5


def test_logprobs_cover_the_answer_in_descending_order(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=10, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    data = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert data.decode("utf-8", "ignore") == answer.choices[0].message.content
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob <= values[0]
    chunks = client.chat.completions.create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=10, logprobs=True, top_logprobs=1, stream=True
    )
    streamed = [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert streamed == [token.token for token in logprobs.content]


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    # The schema determines the answer. A greedy answer can differ if its prompt is in the cache.
    words = {"const": "one two three four"}
    schema: dict[str, Any] = {"type": "object", "properties": {"words": words}, "required": ["words"]}
    schema["additionalProperties"] = False
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for stop in ("three", ["absent", "three"]):
        answer = client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            temperature=0,
            max_tokens=60,
            stop=stop,
            response_format=response_format,
        )
        content = answer.choices[0].message.content or ""
        assert "".join(content.split()) == '{"words":"onetwo'
        assert content.endswith('"one two ')
        assert answer.choices[0].finish_reason == "stop"


def test_a_system_message_replaces_the_context_that_the_field_context_selects(
    client: openai.OpenAI,
) -> None:
    def n_prompt(messages: list[Any], **extra: Any) -> int:
        answer = client.chat.completions.create(model="m", messages=messages, max_tokens=1, **extra)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    plain = n_prompt(MESSAGES)
    replaced = n_prompt([{"role": "system", "content": "Hi."}, *MESSAGES])
    developer = n_prompt([{"role": "developer", "content": "Hi."}, *MESSAGES])
    sql = n_prompt(MESSAGES, extra_body={"context": "sql"})
    assert replaced == developer < plain
    assert sql != plain


def test_a_trailing_assistant_message_is_continued(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "Say the days of the week."},
        {"role": "assistant", "content": "Monday, Tuesday, Wednes"},
    ]
    answer = client.chat.completions.create(model="m", messages=messages, temperature=0, max_tokens=12)
    assert (answer.choices[0].message.content or "").startswith("day")
    echoed = client.chat.completions.create(
        model="m", messages=messages, temperature=0, max_tokens=12, extra_body={"echo": True}
    )
    assert echoed.choices[0].message.content == f"Monday, Tuesday, Wednes{answer.choices[0].message.content}"


def test_content_in_parts_equals_content_as_text(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a colour."}],
        }
    ]
    one, other = (
        client.chat.completions.create(model="m", messages=messages, temperature=0, max_tokens=9)
        for messages in (MESSAGES, parts)
    )
    assert one.choices[0].message.content == other.choices[0].message.content


def test_a_message_of_the_client_is_valid_input(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8)
    messages: list[Any] = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "And another?"}]
    assert client.chat.completions.create(model="m", messages=messages, max_tokens=8).choices


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        max_completion_tokens=2,
        user="someone",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        prompt_cache_key="k",
        safety_identifier="s",
        prediction={"type": "content", "content": "blue"},
    ).choices


@pytest.mark.parametrize(
    "fields",
    [
        {"verbosity": "low", "cache_prompt": True, "nonsense": {"a": 1}, "extra_headers": None},
        {"tool_choice": "required", "tools": []},
        {"stop": ""},
        {"stop": ["", "never said"]},
        {"reasoning_effort": "minimal"},
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": None},
                {"role": "user", "content": "Go on"},
            ]
        },
        {
            "messages": [
                *MESSAGES,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "now", "arguments": ""}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "noon"},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}],
                }
            ]
        },
    ],
)
def test_fields_of_other_servers_are_ignored(fields: dict[str, Any], client: openai.OpenAI) -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 2, **fields}
    answer: Any = client.post("/chat/completions", body=body, cast_to=object)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("max_tokens", [-1, 1_000_000])
def test_max_tokens_beyond_the_room_are_reduced_to_it(max_tokens: int, narrow_url: str) -> None:
    messages = [{"role": "user", "content": "x " * 400}]  # a long prompt is quicker than a long answer
    body = {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{narrow_url}/v1/chat/completions", json=body, timeout=90).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    [limit] = {answer["usage"]["total_tokens"]}
    body = {"prompt": "x " * 400, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{narrow_url}/v1/completions", json=body, timeout=90).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == limit


def test_the_schema_of_a_json_object_is_enforced(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        max_tokens=20,
        response_format={"type": "json_object", "schema": schema | {"additionalProperties": False}},  # type: ignore[arg-type,call-overload]
    )
    assert answer.choices[0].message.content == '{"n": 7}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "x", "format": "mp3"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"temperature": 11}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"context": "nowhere"}, "context"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": []},
            "tool_choice.function.name",
        ),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
    ],
)
def test_invalid_fields_are_rejected_by_name(
    fields: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    body = {"model": "m", "messages": MESSAGES} | fields
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", body=body, cast_to=object)
    assert error.value.param == param, error.value.body
    assert error.value.type == "invalid_request_error"
    assert param.split(".")[-1] in error.value.message


# --- structured output


@pytest.mark.parametrize("name", HARD_SCHEMAS)
def test_strict_answers_match_their_schema(name: str, client: openai.OpenAI) -> None:
    schema = HARD_SCHEMAS[name]
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Write JSON."}],
        max_tokens=160,
        temperature=0.7,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "it", "schema": schema, "strict": True},
        },
    )
    [choice] = answer.choices
    if choice.finish_reason == "stop":
        jsonschema.validate(json.loads(choice.message.content or ""), schema)
    else:
        assert choice.finish_reason == "length"


def test_json_object_makes_the_answer_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "A person as JSON with name and age."}],
        max_tokens=200,
        temperature=0,
        response_format={"type": "json_object"},
    )
    content = answer.choices[0].message.content or ""
    assert content.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


class Verdict(BaseModel):
    mood: Literal["positive", "negative"]
    certain: bool


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="m",
        messages=[{"role": "user", "content": "How is 'I love it'?"}],
        response_format=Verdict,
        max_tokens=60,
    )
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_a_hybrid_model_prefills_only_the_edited_last_turn(
    start_server: Callable[..., Server], tiny_model: TinyModel
) -> None:
    server = start_server(MODEL_PATH=str(tiny_model("hybrid")), N_CTX="4096", MAX_SEQUENCES="1")
    client = openai.OpenAI(base_url=f"{server.wait_until().url}/v1", api_key="none")
    system = {"role": "system", "content": "Speak like the keeper of a lighthouse. " * 20}
    n_prefilled = []
    for question in ("Which birds come by in March?", "Who lives here?"):
        messages: list[Any] = [system, {"role": "user", "content": question}]
        answer = client.chat.completions.create(model="m", messages=messages, max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens
        n_prefilled.append(answer.usage.prompt_tokens - (cached or 0))
    assert n_prefilled[0] > 150
    assert n_prefilled[1] < 20
