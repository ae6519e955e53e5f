"""Clients that send or read too slowly, and too many connections, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.conftest import ROOT, Server, changed_program, running_server

CERTIFICATES = ROOT / "tests/cli/certificates"
LIMITS = {
    "CONNECTION_IDLE": "1.5",
    "READ_TIMEOUT": "1",
    "WRITE_TIMEOUT": "1",
    "REQUEST_TIMEOUT": "2",
    "MAX_CONNECTIONS": "30",
    "MAX_CONNECTIONS_PER_ADDRESS": "20",
    "N_CTX": "8192",
    "MAX_SEQUENCES": "1",
}
LONG = {"query": "Tell me a story.", "max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short timeouts and few connections."""
    folder = tmp_path_factory.mktemp("strict")
    program = changed_program(folder, "from app.api.http import errors\nerrors._DISCARD_SECONDS = 0.5")
    with running_server(folder / "log", program, **LIMITS) as server:
        yield server


def connect(server: Server, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))
    connection.settimeout(30)
    return connection


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    data = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            data += part
    return data


def head(n_bytes: int) -> bytes:
    return (
        b"POST /token_stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % n_bytes
    )


def test_connections_without_a_request_are_closed(strict_server: Server) -> None:
    silent, used = connect(strict_server), connect(strict_server)
    used.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert received(silent) == b""
    assert received(used).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begin", [b"GET /heal", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b\r\n", b"\r\n"]
)
def test_a_head_that_does_not_end_is_answered_408(strict_server: Server, begin: bytes) -> None:
    connection = connect(strict_server)
    connection.sendall(begin)
    for _ in range(3):  # bytes do not extend the time
        time.sleep(0.3)
        with contextlib.suppress(OSError):
            connection.sendall(b"\r\n" if begin == b"\r\n" else b"a")
    assert received(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 70_000, 431), (b"\x16\x03\x01 no HTTP\r\n\r\n", 400)],
    ids=["a head without bound", "no HTTP"],
)
def test_bytes_that_are_no_request_are_answered_and_logged(
    strict_server: Server, sent: bytes, status: int
) -> None:
    connection = connect(strict_server)
    connection.sendall(sent)
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    [line] = (line for line in answer.decode().splitlines() if line.startswith("X-Request-ID: "))
    assert f"request_id={line.partition(' ')[2]}" in strict_server.output()


def test_a_flood_of_requests_in_one_connection_ends_it(strict_server: Server) -> None:
    """Their heads would be parsed at once, while all other connections wait."""
    health = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    few = connect(strict_server)
    few.sendall(health * 20)
    assert received(few).count(b"HTTP/1.1 200") == 20
    many = connect(strict_server)
    many.sendall(health * 1000)
    assert received(many).count(b"HTTP/1.1 200") <= 33
    assert "more than 32 requests wait in the connection" in strict_server.output()


def test_a_running_answer_ends_at_bytes_that_are_no_request(strict_server: Server) -> None:
    """A second response inside its body would be text of the answer."""
    body = json.dumps({**LONG, "max_tokens": 40}).encode()
    connection = connect(strict_server)
    connection.sendall(head(len(body)) + body)
    assert connection.recv(64).startswith(b"HTTP/1.1 200")
    connection.sendall(b"no HTTP\r\n\r\n")
    assert b"HTTP/1.1 400" not in received(connection)


def test_a_slow_body_is_answered_408_in_the_dialect(strict_server: Server) -> None:
    connection = connect(strict_server)
    connection.sendall(head(100) + b'{"query":')
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error_type"] == "read_timeout"
    assert "9 bytes of the body arrived in 1 s (READ_TIMEOUT)" in body["error"]


def test_a_client_that_reads_nothing_is_cut(strict_server: Server) -> None:
    """The bundle of Swagger UI is larger than the buffers of a connection, eight times."""
    connection = connect(strict_server)
    asset = next(
        line.partition('src="')[2].partition('"')[0]
        for line in httpx.get(f"{strict_server.url}/docs").text.splitlines()
        if "bundle" in line and "src=" in line
    )
    connection.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % asset.encode() * 8)
    end = time.monotonic() + 60
    while "read nothing for 1 s (WRITE_TIMEOUT)" not in strict_server.output():
        assert time.monotonic() < end, "the connection is not cut"
        time.sleep(0.05)
    connection.close()


def test_a_request_ends_after_request_timeout(strict_server: Server) -> None:
    url = strict_server.url
    whole = httpx.post(
        f"{url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8000, "ignore_eos": True},
        timeout=60,
    )
    assert whole.status_code == 504
    assert "REQUEST_TIMEOUT" in whole.json()["error"]["message"]
    streamed = httpx.post(f"{url}/token_stream", json={**LONG, "details": True}, timeout=60)
    assert streamed.status_code == 200
    assert json.loads(streamed.text.partition("\x1e")[2])["error_type"] == "request_timeout"
    short = httpx.post(f"{url}/token_stream", json={**LONG, "max_tokens": 2}, timeout=60)
    assert short.status_code == 200, "the slot and the place are free"


def test_idle_connections_make_room_for_new_ones(strict_server: Server) -> None:
    idle = [connect(strict_server, "127.0.0.2") for _ in range(15)]
    idle += [connect(strict_server, "127.0.0.3") for _ in range(15)]
    assert httpx.get(f"{strict_server.url}/health").status_code == 200
    assert received(idle[0]) == b"", "the one that is idle longest is closed"
    for connection in idle[1:]:
        connection.close()
    assert "too many connections (MAX_CONNECTIONS=30)" in strict_server.output()


def test_an_upgrade_to_websocket_does_not_escape_the_limits(strict_server: Server) -> None:
    upgrade = (
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    connection = connect(strict_server)
    connection.sendall(upgrade)
    assert received(connection).startswith(b"HTTP/1.1 200"), "another protocol has the connection"


def test_an_address_has_a_limit_of_its_own(strict_server: Server) -> None:
    busy = [connect(strict_server, "127.0.0.4") for _ in range(20)]
    for connection in busy:
        connection.sendall(head(100))
    refused = received(connect(strict_server, "127.0.0.4"))
    assert refused.startswith(b"HTTP/1.1 503")
    assert httpx.get(f"{strict_server.url}/health").status_code == 200
    for connection in busy:
        assert received(connection).startswith(b"HTTP/1.1 408")


def test_a_client_without_a_tls_handshake_counts_as_a_connection(start_server: Callable[..., Server]) -> None:
    """Such clients held all descriptors for a minute, and nothing was logged."""
    limits = LIMITS | {"READ_TIMEOUT": "60", "MAX_CONNECTIONS": "5"}
    cert, key = (str(CERTIFICATES / name) for name in ("first.pem", "first.key"))
    server = start_server(**limits, SSL_CERTFILE=cert, SSL_KEYFILE=key)
    end = time.monotonic() + 60
    while "answers with" not in server.output():
        assert time.monotonic() < end, server.output()
        time.sleep(0.05)
    silent = [connect(server) for _ in range(30)]
    trust = ssl.create_default_context(cafile=CERTIFICATES / "first.pem")
    url = server.url.replace("http:", "https:")
    assert httpx.get(f"{url}/health", verify=trust).status_code == 200
    assert received(silent[0]) == b"", "the one that is idle longest is closed"
    for connection in silent[1:]:
        connection.close()
    assert "too many connections (MAX_CONNECTIONS=5)" in server.output()
    assert server.stop() == 0
