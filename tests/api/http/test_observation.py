"""Request ids and log lines of a server with LOG_FORMAT=json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server, running_server
from tests.polling import wait_for

SECRET = "Zanzibarquux"  # in prompts, answers and invalid values


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("json_log") / "log"
    with running_server(log, LOG_FORMAT="json", LOG_LEVEL="debug") as server:
        yield server


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.output().splitlines()]


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    """The only log line at the end of a request. It may follow the response."""

    def found() -> list[dict[str, Any]]:
        return [
            one for one in lines(server) if (one.get("request_id"), one["event"]) == (request_id, "request")
        ]

    wait_for(found)
    [line] = found()
    return line


def ask(server: Server, request_id: str, path: str = "/token_stream", **body: Any) -> httpx.Response:
    body = {"query": f"Repeat: {SECRET}", "max_tokens": 6, "ignore_eos": True} | body
    return httpx.post(server.url + path, json=body, headers={"X-Request-ID": request_id}, timeout=60)


def test_a_request_is_one_line_with_its_figures(server: Server) -> None:
    assert ask(server, "figures-1", context="sql").headers["x-request-id"] == "figures-1"
    line = line_of(server, "figures-1")
    expected = {
        "event": "request",
        "level": "info",
        "method": "POST",
        "route": "/token_stream",
        "status": 200,
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "context": "sql",
        "generated_tokens": 6,
        "finish_reason": "length",
    }
    assert line | expected == line
    assert 0 < line["cached_tokens"] < line["prompt_tokens"]  # the context is prefilled
    assert 0 <= line["queue_seconds"] <= line["time_to_first_token"] <= line["seconds"]
    assert line["tokens_per_second"] > 0


@pytest.mark.parametrize("given", ["", "two words", "line\u0085break", "x" * 129])
def test_other_request_ids_are_replaced(server: Server, given: str) -> None:
    response = httpx.get(server.url + "/contexts", headers={"X-Request-ID": given.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert line_of(server, response.headers["x-request-id"])["status"] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "route", "error"),
    [
        ("/v1/chat/completions", {"messages": SECRET}, 400, "/v1/chat/completions", "validation"),
        ("/token_stream", {"context": SECRET}, 404, "/token_stream", "unknown_context"),
        (f"/{SECRET}", {}, 404, "unknown", "not_found"),
        (f"/v1/models/{SECRET}", {}, 405, "/v1/models/{name:path}", "method_not_allowed"),
    ],
)
def test_errors_have_the_id_and_a_line_with_their_kind(
    server: Server, path: str, body: dict[str, Any], status: int, route: str, error: str
) -> None:
    response = ask(server, f"error-{error}", path, **body)
    assert (response.status_code, response.headers["x-request-id"]) == (status, f"error-{error}")
    line = line_of(server, f"error-{error}")
    assert (line["status"], line["route"], line["error"]) == (status, route, error)


def test_a_cancelled_answer_is_logged_as_cancelled(server: Server) -> None:
    body = {"query": "Count.", "max_tokens": 1000, "ignore_eos": True}
    headers = {"X-Request-ID": "cancelled-1"}
    with httpx.stream("POST", server.url + "/token_stream", json=body, headers=headers) as response:
        next(response.iter_text())
    line = line_of(server, "cancelled-1")
    assert line["finish_reason"] == "cancelled"
    assert 0 < line["generated_tokens"] < 1000


def test_no_text_of_a_user_is_logged(server: Server) -> None:
    """After the other tests of this module, whose requests contain the text."""
    ask(server, "text-1")
    line_of(server, "text-1")
    schema = {"type": "object", "properties": {SECRET: {"type": "string", "pattern": f"({SECRET}"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": SECRET, "schema": schema}}
    messages = [{"role": "user", "content": SECRET}]
    ask(server, "text-2", "/v1/chat/completions", messages=messages, response_format=wanted)
    line_of(server, "text-2")
    assert SECRET not in server.output()
    assert {one["level"] for one in lines(server)} >= {"debug", "info"}


def test_log_content_adds_prompt_and_answer(start_server: Callable[..., Server]) -> None:
    server = start_server(LOG_FORMAT="json", LOG_CONTENT="on").wait_until()
    answer = ask(server, "content-1").text
    line = line_of(server, "content-1")
    assert line["prompt"] == f"user: Repeat: {SECRET}"
    assert line["answer"] == answer


def test_log_lines_of_faults_name_the_request(start_server: Callable[..., Server], tmp_path: Path) -> None:
    from tests.conftest import changed_program

    change = """
from app.chat.prompt import PromptTokenizer
from app.engine.engine import Engine
choose, n = Engine._choose, 0
def fail(*arguments):
    global n
    n += 1
    if n == 3:
        raise RuntimeError("forced in the engine")
    return choose(*arguments)
Engine._choose = fail
chat = PromptTokenizer.chat
def reject(self, messages, *arguments, **options):
    if messages[-1].content == "prepare":
        raise RuntimeError("forced in preparation")
    return chat(self, messages, *arguments, **options)
PromptTokenizer.chat = reject
"""
    server = start_server(changed_program(tmp_path, change), LOG_FORMAT="json").wait_until()
    assert ask(server, "fault-2", query="prepare").status_code == 500
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server, "fault-1")
    line_of(server, "fault-1")
    faults = {one["request_id"]: one for one in lines(server) if "exception" in one}
    assert "forced in the engine" in faults["fault-1"]["exception"]
    assert "forced in preparation" in faults["fault-2"]["exception"]
    assert line_of(server, "fault-1") | {"error": "generation", "finish_reason": "error"} == line_of(
        server, "fault-1"
    )
    assert line_of(server, "fault-2")["error"] == "internal"
