"""Authentication with API_KEY."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import openai
import pytest

from tests.conftest import Server


def test_requests_without_the_key_are_rejected_on_closed_routes(start_server: Callable[..., Server]) -> None:
    server = start_server(API_KEY="let me in").wait_until()
    for path in ("/", "/health", "/ready", "/ui/app.js"):
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/contexts", "/metrics", "/v1/models", "/ui", "/UI/../contexts"):
        assert httpx.get(server.url + path).status_code != 200, path
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"
        assert "let me in" not in str(error.value)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="let me in") as client:
        assert client.models.list().data
    rejected = httpx.post(f"{server.url}/token_stream", json={"query": "x"})
    assert rejected.status_code == 401
    assert rejected.headers["www-authenticate"] == "Bearer"
    assert set(rejected.json()) == {"error", "error_type"}
    assert "let me in" not in server.output()
