"""TLS, and files that a running server reads again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server

# Self-signed certificates for 127.0.0.1, valid until 2126.
CERTIFICATES = Path(__file__).parent / "certificates"


class Files:
    """The certificate and the keys of a server."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.keys = folder / "tls.pem", folder / "tls.key", folder / "keys.toml"
        self.install("first", "first")
        self.keys.write_text('[keys.alice]\nkey = "one"\n')

    def install(self, cert: str, key: str) -> None:
        shutil.copyfile(CERTIFICATES / f"{cert}.pem", self.cert)
        shutil.copyfile(CERTIFICATES / f"{key}.key", self.key)


def status(url: str, trusted: str, key: str) -> int | None:
    """Status of a closed route for a client that trusts one certificate; None: another is used."""
    context = ssl.create_default_context(cafile=CERTIFICATES / f"{trusted}.pem")
    try:
        return httpx.get(f"{url}/contexts", headers={"x-api-key": key}, verify=context).status_code
    except httpx.ConnectError:
        return None


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def tls_server(start_server: Callable[..., Server], files: Files) -> Iterator[Server]:
    server = start_server(
        SSL_CERTFILE=str(files.cert), SSL_KEYFILE=str(files.key), API_KEYS=str(files.keys), LOG_LEVEL="info"
    )
    server.url = server.url.replace("http:", "https:")
    until(lambda: status(server.url, "first", "one") == 200 or server.process.poll() is not None)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.output()


def test_certificate_and_keys_are_renewed_without_a_restart(tls_server: Server, files: Files) -> None:
    url = tls_server.url
    assert status(url, "second", "one") is None
    assert status(url, "first", "two") == 401
    files.install("second", "first")  # a half-written renewal
    files.keys.write_text("[keys.alice")
    until(lambda: tls_server.output().count("stay in use") >= 2)
    assert status(url, "first", "one") == 200
    files.install("second", "second")
    files.keys.write_text('[keys.alice]\nkey = "two"\n')
    until(lambda: status(url, "second", "two") == 200)
    assert status(url, "first", "two") is None
    assert status(url, "second", "one") == 401


def test_sighup_reads_the_files_although_they_seem_unchanged(tls_server: Server, files: Files) -> None:
    before = files.keys.stat()
    files.keys.write_text('[keys.alice]\nkey = "two"\n')
    os.utime(files.keys, ns=(before.st_atime_ns, before.st_mtime_ns))
    n_read = tls_server.output().count("read again: keys")
    tls_server.process.send_signal(signal.SIGHUP)
    until(lambda: tls_server.output().count("read again: keys") > n_read)
    assert status(tls_server.url, "first", "two") == 200
    assert status(tls_server.url, "first", "one") == 401


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SSL_KEYFILE": "first.key"}, "SSL_CERTFILE is missing"),
        ({"SSL_CERTFILE": "missing.pem"}, "cannot be used: No such file"),
        ({"SSL_CERTFILE": "first.pem", "SSL_KEYFILE": "second.key"}, "cannot be used: KEY_VALUES_MISMATCH"),
        ({"API_KEYS": "missing.toml"}, "cannot be read: No such file"),
    ],
)
def test_unusable_files_end_the_start(
    start_server: Callable[..., Server], settings: dict[str, str], message: str
) -> None:
    server = start_server(**{name: str(CERTIFICATES / file) for name, file in settings.items()})
    assert server.process.wait(60) == 2
    assert message in server.output()
    assert len(server.output().strip().splitlines()) == 1


GENERAL = '[contexts.general]\nprompt = "You are a helpful assistant. {}"\n'
PIRATE = '[contexts.pirate]\nprompt = "You are a pirate. {}"\n'.format("Talk about the sea. " * 20)


def test_changed_contexts_are_prefilled_beside_streams_and_broken_ones_are_reported(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "contexts.toml"
    file.write_text(GENERAL.format("Be short."))
    folders = {"CONTEXTS_FILE": str(file), "CACHE_DIR": str(tmp_path / "cache")}
    server = start_server(**folders, LOG_LEVEL="info").wait_until()

    def contexts() -> dict[str, Any]:
        return httpx.get(f"{server.url}/contexts").json()

    def ask(**fields: Any) -> str:
        body = {"query": "Where is located Paris ?", "max_tokens": 8, "details": True} | fields
        answer = httpx.post(f"{server.url}/token_stream", json=body, timeout=60)
        return answer.text

    story = {"query": "Tell me a story.", "max_tokens": 1500, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/token_stream", json=story, timeout=120) as stream:
        parts = stream.iter_text()
        next(parts)
        file.write_text(GENERAL.format("Be short.") + PIRATE)
        until(lambda: contexts()["contexts"] == ["general", "pirate"])
        assert next(parts)  # the stream goes on
    figures = json.loads(ask(context="pirate").rpartition("\x1e")[2])
    assert figures["cached_tokens"] > 80  # its prefix was prefilled before the first request

    file.write_text(GENERAL.format("Be long.") + "regex = '(a'\n")
    until(lambda: contexts()["problem"] is not None)
    assert "context 'general': regex cannot be enforced" in contexts()["problem"]
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()["contexts_problem"]) == (200, contexts()["problem"])
    assert contexts()["contexts"] == ["general", "pirate"]
    assert contexts()["prompts"]["general"] == "You are a helpful assistant. Be short."

    file.write_text(GENERAL.format("Be long."))
    until(lambda: contexts()["problem"] is None)
    assert contexts()["prompts"] == {"general": "You are a helpful assistant. Be long."}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert "not defined" in ask(context="pirate")
    assert server.stop() == 0
    assert "the previous contexts stay in use: " in server.output()
    assert "(changed or new: pirate; removed: none)" in server.output()
