"""Keys of prefixes in responses."""

from __future__ import annotations

import httpx
import pytest
from starlette.datastructures import Headers

from app.api.http.affinity import N_TOKENS, prefix_key


def test_prompts_with_a_common_prefix_share_a_key() -> None:
    prefix, none = list(range(N_TOKENS)), Headers()
    assert prefix_key(none, [*prefix, 1]) == prefix_key(none, [*prefix, 2, 3])
    assert prefix_key(none, [*prefix[:-1], 0]) != prefix_key(none, prefix)
    assert prefix_key(none, prefix[:8]) != prefix_key(none, prefix[:7])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/token_stream", {"query": "hi", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "model": "m"}),
        ("/generate", {"inputs": "hi", "parameters": {"max_new_tokens": 1}}),
        ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}),
    ],
)
def test_answers_have_the_key_of_their_request(server_url: str, path: str, body: dict[str, object]) -> None:
    new = httpx.post(server_url + path, json=body).headers["X-Prefix-Key"]
    assert len(new) == 16
    assert httpx.post(server_url + path, json=body).headers["X-Prefix-Key"] == new
    sent = {"X-Prefix-Key": "conversation-7"}
    assert httpx.post(server_url + path, json=body, headers=sent).headers["X-Prefix-Key"] == "conversation-7"


def test_an_invalid_key_is_not_returned(server_url: str) -> None:
    headers = {"X-Prefix-Key": "x" * 129}
    response = httpx.post(
        server_url + "/token_stream", json={"query": "hi", "max_tokens": 1}, headers=headers
    )
    assert len(response.headers["X-Prefix-Key"]) == 16
