"""deploy/nginx/tokenstream.conf: a real nginx in front of two servers."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, Server, free_port, running_server
from tests.polling import wait_for

CONFIG = ROOT / "deploy/nginx/tokenstream.conf"
TEXT = "Rule {}: the {} station opens at {} and its guard wears a coat with {} buttons. "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("servers")
    with running_server(folder / "log0") as first, running_server(folder / "log1") as second:
        yield first, second


def nginx(folder: Path) -> list[str]:
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


@pytest.fixture
def proxy(servers: tuple[Server, ...], tmp_path: Path) -> Iterator[str]:
    """URL of nginx."""
    text, address = CONFIG.read_text(), f"127.0.0.1:{free_port()}"
    for written, real in zip(("127.0.0.1:3030", "127.0.0.1:3031"), servers, strict=True):
        text = text.replace(written, real.url.removeprefix("http://"))
    (tmp_path / "tokenstream.conf").write_text(text.replace("127.0.0.1:8080", address))
    main = tmp_path / "nginx.conf"
    paths = " ".join(
        f"{name}_temp_path {tmp_path};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors;\n"
        f"events {{}}\nhttp {{ access_log off; {paths} include {tmp_path}/tokenstream.conf; }}\n"
    )
    process = subprocess.Popen(nginx(tmp_path))

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "errors").read_text()
        with contextlib.suppress(httpx.TransportError):
            return bool(httpx.get(f"http://{address}/health"))
        return False

    wait_for(answers)
    yield f"http://{address}"
    process.terminate()
    process.wait()


def workers(folder: Path) -> set[str]:
    main = (folder / "pid").read_text().strip()
    return set(Path(f"/proc/{main}/task/{main}/children").read_text().split())


def prompt_of(topic: int) -> str:
    return "".join(TEXT.format(i, topic * 31 + i, i * 7 % 12, topic + i) for i in range(12))


def ask(url: str, topic: int, question: str, key: str | None) -> tuple[str, int]:
    """Key and cached prompt tokens of an answer."""
    body = {
        "messages": [{"role": "system", "content": prompt_of(topic)}, {"role": "user", "content": question}],
        "max_tokens": 1,
    }
    headers = {"X-Prefix-Key": key} if key else {}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    cached = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return response.headers["X-Prefix-Key"], cached


def n_prompt_tokens(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(value) for value in re.findall(r"^prompt_tokens_total\{.*\} (\S+)$", text, re.M))


def test_requests_with_a_key_share_a_server_and_its_prefix(servers: tuple[Server, ...], proxy: str) -> None:
    keys = {topic: ask(proxy, topic, "When does it open?", None)[0] for topic in range(8)}
    before = [n_prompt_tokens(server) for server in servers]
    for topic, key in keys.items():
        ask(proxy, topic, "Which coat?", key)
    for topic, key in keys.items():
        assert ask(proxy, topic, "How many buttons?", key)[1] > 200
    used = [n_prompt_tokens(server) - n for server, n in zip(servers, before, strict=True)]
    assert min(used) > 0, "all keys have the same server"


def test_streams_are_not_buffered(proxy: str) -> None:
    body = {"query": "Count to a thousand.", "max_tokens": 200, "ignore_eos": True}
    with httpx.stream("POST", f"{proxy}/token_stream", json=body, timeout=60) as response:
        assert len(list(response.iter_raw())) > 20  # with buffers of 4 KB: one


def test_metrics_are_not_served(proxy: str) -> None:
    assert httpx.get(f"{proxy}/metrics").status_code == 404


def test_a_dead_server_is_skipped(proxy: str, tmp_path: Path, servers: tuple[Server, ...]) -> None:
    """nginx gets an address that refuses connections; each request is answered by the other server."""
    config = (tmp_path / "tokenstream.conf").read_text()
    dead = servers[1].url.removeprefix("http://")
    (tmp_path / "tokenstream.conf").write_text(config.replace(dead, f"127.0.0.1:{free_port()}"))
    old = workers(tmp_path)
    subprocess.run([*nginx(tmp_path), "-s", "reload"], check=True)
    wait_for(lambda: not old & workers(tmp_path))
    before = n_prompt_tokens(servers[1])
    for topic in range(6):
        assert ask(proxy, topic, "Why?", f"key-{topic}")[0] == f"key-{topic}"
    assert n_prompt_tokens(servers[1]) == before
