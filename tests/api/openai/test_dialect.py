"""OpenAI routes over raw HTTP: paths, events, errors, disconnects, a full queue and shutdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.http.problems import problem_of
from app.api.openai.errors import openai_body
from app.service import GenerationFailed, KnowledgeFailed, Loading, Overloaded, ServiceError
from tests.conftest import Server, changed_program
from tests.polling import figure, wait_for, wait_until_none_runs

MESSAGES: list[Any] = [{"role": "user", "content": "Name a colour."}]


def post(url: str, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json={"messages": MESSAGES, "max_tokens": 8} | fields, timeout=60)


def test_a_stream_consists_of_events_and_ends_with_done(server_url: str) -> None:
    response = post(server_url, stream=True, model="m")
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-1])


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_chat_is_served_at_both_paths(path: str, server_url: str) -> None:
    assert post(server_url, path).json()["choices"]


def test_completions_are_served_without_v1(server_url: str) -> None:
    body = {"prompt": "a b c", "max_tokens": 2}
    assert httpx.post(f"{server_url}/completions", json=body, timeout=60).json()["choices"]


def test_the_model_is_optional_and_null_is_the_default(server_url: str) -> None:
    fields = dict.fromkeys(("n", "stop", "tools", "logit_bias", "stream", "response_format"))
    assert post(server_url, **fields).json()["choices"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b'{"messages": "' + b"x" * (1 << 20) + b'"}', 413),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/v1/nothing", b"", 404),
        ("POST", "/chat/completions", b"{}", 400),
    ],
)
def test_errors_have_the_format_of_openai(
    method: str, path: str, content: bytes, status: int, server_url: str
) -> None:
    response = httpx.request(
        method, server_url + path, content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "error",
    [GenerationFailed("x"), Loading("x"), KnowledgeFailed("x"), Overloaded("x")],
    ids=lambda error: type(error).__name__,
)
def test_faults_of_the_server_have_another_error_type(error: ServiceError) -> None:
    assert openai_body(problem_of(error))["error"]["type"] != "invalid_request_error"


def test_errors_of_token_stream_have_another_format(server_url: str) -> None:
    response = httpx.post(f"{server_url}/token_stream", json={"query": "x", "context": "nowhere"})
    assert response.json()["error_type"] == "unknown_context"


def test_a_disconnect_ends_all_choices(server_url: str) -> None:
    for stream in (True, False):
        before = figure(server_url, "generated_tokens_total")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server_url}/v1/chat/completions",
                json={"messages": MESSAGES, "max_tokens": 1500, "ignore_eos": True, "n": 4, "stream": stream},
                timeout=httpx.Timeout(10, read=0.001 if stream else 0.5),
            )
        wait_until_none_runs(server_url)
        assert figure(server_url, "generated_tokens_total") - before < 1500


def test_a_full_queue_is_answered_429_with_retry_after(narrow_url: str) -> None:
    def ask(_: int) -> httpx.Response:
        return post(narrow_url, max_tokens=60, ignore_eos=True)

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(ask, range(6)))
    rejected = [response for response in responses if response.status_code == 429]
    assert rejected
    assert len(rejected) < 6
    assert all(response.headers["retry-after"] for response in rejected)
    assert rejected[0].json()["error"]["type"] == "rate_limit_error"
    # A request for more answers than the queue has room for is rejected as a whole.
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, narrow_url, max_tokens=300, ignore_eos=True)
        wait_for(lambda: figure(narrow_url, "running_requests"))
        assert post(narrow_url, n=2).status_code == 429
        assert other.result().status_code == 200
    assert post(narrow_url).status_code == 200


def test_a_stream_in_the_queue_gets_keep_alive_comments(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    change = "from app.api.http import answering\nanswering.KEEP_ALIVE_AFTER = 0.1"
    program = changed_program(tmp_path, change)
    server = start_server(program, MAX_SEQUENCES="1", N_CTX="1024").wait_until()
    with ThreadPoolExecutor(1) as pool:
        blocking = pool.submit(
            httpx.post,
            f"{server.url}/v1/completions",
            json={"prompt": "Once", "max_tokens": 250, "ignore_eos": True},
            timeout=300,
        )
        wait_for(lambda: figure(server.url, "running_requests"))
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={"messages": MESSAGES, "max_tokens": 4, "stream": True},
            timeout=300,
        ) as response:
            first, *others = response.iter_lines()
            assert first == ": keep-alive"
            lines = [line for line in others if line.startswith("data: {")]
        assert json.loads(lines[0].removeprefix("data: "))["choices"]
        assert blocking.result().status_code == 200


def test_a_shutdown_is_an_error_in_answers_and_streams(start_server: Callable[..., Server]) -> None:
    server = start_server(SHUTDOWN_GRACE="0.5", N_CTX="32768").wait_until()
    body = {"messages": MESSAGES, "max_tokens": 3000, "ignore_eos": True}

    def ask(path: str, **more: Any) -> httpx.Response:
        return httpx.post(server.url + path, json=body | more, timeout=60)

    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(ask, "/v1/chat/completions")
        streamed = pool.submit(ask, "/v1/chat/completions", stream=True)
        token_stream = pool.submit(ask, "/token_stream", details=True)
        wait_for(lambda: figure(server.url, "running_requests") == 3)
        begun = figure(server.url, "generated_tokens_total")
        wait_for(lambda: figure(server.url, "generated_tokens_total") > begun + 30)
        assert server.stop() == 0, server.output()
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "shutting_down"
        *_, event, rest = streamed.result().text.split("\n\n")
        assert rest == ""
        name, data = event.split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert json.loads(token_stream.result().text.rpartition("\x1e")[2])["error_type"] == "shutting_down"
    assert "without" not in server.output(), "uvicorn logs a missing response"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 128}, "n"),
        ("/v1/completions", {"prompt": ["a"] * 64, "n": 2}, "prompt"),
    ],
)
def test_more_answers_than_the_queue_holds_are_answered_400(
    path: str, fields: dict[str, Any], param: str, narrow_url: str
) -> None:
    response = httpx.post(narrow_url + path, json=fields, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("schema", [{"type": "integer", "multipleOf": 99999989}, {"multipleOf": 0.000001}])
def test_a_schema_too_large_to_compile_is_rejected(schema: Any, server_url: str) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    function = {"name": "f", "parameters": {"properties": {"a": schema}}, "strict": True}
    tool = {"type": "function", "function": function}
    for fields in ({"response_format": response_format}, {"tools": [tool], "tool_choice": "required"}):
        response = post(server_url, **fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"].startswith(("response_format", "tools"))
