"""Requests beyond the limits, with long bodies, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import Server, running_server

LONG = json.dumps({"query": "word " * 180_000}).encode()  # 900 kB
STORY = {"query": "Tell me a story.", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one place, and bodies of at most 1 MB."""
    log = tmp_path_factory.mktemp("busy") / "log"
    sizes = {"N_CTX": "512", "MAX_SEQUENCES": "1", "MAX_CONCURRENT_REQUESTS": "1"}
    with running_server(log, **sizes) as server:
        yield server


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, http.client.HTTPMessage]:
    """Send a body with http.client, which reads nothing before the whole body is sent."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/token_stream", body, {"Content-Type": "application/json"} | (headers or {}))
    response = connection.getresponse()
    assert response.read()
    connection.close()
    return response.status, response.headers


def resident_bytes(server: Server) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_rejected_requests_cost_neither_preparation_nor_memory(busy_server: Server) -> None:
    """Bodies of 180 MB arrive while the only place is taken."""
    url = busy_server.url
    before = resident_bytes(busy_server)
    with httpx.stream("POST", f"{url}/token_stream", json=STORY, timeout=60) as running:
        parts = running.iter_raw()
        next(parts)
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: post(url, LONG), range(200)))
        assert [status for status, _ in answers] == [429] * 200
        assert all(int(headers["Retry-After"]) >= 1 for _, headers in answers)
        assert sum(map(len, parts)) > 0, "the running answer goes on"
    assert resident_bytes(busy_server) - before < 50 << 20
    assert httpx.post(f"{url}/token_stream", json={**STORY, "max_tokens": 2}).status_code == 200


def test_an_attack_with_long_bodies_is_answered_and_another_client_is_served(busy_server: Server) -> None:
    """800 bodies of 900 kB for one place. Between two answers, some of them get the place."""
    url = busy_server.url
    before = resident_bytes(busy_server)
    with ThreadPoolExecutor(101) as threads:
        attack = [threads.submit(post, url, LONG) for _ in range(400)]
        honest = threads.submit(ask_until_served, url)
        attack += [threads.submit(post, url, LONG) for _ in range(400)]
        statuses = Counter(one.result()[0] for one in attack)
        assert honest.result()
    assert statuses.total() == 800
    assert statuses.keys() <= {429, 422}, "rejected, or too long for the model"
    assert resident_bytes(busy_server) - before < 200 << 20, "bodies are not kept"


def ask_until_served(url: str) -> str:
    """Send a request until it has a place."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer = httpx.post(f"{url}/token_stream", json={**STORY, "max_tokens": 4}, timeout=60)
        if answer.status_code == 200:
            return answer.text
        assert answer.status_code == 429, answer.text
    raise AssertionError("no place in 120 s")


def test_a_request_is_rejected_before_its_body_arrives(busy_server: Server) -> None:
    url = busy_server.url
    with httpx.stream("POST", f"{url}/token_stream", json=STORY, timeout=60) as running:
        parts = running.iter_raw()
        next(parts)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.putrequest("POST", "/token_stream")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(LONG)))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 429
        connection.close()
        assert sum(map(len, parts)) > 0


@pytest.mark.parametrize("size", [1 << 21, 1 << 22, 1 << 24])
def test_413_arrives_while_the_client_sends(busy_server: Server, size: int) -> None:
    for _ in range(5):
        status, headers = post(busy_server.url, b"x" * size)
        assert (status, headers["Connection"]) == (413, "close")


def test_other_errors_arrive_while_the_client_sends(busy_server: Server) -> None:
    assert post(busy_server.url, LONG, {"Content-Type": "text/csv"})[0] == 415


def test_a_head_without_bound_behind_a_running_request_is_cut(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({**STORY, "max_tokens": 1900}).encode()
    head = (
        "POST /token_stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * (24 << 20))


def test_a_client_that_waits_for_100_continue_gets_413_and_sends_no_body(busy_server: Server) -> None:
    connection = http.client.HTTPConnection(busy_server.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/token_stream")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 22))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert response.read()
    connection.close()


def test_the_place_of_a_client_that_leaves_during_preparation_is_free(busy_server: Server) -> None:
    url = busy_server.url
    for _ in range(3):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/token_stream", LONG, {"Content-Type": "application/json"})
        connection.close()
        end = time.monotonic() + 60
        while httpx.post(f"{url}/token_stream", json={**STORY, "max_tokens": 1}).status_code == 429:
            assert time.monotonic() < end, "the place is not free"
