"""POST /invocations: the body selects the dialect."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

TEXT: dict[str, Any] = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8}}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where is located Paris ?"}],
    "max_tokens": 8,
}
COMPLETION: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 8}


def invoke(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/invocations", json=body, timeout=60)


def test_answers_equal_those_of_the_dialects_own_route(server_url: str) -> None:
    for body, path in ((TEXT, "/"), (CHAT, "/v1/chat/completions"), (COMPLETION, "/v1/completions")):
        own = httpx.post(server_url + path, json=body, timeout=60).json()
        invoked = invoke(server_url, body).json()
        if isinstance(own, dict):
            assert invoked["choices"] == own["choices"]
            assert invoked["object"] == own["object"]
        else:
            assert invoked == own


def test_inputs_take_precedence_over_messages(server_url: str) -> None:
    assert "generated_text" in invoke(server_url, CHAT | TEXT).json()[0]


@pytest.mark.parametrize(
    ("body", "begin"),
    [(TEXT, "data:{"), (CHAT, "data: {"), (COMPLETION, "data: {")],
    ids=["text", "chat", "completion"],
)
def test_each_dialect_can_stream(body: dict[str, Any], begin: str, server_url: str) -> None:
    response = invoke(server_url, body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(begin)
    assert response.text.count("data:") > 7


@pytest.mark.parametrize("body", [{}, {"messages": 3}, {"prompt": {}}, {"inputs": 3}], ids=str)
def test_a_body_of_no_dialect_is_rejected(body: dict[str, Any], server_url: str) -> None:
    response = invoke(server_url, body)
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
