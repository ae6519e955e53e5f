"""Authentication with API_KEY and API_KEYS, and the limits of keys."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.conftest import KEY, Server, running_server
from tests.polling import figure, wait_for

KEYS = """
[keys.free]
key = "free key"
[keys.sql]
key = "sql key"
contexts = ["sql"]
[keys.other]
key = "other key"
models = ["Qwen*"]
[keys.single]
key = "single key"
max_running = 1
max_waiting = 0
[keys.urgent]
key = "urgent key"
max_priority = 5
[keys.slow]
key = "slow key"
tokens_per_minute = 1
"""


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
    assert httpx.get(f"{url}/contexts", headers={"X-API-Key": KEY}).status_code == 200
    rejected = httpx.post(f"{url}/token_stream", json={"query": "x"})
    assert rejected.status_code == 401
    assert rejected.headers["www-authenticate"] == "Bearer"
    assert set(rejected.json()) == {"error", "error_type"}
    assert KEY not in locked_server.output()


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server with KEYS, and with KEY as its API_KEY."""
    folder = tmp_path_factory.mktemp("limited_server")
    (folder / "keys.toml").write_text(KEYS)
    with running_server(folder / "log", API_KEYS=str(folder / "keys.toml"), API_KEY=KEY) as server:
        yield server


def ask(server: Server, key: str, path: str = "/token_stream", **body: object) -> httpx.Response:
    if path == "/token_stream":
        body = {"query": "Hi", "max_tokens": 1} | body
    return httpx.post(server.url + path, json=body, headers={"x-api-key": key})


@pytest.mark.slow
def test_the_limits_of_a_key_are_for_its_clients_only(limited_server: Server) -> None:
    for key in ("free key", KEY):
        assert ask(limited_server, key, context="math").status_code == 200
    assert ask(limited_server, "free").status_code == 401
    assert ask(limited_server, "sql key", context="sql").status_code == 200
    for rejected in (
        ask(limited_server, "sql key"),  # the default context
        ask(limited_server, "sql key", "/generate", inputs="Once"),
        ask(limited_server, "sql key", "/chat_tokenize", messages=[{"role": "user", "content": "Hi"}]),
        ask(limited_server, "other key"),
    ):
        assert (rejected.status_code, rejected.json()["error_type"]) == (403, "forbidden")
    assert ask(limited_server, "slow key").status_code == 200
    late = ask(limited_server, "slow key")
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) > 60, late.json()
    metrics = httpx.get(f"{limited_server.url}/metrics", headers={"x-api-key": KEY}).text
    assert 'key="slow"' in metrics
    log = limited_server.output()
    assert not [key for key in ("free key", "sql key", "slow key") if key in log]


def test_a_key_of_one_running_request_has_one(limited_server: Server) -> None:
    long = {"query": "Write a long story.", "max_tokens": 400, "ignore_eos": True}
    url, headers = f"{limited_server.url}/token_stream", {"Authorization": "Bearer single key"}
    with httpx.stream("POST", url, json=long, headers=headers) as running:
        assert running.status_code == 200, running.read()
        parts = running.iter_bytes()  # its end would close the connection
        next(parts)
        second = ask(limited_server, "single key")
        assert (second.status_code, second.json()["error_type"]) == (429, "overloaded")
        assert ask(limited_server, "free key").status_code == 200


def test_a_priority_by_header_orders_the_requests_of_a_key(limited_server: Server) -> None:
    """All slots are taken; of two waiting requests the second one has a higher priority."""
    url = f"{limited_server.url}/token_stream"
    long = {"query": "Write a long story.", "max_tokens": 150, "ignore_eos": True}
    headers = {"x-api-key": "urgent key"}
    finished: list[str] = []

    def send(name: str, priority: str | None, body: dict[str, object]) -> None:
        asked = headers | ({} if priority is None else {"X-Priority": priority})
        assert httpx.post(url, json=body, headers=asked, timeout=120).status_code == 200
        finished.append(name)

    with ThreadPoolExecutor(12) as threads:
        sent = [threads.submit(send, "other", None, long) for _ in range(10)]
        wait_for(lambda: figure(limited_server.url, "waiting_requests", headers) == 2)
        sent.append(threads.submit(send, "low", "-5", long | {"max_tokens": 1}))
        wait_for(lambda: figure(limited_server.url, "waiting_requests", headers) == 3)
        sent.append(threads.submit(send, "high", "5", long | {"max_tokens": 1}))
        for one in sent:
            one.result()
    assert finished[0] == "high"
    assert finished.index("low") >= 3, "it gets a slot after all others have one"
    rejected = httpx.post(url, json=long, headers=headers | {"X-Priority": "6"})
    assert (rejected.status_code, rejected.json()["error_type"]) == (403, "forbidden")
    assert httpx.post(url, json=long, headers=headers | {"X-Priority": "urgent"}).status_code in (400, 422)
