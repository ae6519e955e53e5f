"""Start and end of ``python -m app serve``."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import MODEL, SETTINGS, Server, free_port
from tests.polling import wait_for
from tests.weights.hub_server import REPO, FakeHub, serving

Start = Callable[..., Server]


def ended(server: Server) -> tuple[int, str]:
    return server.process.wait(120), server.output()


def refuses_connections(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health")
    except httpx.TransportError:  # also a reset of a connection that waited to be accepted
        return True
    return False


def test_the_start_prints_the_address_the_model_and_an_example(start_server: Start) -> None:
    server = start_server(**dict.fromkeys(SETTINGS, "")).wait_until()  # defaults
    wait_for(lambda: "curl" in server.output())
    output = server.output()
    assert f"Tokenstream answers with SmolLM2-135M-Instruct.Q4_1 on {server.url}" in output
    assert "make run MODEL=" in output
    assert f"curl --no-buffer {server.url}/token_stream" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"N_CTX": "lots"}, 2, "N_CTX=lots: should be a valid integer"),
        ({"TOP_P": "1.5"}, 2, "TOP_P=1.5: should be less than or equal to 1"),
        ({"N_GPU_LAYERS": "-7"}, 2, "GPU_LAYERS=-7: should be greater than or equal to -1"),
        ({"PROMETHEUS_HTTP_ADDRESS": "9090"}, 2, "PROMETHEUS_HTTP_ADDRESS=9090: should be host:port"),
        ({"CONTEXT_TYPE": "cooking"}, 2, "CONTEXT_TYPE=cooking: should be one of general, sql, classifier"),
        ({"CONTEXTS_FILE": "nowhere.toml"}, 1, "CONTEXTS_FILE=nowhere.toml: cannot be read: No such file"),
        ({"MODEL_PATH": "nowhere.gguf"}, 1, "nowhere.gguf"),
        ({"MODEL_PATH": "README.md"}, 1, "README.md"),
        ({"TOKENIZER_REPO": "./tests"}, 1, "TOKENIZER_REPO"),
    ],
)
def test_a_wrong_setting_is_one_line_and_an_exit_status(
    start_server: Start, settings: dict[str, str], status: int, message: str
) -> None:
    found, output = ended(start_server(**settings))
    assert found == status, output
    assert message in output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(("key", "n_warnings"), [("", 1), ("x", 0)])
def test_a_server_for_other_machines_without_a_key_is_a_warning(
    start_server: Start, key: str, n_warnings: int
) -> None:
    address = f"0.0.0.0:{free_port()}"
    server = start_server(HTTP_ADDRESS=address, API_KEY=key)
    server.url = f"http://{address}"
    server.wait_until("/health")
    assert server.stop() == 0
    assert server.output().count("other machines can use the server without a key") == n_warnings


def test_a_ready_server_starts_no_more_threads(start_server: Start) -> None:
    running = start_server(EMBEDDING_MODEL="all-MiniLM-L6-v2").wait_until()
    threads = Path(f"/proc/{running.process.pid}/task")
    n_threads = len(list(threads.iterdir()))
    requests = [
        ("/v1/embeddings", {"input": ["a river"] * 8}),
        ("/tokenize", {"inputs": "a river"}),
        ("/tokenize", {"inputs": "a river " * 10_000}),
        ("/token_stream", {"query": "a river", "max_tokens": 1}),
        ("/token_stream", {"query": 5}),
    ]
    with ThreadPoolExecutor(24) as clients:
        answers = [
            clients.submit(httpx.post, running.url + path, json=body, timeout=120)
            for path, body in requests * 6
        ]
    assert {answer.result().status_code for answer in answers} == {200, 422}
    assert len(list(threads.iterdir())) == n_threads


def test_an_address_in_use_is_reported(start_server: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, output = ended(start_server(PROMETHEUS_HTTP_ADDRESS=address))
    assert status == 1
    assert f"error: PROMETHEUS_HTTP_ADDRESS={address}: cannot listen there: Address already in use" in output
    assert "Traceback" not in output


def test_a_taken_port_is_reported_before_the_model_is_searched(start_server: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, output = ended(start_server(HTTP_ADDRESS=address, MODEL_PATH="nowhere.gguf"))
    assert status == 1
    assert f"error: HTTP_ADDRESS={address}: cannot listen there: Address already in use" in output


@pytest.fixture
def stalled_hub() -> Iterator[FakeHub]:
    """A hub with the default model, whose download stops in the middle."""
    with serving() as hub_server:
        hub = hub_server.fresh()
        content = MODEL.read_bytes()
        hub.add(REPO, {"a.gguf": content})
        hub.stall_after = len(content) // 2
        yield hub
        hub.released.set()


def test_the_server_answers_during_a_download_and_tells_its_progress(
    start_server: Start, stalled_hub: FakeHub, tmp_path: Path
) -> None:
    settings = {"MODEL_REPO": REPO, "MODEL_FILE": "a.gguf", "MODELS_DIR": str(tmp_path)}
    hub = {"HF_ENDPOINT": stalled_hub.url, "HF_HOME": str(tmp_path / "home")}
    server = start_server(**settings, **hub).wait_until("/health")
    wait_for(lambda: httpx.get(f"{server.url}/ready").json().get("progress"))
    ready = httpx.get(f"{server.url}/ready")
    assert ready.status_code == 503
    assert ready.json()["stage"].startswith("downloading a.gguf (")
    assert 0 < ready.json()["progress"] < 0.6
    assert server.stop() == 0
    stalled_hub.released.set()
    assert start_server(**settings, **hub).wait_until().stop() == 0
    assert len(stalled_hub.gets()) == 2  # the second one resumed the file of the first


def test_contexts_are_prefilled_once_and_loaded_after_a_restart(start_server: Start, tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    for n_prefilled in (r"[1-9]\d+", "0"):
        running = start_server(CACHE_DIR=str(folder), LOG_LEVEL="info").wait_until()
        assert running.stop() == 0
        assert re.search(rf"4 contexts of \d+ tokens are warm.*: {n_prefilled} prefilled", running.output())
    assert len(list(folder.glob("*.kv"))) == 4
    assert folder.stat().st_mode & 0o077 == 0


def test_sigterm_during_the_prefill_of_contexts_exits_with_0(start_server: Start, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.toml"
    long = [f'[contexts.c{n}]\nprompt = "{f"word{n} " * 1500}"\n' for n in range(6)]
    contexts.write_text("\n".join(long))
    running = start_server(
        CONTEXTS_FILE=str(contexts),
        CONTEXT_TYPE="c0",
        CACHE_DIR=str(tmp_path / "cache"),
        N_CTX="32768",  # 4096 for each sequence, more than a context has
        LOG_LEVEL="info",
    )
    wait_for(lambda: "tokenstream.service: model " in running.output())
    time.sleep(0.3)  # the first context takes seconds
    assert running.stop() == 0, running.output()
    assert "are warm" not in running.output()


def test_an_unwritable_cache_folder_is_one_warning(start_server: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    running = start_server(CACHE_DIR=str(tmp_path / "file" / "contexts")).wait_until()
    assert running.stop() == 0
    assert running.output().count("No state can be saved in") == 1


def test_a_context_over_the_token_limit_is_reported(start_server: Start, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.toml"
    contexts.write_text(f'[contexts.long]\nprompt = "{"word " * 600}"\n')
    server = start_server(CONTEXTS_FILE=str(contexts), CONTEXT_TYPE="long", N_CTX="512", MAX_SEQUENCES="1")
    output = server.wait_until().output()
    assert "context 'long' is rejected" in output
    assert "shorten it, or raise N_CTX" in output


def test_too_little_memory_is_reported(start_server: Start) -> None:
    status, output = ended(start_server(N_CTX=str(2**31 - 256), MAX_SEQUENCES="1"))
    assert status == 1
    assert "error:" in output
    assert "N_CTX" in output
    assert "Traceback" not in output


def test_a_truncated_model_is_reported(start_server: Start, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(MODEL.read_bytes()[:50_000_000])
    status, output = ended(start_server(MODEL_PATH=str(cut)))
    assert status == 1
    assert str(cut) in output
    assert "cut off" in output
    assert "Traceback" not in output


def test_sigterm_waits_for_running_answers_and_exits_with_0(start_server: Start) -> None:
    server = start_server().wait_until()
    body = {"query": "Tell me a story.", "max_tokens": 150, "ignore_eos": True, "details": True}
    with httpx.stream("POST", f"{server.url}/token_stream", json=body, timeout=60) as response:
        pieces = response.iter_text()
        text = next(pieces)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses_connections(server))
        text += "".join(pieces)
    assert '"generated_tokens": 150' in text
    assert server.process.wait(120) == 0
    assert "Traceback" not in server.output()


def test_after_shutdown_grace_answers_are_truncated_and_the_status_is_0(start_server: Start) -> None:
    server = start_server(SHUTDOWN_GRACE="1").wait_until()
    body = {"query": "Tell me a story.", "max_tokens": 2000, "ignore_eos": True}
    cut: list[Exception] = []

    def read() -> None:
        try:
            with httpx.stream("POST", f"{server.url}/token_stream", json=body, timeout=60) as response:
                for _ in response.iter_raw():
                    started.set()
        except httpx.HTTPError as error:
            cut.append(error)

    started = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(120)
    assert server.stop() == 0
    reader.join(120)
    assert cut, "a truncated stream is an error"
    assert "Traceback" not in server.output()


def test_a_second_signal_ends_the_server_at_once(start_server: Start) -> None:
    server = start_server().wait_until()
    body = {"query": "Tell me a story.", "max_tokens": 2000, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/token_stream", json=body, timeout=60) as response:
        pieces = response.iter_raw()  # the connection closes when this iterator is collected
        next(pieces)
        server.process.send_signal(signal.SIGINT)
        waits = "waiting up to 30 s for an answer; a second signal stops immediately"
        wait_for(lambda: waits in server.output())
        assert server.stop(signal.SIGINT) == 128 + signal.SIGINT, "0: the answer is complete"
    assert "Traceback" not in server.output()


def test_ctrl_c_exits_with_0_after_a_disconnect_within_a_body(start_server: Start) -> None:
    server = start_server(MODEL_PATH=str(MODEL)).wait_until()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /token_stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"query"'
        )
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in server.output()
    assert "make run MODEL=" not in server.output(), "the hint is for the default model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"KNOWLEDGE": "on", "DATA_PATH": "/nowhere"}, "DATA_PATH=/nowhere: no such folder"),
        ({"KNOWLEDGE": "maybe"}, "KNOWLEDGE=maybe: should be 'on' or 'off'"),
        ({"KNOWLEDGE": "on", "MODEL_PROMPT_TEMPLATE": "{query}"}, "should contain {context}"),
        ({"KNOWLEDGE": "on", "KNOWLEDGE_CHUNK_TOKENS": "600"}, "KNOWLEDGE_CHUNK_TOKENS=600: the maximum of"),
        (
            {"KNOWLEDGE": "on", "KNOWLEDGE_CHUNK_OVERLAP": "200"},
            "KNOWLEDGE_CHUNK_OVERLAP=200: should be below",
        ),
        ({"KNOWLEDGE": "on", "EMBEDDING_MODEL": "none.gguf"}, "EMBEDDING_MODEL=none.gguf"),
        ({"KNOWLEDGE": "on", "KNOWLEDGE_INDEX": "/proc/none"}, "KNOWLEDGE_INDEX=/proc/none"),
    ],
)
def test_a_wrong_setting_of_the_knowledge_base_prevents_the_start(
    start_server: Start, settings: dict[str, str], message: str
) -> None:
    server = start_server(**settings)
    assert server.process.wait(120) in (1, 2)
    assert message in server.output()
    assert "Traceback" not in server.output()
