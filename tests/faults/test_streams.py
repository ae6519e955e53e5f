"""Streams that end because the engine fails in the middle of an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server, changed_program

FAULT = """
from app.engine.engine import Engine

choose = Engine._choose

def failing(engine, sequence, row):
    if sequence.n_generated == 2:
        raise RuntimeError("no third token")
    return choose(engine, sequence, row)

Engine._choose = failing
"""
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def failing_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose answers fail before their third token."""
    folder = tmp_path_factory.mktemp("failing")
    contexts = folder / "contexts.toml"
    contexts.write_text("[contexts.general]\nprompt = 'Answer.'\n")
    settings = {"N_CTX": "512", "MAX_SEQUENCES": "1", "CONTEXTS_FILE": str(contexts)}
    server = Server(folder / "log", program=changed_program(folder, FAULT), **settings)
    try:
        yield server.wait_until().url
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()


def events(url: str, path: str, **body: Any) -> list[Any]:
    headers = {"X-Request-ID": "known"}
    response = httpx.post(
        f"{url}{path}", json={"model": "m", "stream": True} | body, headers=headers, timeout=60
    )
    assert response.status_code == 200
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def test_responses_end_with_response_failed(failing_url: str) -> None:
    *before, last = events(failing_url, "/v1/responses", input="Tell me a story.")
    assert [event["sequence_number"] for event in [*before, last]] == list(range(len(before) + 1))
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert any(event["type"] == "response.output_text.delta" for event in before)


def test_messages_end_with_an_error_event(failing_url: str) -> None:
    *before, last = events(failing_url, "/v1/messages", messages=MESSAGES, max_tokens=20)
    assert last["type"] == "error"
    assert (last["error"]["type"], last["request_id"]) == ("api_error", "known")
    assert any(event["type"] == "content_block_delta" for event in before)


def test_chat_ends_with_an_error(failing_url: str) -> None:
    *before, last = events(failing_url, "/v1/chat/completions", messages=MESSAGES)
    assert last["error"]["code"] == "generation_failed"
    assert "no third token" in last["error"]["message"]
    assert any(chunk["choices"][0]["delta"].get("content") for chunk in before)
