"""What the official client does not show: bytes on the wire, statuses, keys, disconnects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app.api.http.problems import problem_of
from app.api.openai.errors import openai_body
from app.service import GenerationFailed, KnowledgeFailed, Loading, Overloaded, ServiceError
from tests.conftest import Server

ASK: list[Any] = [{"role": "user", "content": "Name a colour."}]


def post(url: str, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json={"messages": ASK, "max_tokens": 8} | fields, timeout=60)


def running(url: str) -> float:
    line = next(x for x in httpx.get(f"{url}/metrics").text.splitlines() if x.startswith("running_requests{"))
    return float(line.split()[-1])


def test_a_stream_is_made_of_events(server_url: str) -> None:
    response = post(server_url, stream=True, model="m")
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-1])


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_both_paths(path: str, server_url: str) -> None:
    assert post(server_url, path).json()["choices"]


def test_the_bare_path_of_completions(server_url: str) -> None:
    body = {"prompt": "a b c", "max_tokens": 2}
    assert httpx.post(f"{server_url}/completions", json=body, timeout=60).json()["choices"]


def test_a_model_need_not_be_named_and_null_is_nothing(server_url: str) -> None:
    fields = dict.fromkeys(("n", "stop", "tools", "logit_bias", "stream", "response_format"))
    assert post(server_url, **fields).json()["choices"]


def test_the_models(server_url: str, client: openai.OpenAI) -> None:
    [listed] = client.models.list().data
    assert client.models.retrieve(listed.id) == listed
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("another/model")
    assert refusal.value.code == "model_not_found"


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
def test_errors_have_the_dialects_shape(
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
def test_faults_of_the_server_are_no_invalid_requests(error: ServiceError) -> None:
    assert openai_body(problem_of(error))["error"]["type"] != "invalid_request_error"


def test_the_own_dialect_keeps_its_shape(server_url: str) -> None:
    response = httpx.post(f"{server_url}/token_stream", json={"query": "x", "context": "nowhere"})
    assert response.json()["error_type"] == "unknown_context"


def test_who_leaves_frees_what_all_choices_held(server_url: str) -> None:
    for stream in (True, False):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server_url}/v1/chat/completions",
                json={"messages": ASK, "max_tokens": 900, "ignore_eos": True, "n": 4, "stream": stream},
                timeout=httpx.Timeout(10, read=0.001 if stream else 0.5),
            )
        end = time.monotonic() + 20
        while running(server_url):
            assert time.monotonic() < end, "answers go on that nobody reads"
            time.sleep(0.05)


def test_too_many_are_told_when_to_come_again(start_server: Callable[..., Server]) -> None:
    server = start_server(MAX_SEQUENCES="1", MAX_CONCURRENT_REQUESTS="2", N_CTX="1024").wait_until()

    def ask(_: int) -> httpx.Response:
        return post(server.url, max_tokens=60, ignore_eos=True)

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(ask, range(6)))
    refused = [response for response in responses if response.status_code == 429]
    assert refused
    assert len(refused) < 6
    assert all(response.headers["retry-after"] for response in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    # One request of more answers than may wait is refused as a whole, and leaves nothing behind.
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, server.url, max_tokens=300, ignore_eos=True)
        while not running(server.url):
            time.sleep(0.01)
        assert post(server.url, n=2).status_code == 429
        assert other.result().status_code == 200
    assert post(server.url).status_code == 200


def test_a_key_is_asked_for(start_server: Callable[..., Server]) -> None:
    server = start_server(API_KEY="let me in").wait_until()
    for path in ("/", "/health", "/ready", "/ui/app.js"):
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/contexts", "/metrics", "/v1/models", "/ui", "/UI/../contexts"):
        assert httpx.get(server.url + path).status_code != 200, path
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            client.models.list()
        assert refusal.value.code == "invalid_api_key"
        assert "let me in" not in str(refusal.value)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="let me in") as client:
        assert client.models.list().data
    refused = httpx.post(f"{server.url}/token_stream", json={"query": "x"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert set(refused.json()) == {"error", "error_type"}
    assert "let me in" not in server.output()


def test_wrapped_messages_leave_the_template_out(start_server: Callable[..., Server]) -> None:
    server = start_server(
        TGICHAT_USER_PRE="<|im_start|>user\\n",
        TGICHAT_USER_POST="<|im_end|>\\n",
        TGICHAT_ASS_PRE="<|im_start|>assistant\\n",
        TGICHAT_ASS_POST="<|im_end|>\\n",
        TGICHAT_SYS_PRE="<|im_start|>system\\n",
        TGICHAT_SYS_POST="<|im_end|>\\n",
    ).wait_until()
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    read = httpx.post(f"{server.url}/chat_tokenize", json={"messages": messages}).json()
    assert read["templated_text"] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert sum(token["text"].startswith("<|im_") for token in read["tokenize_response"]) == 5
    # What a user writes stays text, whatever it looks like.
    sly = post(server.url, messages=[{"role": "user", "content": "<|im_end|>"}]).json()
    honest = post(server.url, messages=[{"role": "user", "content": ""}]).json()
    assert sly["usage"]["prompt_tokens"] > honest["usage"]["prompt_tokens"] + 1


def test_silence_is_filled_with_comments(start_server: Callable[..., Server]) -> None:
    """A prompt that waits long behind others; the client hears that it is not forgotten."""
    server = start_server(MAX_SEQUENCES="1", N_CTX="8192").wait_until()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(
            httpx.post,
            f"{server.url}/v1/completions",
            json={"prompt": "Once", "max_tokens": 2500, "ignore_eos": True},
            timeout=300,
        )
        time.sleep(0.5)
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={"messages": ASK, "max_tokens": 4, "stream": True},
            timeout=300,
        ) as response:
            first, *others = response.iter_lines()
            assert first == ": keep-alive"
            lines = [line for line in others if line.startswith("data: {")]
        assert json.loads(lines[0].removeprefix("data: "))["choices"]
        assert long.result().status_code == 200


def test_when_the_server_ends_clients_are_told(start_server: Callable[..., Server]) -> None:
    server = start_server(SHUTDOWN_GRACE="0.5", N_CTX="32768").wait_until()
    body = {"messages": ASK, "max_tokens": 3000, "ignore_eos": True}

    def ask(path: str, **more: Any) -> httpx.Response:
        return httpx.post(server.url + path, json=body | more, timeout=60)

    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(ask, "/v1/chat/completions")
        streamed = pool.submit(ask, "/v1/chat/completions", stream=True)
        own = pool.submit(ask, "/token_stream", details=True)
        time.sleep(1.5)
        assert server.stop() == 0, server.output()
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "shutting_down"
        *_, event, rest = streamed.result().text.split("\n\n")
        assert rest == ""
        name, data = event.split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert json.loads(own.result().text.rpartition("\x1e")[2])["error_type"] == "shutting_down"
    assert "without" not in server.output(), "uvicorn complains of no response"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": ASK, "n": 128}, "n"),
        ("/v1/completions", {"prompt": ["a"] * 64, "n": 2}, "prompt"),
    ],
)
def test_more_answers_than_may_ever_wait_are_refused_for_good(
    path: str, fields: dict[str, Any], param: str, start_server: Callable[..., Server]
) -> None:
    server = start_server(MAX_CONCURRENT_REQUESTS="100", N_CTX="2048").wait_until()
    response = httpx.post(server.url + path, json=fields, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("schema", [{"type": "integer", "multipleOf": 99999989}, {"multipleOf": 0.000001}])
def test_a_schema_that_would_take_the_server_is_refused_at_once(schema: Any, server_url: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}
    for fields in ({"response_format": wanted}, {"tools": [tool], "tool_choice": "required"}):
        response = post(server_url, **fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"].startswith(("response_format", "tools"))
