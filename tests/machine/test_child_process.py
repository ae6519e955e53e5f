"""A child process is asked line by line, is held to its limits, and does not outlast its owner."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.machine.child_process import ChildProcess

# Runs each request. Replies are what it writes: lines, several, or parts of them.
CHILD = """
import os, sys, time

def write(data):
    os.write(1, data)

write(b"ready\\n")
for line in sys.stdin.buffer:
    exec(line)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ChildProcess]]:
    (tmp_path / "obedient_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    started: list[ChildProcess] = []

    def start() -> ChildProcess:
        started.append(ChildProcess("obedient_child"))
        assert started[-1].receive(timeout=60) == b"ready\n"
        return started[-1]

    yield start
    for child in started:
        child.close()


def test_lines_are_replies_however_they_arrive(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(rb"write(b'one\ntwo\rtwo\n\nthr'); time.sleep(0.1); write(b'ee'); write(b'\n')" + b"\n")
    assert [child.receive(timeout=20) for _ in range(4)] == [b"one\n", b"two\rtwo\n", b"\n", b"three\n"]
    child.send(rb"write(b'x' * 999_999 + b'\nlast\n')" + b"\n")
    assert child.receive(timeout=20) == b"x" * 999_999 + b"\n"
    assert child.receive(timeout=20) == b"last\n"


def test_a_request_may_be_larger_than_a_socket_holds(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(b"write(b'%d\\n' % len('" + b"x" * 3_000_000 + b"'))\n", timeout=20)
    assert child.receive(timeout=20) == b"3000000\n"


@pytest.mark.parametrize(
    "request_line",
    [
        b"time.sleep(100)\n",
        b"while True: write(b'x'); time.sleep(0.02)\n",  # each part is in time
        b"while True: write(b'x' * 100_000)\n",
    ],
    ids=["silent", "slow", "endless"],
)
def test_a_line_has_its_time_in_all(start: Callable[[], ChildProcess], request_line: bytes) -> None:
    child = start()
    child.send(request_line)
    with pytest.raises(TimeoutError, match="timed out"):
        child.receive(timeout=0.3)
    assert child.is_alive
    assert child.close() == -signal.SIGKILL


def test_a_request_that_is_not_taken_times_out(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(b"time.sleep(100)\n")
    with pytest.raises(TimeoutError):
        child.send(b"x" * 3_000_000, timeout=0.3)


def test_the_end_of_the_process_is_told(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(rb"write(b'whole\npart'); os._exit(7)" + b"\n")
    assert child.receive(timeout=20) == b"whole\n"
    with pytest.raises(EOFError, match="the process has ended"):
        child.receive(timeout=20)
    with pytest.raises(OSError, match="Broken pipe"):
        child.send(b"[]\n")
    assert child.close() == 7
    assert not child.is_alive


def test_killing_it_ends_the_wait_of_another_thread(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(b"time.sleep(100)\n")
    threading.Timer(0.2, child.kill).start()
    with pytest.raises((EOFError, ConnectionResetError)):
        child.receive(timeout=60)
    assert child.close() == child.close() == -signal.SIGKILL


def test_it_has_the_import_path_but_no_secrets(
    start: Callable[[], ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    child = start()
    child.send(b"write(ascii([os.environ.get('HF_TOKEN'), os.environ['LANG']]).encode() + b'\\n')\n")
    assert child.receive(timeout=20) == b"[None, 'C.UTF-8']\n"
    child.send(b"write(os.environ['PYTHONPATH'].encode() + b'\\n')\n")
    paths = child.receive(timeout=20).decode().strip().split(os.pathsep)
    assert paths == [str(Path.cwd()), *sys.path[1:]]


def test_a_process_of_its_own_session(start: Callable[[], ChildProcess]) -> None:
    assert os.getsid(start().process_id) != os.getsid(0)


@pytest.mark.usefixtures("start")
def test_none_is_left_behind_where_nobody_closes_it() -> None:
    child = ChildProcess("obedient_child")
    pid = child.process_id
    os.kill(pid, 0)
    del child
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    # An unclosed socket would be a warning, and so a failure.
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        ChildProcess("obedient_child")
    gc.collect()


def test_a_module_that_is_missing_has_ended() -> None:
    child = ChildProcess("no_such_module")
    with pytest.raises(EOFError):
        child.receive(timeout=60)
    assert child.close() == 1
