"""Requests to the TGI routes over raw HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx

FRANCE = "The capital of France is"


def post(
    url: str, path: str = "/generate", *, inputs: str = FRANCE, stream: bool | None = None, **parameters: Any
) -> httpx.Response:
    """POST a request. The body has ``stream`` only if it is not None."""
    body: dict[str, Any] = {"inputs": inputs, "parameters": {"max_new_tokens": 8} | parameters}
    if stream is not None:
        body["stream"] = stream
    return httpx.post(url + path, json=body, timeout=60)


def generate(url: str, **options: Any) -> dict[str, Any]:
    """The JSON answer of /generate."""
    response = post(url, **options)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text(url: str, **options: Any) -> str:
    """The text that /generate returns."""
    return str(generate(url, **options)["generated_text"])


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream in TGI's format."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(line.startswith("data:{") for line in lines), lines
    return [json.loads(line.removeprefix("data:")) for line in lines]


def stream(url: str, **options: Any) -> list[dict[str, Any]]:
    """The events of /generate_stream."""
    return events(post(url, "/generate_stream", **options))
