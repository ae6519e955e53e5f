"""Authentication with API_KEY."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.conftest import KEY, Server


def test_requests_without_the_key_are_rejected_on_closed_routes(locked_server: Server) -> None:
    url = locked_server.url
    for path in ("/", "/health", "/ready", "/ui/app.js"):
        assert httpx.get(url + path).status_code == 200
    for path in ("/contexts", "/metrics", "/v1/models", "/ui", "/UI/../contexts"):
        assert httpx.get(url + path).status_code != 200, path
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"
        assert KEY not in str(error.value)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        assert client.models.list().data
    rejected = httpx.post(f"{url}/token_stream", json={"query": "x"})
    assert rejected.status_code == 401
    assert rejected.headers["www-authenticate"] == "Bearer"
    assert set(rejected.json()) == {"error", "error_type"}
    assert KEY not in locked_server.output()
