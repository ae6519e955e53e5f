"""Ollama's own client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import jsonschema
import ollama
import pytest

from tests.conftest import KEY, Server

pytestmark = pytest.mark.slow

QUESTION: list[Mapping[str, Any]] = [{"role": "user", "content": "Where is located Paris ?"}]
GREEDY = {"temperature": 0, "num_predict": 20}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server_url(embedding_url: str) -> str:
    return embedding_url


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=server_url) as client:
        yield client


def test_a_stream_is_the_complete_answer_with_figures(client: ollama.Client) -> None:
    whole = client.chat("any", QUESTION, options=GREEDY)
    assert whole.message.role == "assistant"
    assert "Paris" in str(whole.message.content)
    *parts, last = client.chat("any", QUESTION, options=GREEDY, stream=True)
    assert len(parts) > 3
    assert not any(part.done for part in parts)
    assert "".join(str(part.message.content) for part in parts) == whole.message.content
    for end in (whole, last):
        assert (end.done, end.eval_count) == (True, whole.eval_count)
        assert end.done_reason == ("length" if end.eval_count == 20 else "stop")
        assert end.prompt_eval_count == whole.prompt_eval_count
        assert end.total_duration == (end.prompt_eval_duration or 0) + (end.eval_duration or 0)
        assert end.eval_duration


def test_generate_answers_like_a_conversation_and_raw_continues_the_text(client: ollama.Client) -> None:
    question = str(QUESTION[0]["content"])
    chat = client.chat("any", QUESTION, options=GREEDY)
    answer = client.generate("any", question, options=GREEDY)
    assert (answer.response, answer.prompt_eval_count) == (chat.message.content, chat.prompt_eval_count)
    parts = [*client.generate("any", question, options=GREEDY, stream=True)]
    assert "".join(part.response for part in parts) == answer.response
    with_system = client.generate("any", question, system="Be brief.", options=GREEDY)
    alike = client.chat("any", [{"role": "system", "content": "Be brief."}, *QUESTION], options=GREEDY)
    assert with_system.response == alike.message.content
    raw = client.generate("any", "The capital of France is", raw=True, options=GREEDY | {"stop": ["."]})
    assert raw.prompt_eval_count == 5
    assert raw.response.startswith(" Paris")
    assert "." not in raw.response


def test_options_determine_the_sampling(client: ollama.Client) -> None:
    options = {"temperature": 2.0, "seed": 7, "num_predict": 12, "top_k": 1000, "top_p": 1.0, "num_ctx": 64}
    first, again = (client.generate("any", "Tell a story.", options=options).response for _ in range(2))
    assert first == again
    assert client.generate("any", "Tell a story.", options=options | {"seed": 8}).response != first
    assert client.generate("any", "Say it.", options={"num_predict": 1}).eval_count == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_format_determines_the_answer(client: ollama.Client, stream: bool) -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    message = [{"role": "user", "content": "I love it."}]
    answer: Any = client.chat("any", message, format=schema, options=GREEDY, stream=stream)
    text = "".join(part.message.content for part in answer) if stream else answer.message.content
    jsonschema.validate(json.loads(text), schema)
    made = client.generate(
        "any", "Name a colour as JSON.", format="json", options={"num_predict": 60}
    ).response
    assert made.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_objects_and_their_results_extend_the_conversation(
    client: ollama.Client, stream: bool
) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
    messages: list[Any] = [
        {"role": "user", "content": "Weather of Rome? Call get_weather for Rome, then for Oslo. Only call."},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "12 degrees"},
        {"role": "user", "content": "Now call it for Oslo."},
    ]
    made: Any = client.chat(
        "any", messages, tools=[tool], options={"temperature": 0, "num_predict": 60}, stream=stream
    )
    lines = [*made] if stream else [made]
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    text = "".join(line.message.content or "" for line in lines)
    assert calls or text
    assert "<tool_call>" not in text
    for call in calls:
        assert call.function.name == "get_weather"
        jsonschema.validate(call.function.arguments, WEATHER)


def test_thoughts_are_separate_from_the_answer(thinking_url: str) -> None:
    options = {"temperature": 0, "num_predict": 40}
    schema = {"enum": ["Paris", "Rome"]}
    with ollama.Client(host=thinking_url) as thinker:
        name = str(thinker.list().models[0].model)
        assert "thinking" in (thinker.show(name).capabilities or ())
        whole = thinker.chat("any", QUESTION, think=True, options=options)
        assert whole.message.thinking
        parts = [*thinker.chat("any", QUESTION, think=True, options=options, stream=True)]
        assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        generated = thinker.generate("any", str(QUESTION[0]["content"]), think=True, options=options)
        assert (generated.thinking, generated.response) == (whole.message.thinking, whole.message.content)
        plain = thinker.chat("any", QUESTION, think=False, format=schema, options=options)
        assert plain.message.thinking is None
        assert json.loads(str(plain.message.content)) in ("Paris", "Rome")
        history = [{"role": "assistant", "content": "Paris.", "thinking": "It is a city."}]
        assert thinker.chat("any", [*QUESTION, *history, *QUESTION], options=options).done


def test_log_probabilities_spell_the_answer(client: ollama.Client) -> None:
    answer = client.chat("any", QUESTION, logprobs=True, top_logprobs=2, options=GREEDY)
    assert answer.logprobs
    assert "".join(one.token for one in answer.logprobs) == answer.message.content
    assert all(len(one.top_logprobs or ()) == 2 for one in answer.logprobs)
    parts = client.generate("any", "Say it.", logprobs=True, options={"num_predict": 3}, stream=True)
    assert sum(len(part.logprobs or ()) for part in parts) == 3


def test_vectors_are_those_of_openai(client: ollama.Client, server_url: str) -> None:
    texts = ["When does the bridge open?", "It opens at six."]
    body = httpx.post(f"{server_url}/v1/embeddings", json={"input": texts}, timeout=60).json()
    expected = [pytest.approx(entry["embedding"], abs=1e-5) for entry in body["data"]]
    made = client.embed("any", texts)
    assert made.embeddings == expected
    assert made.prompt_eval_count == body["usage"]["prompt_tokens"]
    assert client.embed("any", texts[0]).embeddings == expected[:1]
    assert client.embeddings("any", texts[1]).embedding == expected[1]
    assert client.embed("any", []).embeddings == []
    long = "word " * 2000
    assert len(client.embed("any", long).embeddings) == 1
    with pytest.raises(ollama.ResponseError, match="the maximum of all-MiniLM-L6-v2 is"):
        client.embed("any", long, truncate=False)


def test_models_are_listed_and_described(client: ollama.Client, server_url: str) -> None:
    names = [entry["id"] for entry in httpx.get(f"{server_url}/v1/models").json()["data"]]
    listed, loaded = client.list().models, client.ps().models
    assert [entry.model for entry in listed] == [entry.model for entry in loaded] == names
    assert listed[0].details
    assert (listed[0].details.family, listed[0].details.quantization_level) == ("llama", "Q4_1")
    assert (listed[0].size or 0) > 90e6
    language, embedding = (client.show(name) for name in names)
    assert language.capabilities == ["completion", "tools"]
    assert "<|im_start|>" in str(language.template)
    assert embedding.capabilities == ["embedding"]
    assert embedding.modelinfo
    assert embedding.modelinfo["bert.embedding_length"] == 384
    assert client.show(f"{names[0]}:latest").details == language.details
    version = httpx.get(f"{server_url}/api/version").json()["version"]
    assert [*map(int, version.split("."))] >= [0, 6, 4], "editors require a version"


def test_one_model_is_described_and_pulled_by_any_name_as_it_answers(client: ollama.Client) -> None:
    name = str(client.list().models[0].model)
    assert client.show("llama3").modelinfo == client.show(name).modelinfo
    for served in (name, f"{name}:latest"):
        assert client.pull(served).status == "success"
        assert [part.status for part in client.pull(served, stream=True)] == ["success"]
    assert client.pull("llama3").status == "success"
    told, status = (str(part.status) for part in client.pull("llama3", stream=True))
    assert (f"{name} answers under any name" in told, status) == (True, "success")
    assert "start it with MODEL_PATH" in told
    assert client.chat("llama3", QUESTION, options={"num_predict": 1}).model == name


def test_a_request_without_a_prompt_tells_that_the_model_is_loaded(client: ollama.Client) -> None:
    assert client.generate("any").done_reason == "load"
    assert client.generate("any", suffix="").done_reason == "load"
    assert client.generate("any", "Hello", suffix="", options={"num_predict": 1}).done_reason == "length"
    assert client.chat("any").done_reason == "load"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role: should be 'system', 'user'"),
        ({"messages": [{"role": "user", "content": "a", "images": ["QQ=="]}]}, "messages.0.images: is not"),
        ({"messages": QUESTION, "options": {"temperature": -1}}, "options.temperature: should be"),
        ({"messages": QUESTION, "format": {"type": "nothing"}}, "format: cannot be enforced"),
        ({"messages": QUESTION, "format": "xml"}, "format: should be"),
        ({"messages": [{"role": "user", "content": "a " * 20_000}]}, "messages: the request has"),
    ],
)
def test_errors_name_the_field(server_url: str, fields: dict[str, Any], message: str) -> None:
    response = httpx.post(f"{server_url}/api/chat", json={"model": "any"} | fields, timeout=60)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_a_stream_can_be_cut_by_the_client(client: ollama.Client, server_url: str) -> None:
    stream = client.chat("any", QUESTION, options={"num_predict": 500, "ignore_eos": True}, stream=True)
    assert next(iter(stream)).done is False
    stream.close()
    client.generate("any", "Say it.", options={"num_predict": 1})


def test_a_failure_is_the_last_line_of_a_stream(start_server: Callable[..., Server]) -> None:
    server = start_server(SHUTDOWN_GRACE="0").wait_until()
    endless = {"num_predict": 1500, "ignore_eos": True}
    with ollama.Client(host=server.url) as client:
        stream = client.chat("any", QUESTION, options=endless, stream=True)
        assert next(iter(stream)).done is False
        server.process.terminate()
        with pytest.raises(ollama.ResponseError, match="the server is shutting down"):
            list(stream)


def test_the_key_is_required(locked_server: Server) -> None:
    with ollama.Client(host=locked_server.url) as client, pytest.raises(ollama.ResponseError) as error:
        client.list()
    assert error.value.status_code == 401
    with ollama.Client(host=locked_server.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert client.list().models
