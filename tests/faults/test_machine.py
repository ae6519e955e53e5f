"""Faults of the machine: a crash in native code, disks, a replaced model file, the clock."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import MODEL, Server, changed_program

Start = Callable[..., Server]
SMALL = {"N_CTX": "1024", "MAX_SEQUENCES": "1"}


@pytest.fixture
def one_context(tmp_path: Path) -> dict[str, str]:
    """Settings with one context and an empty cache."""
    contexts = tmp_path / "contexts.toml"
    contexts.write_text(f'[contexts.general]\nprompt = "{"Answer briefly. " * 40}"\n')
    return SMALL | {"CONTEXTS_FILE": str(contexts), "CACHE_DIR": str(tmp_path / "cache")}


def ask(server: Server, query: str = "Where is Paris?") -> str:
    answer = httpx.post(f"{server.url}/token_stream", json={"query": query, "max_tokens": 8}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_after_a_crash_in_native_code_contexts_come_from_disk(
    start_server: Start, tmp_path: Path, one_context: dict[str, str]
) -> None:
    flag = tmp_path / "crash"
    crash = (
        "import ctypes\n"
        "from pathlib import Path\n"
        "from app.engine.llama import Context\n"
        "decode = Context.decode\n"
        "def crashing(context, batch):\n"
        f"    if Path({str(flag)!r}).exists():\n"
        "        ctypes.memset(0, 1, 1)\n"
        "    decode(context, batch)\n"
        "Context.decode = crashing\n"
    )
    server = start_server(changed_program(tmp_path, crash), **one_context).wait_until()
    before = ask(server)
    flag.touch()
    with pytest.raises(httpx.TransportError):
        ask(server, "And Rome?")
    assert server.process.wait(60) == -signal.SIGSEGV
    output = server.output()
    assert "Fatal Python error: Segmentation fault" in output
    assert "in crashing" in output, "the message names the call"
    again = start_server(**one_context).wait_until()
    assert "warm after" in again.output()
    assert ": 0 prefilled, the others loaded" in again.output()
    assert ask(again) == before


def test_with_a_read_only_home_a_second_start_repeats_nothing(
    start_server: Start, tmp_path: Path, one_context: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = {"HOME": "/proc/nobody", "TMPDIR": str(tmp_path)}
    settings = home | {name: value for name, value in one_context.items() if name != "CACHE_DIR"}
    first = start_server(**settings).wait_until()
    assert "/proc/nobody/.cache/tokenstream is not writable" in first.output()
    assert "cannot be saved" not in first.output()
    assert first.stop() == 0
    assert ": 0 prefilled" in start_server(**settings).wait_until().output()


def test_a_full_disk_costs_a_warning_and_no_answer(
    start_server: Start, tmp_path: Path, one_context: dict[str, str]
) -> None:
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
    server = start_server(changed_program(tmp_path, full), **one_context).wait_until()
    assert ask(server)
    assert server.output().count("No state can be saved") == 1
    assert list(Path(one_context["CACHE_DIR"]).glob("*")) == []
    assert server.stop() == 0


def test_a_model_file_that_is_replaced_affects_the_next_start_only(
    start_server: Start, tmp_path: Path, one_context: dict[str, str]
) -> None:
    model, other = tmp_path / "model.gguf", tmp_path / "other"
    shutil.copy(MODEL, model)
    server = start_server(MODEL_PATH=str(model), **one_context).wait_until()
    before = ask(server)
    other.write_bytes(b"not a model")
    other.replace(model)
    assert [ask(server), ask(server, "And Rome?") != ""] == [before, True]
    assert server.stop() == 0
    again = start_server(MODEL_PATH=str(model), **one_context)
    assert again.process.wait(60) == 1
    assert str(model) in again.output()


def test_a_clock_that_is_set_back_changes_no_answer(
    start_server: Start, tmp_path: Path, one_context: dict[str, str]
) -> None:
    flag = tmp_path / "back"
    clock = (
        "import time\n"
        "from pathlib import Path\n"
        "now = time.time\n"
        f"time.time = lambda: now() - 86_400 * Path({str(flag)!r}).exists()\n"
    )
    server = start_server(changed_program(tmp_path, clock), **one_context).wait_until()
    before = ask(server)
    flag.touch()
    assert ask(server) == before
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert server.stop() == 0
    assert (
        ": 0 prefilled" in start_server(changed_program(tmp_path, clock), **one_context).wait_until().output()
    )
