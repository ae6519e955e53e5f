"""A child process answers requests within its limits, and ends with its owner."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.machine.child_process import ChildClosed, ChildError, ChildProcess, ChildTimeout

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")

# It executes each request. The list "answer" collects the parts.
CHILD = """
import ctypes, logging, os, signal, sys, time
from app.machine.child_process import serve

class Expected(Exception):
    pass

class Special(Expected):
    pass

log = logging.getLogger("obedient")

def start(code="", *arguments):
    exec(code)

    def handle(request):
        answer = []
        exec(request, {**globals(), "answer": answer, "arguments": arguments})
        yield from answer

    return handle

serve(start, errors=[Expected], logger=log)
"""
# Standard input is the socket of the answers.
ENDLESS_LINE = "while True: os.write(0, b'x' * 100_000)"


class Expected(Exception):
    pass


Start = Callable[..., ChildProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    (tmp_path / "obedient_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    started: list[ChildProcess] = []

    def start(*arguments: Any, **limits: Any) -> ChildProcess:
        limits = {"memory": 1 << 30, "errors": [Expected]} | limits
        started.append(ChildProcess("obedient_child", arguments, **limits))
        return started[-1]

    yield start
    for child in started:
        child.close()


def send(child: ChildProcess, request: str, seconds: float = 20) -> list[Any]:
    return child.request(request, seconds=seconds)


def is_replaced(child: ChildProcess, old_process: int | None) -> bool:
    """Whether another process answers the next request."""
    assert send(child, "answer.append('next')") == ["next"]
    return child.process_id != old_process


# --- answers


def test_an_answer_can_have_any_number_of_parts(start: Start) -> None:
    child = start()
    assert send(child, "") == []
    parts = [None, [1, {"a": "\n\u2028\U0001f642"}], "x" * 999_999, ""]
    assert send(child, f"answer += {parts!r}") == parts
    process = child.process_id
    assert not is_replaced(child, process)


def test_a_request_can_exceed_the_buffer_of_a_socket(start: Start) -> None:
    child = start()
    assert child.request("answer.append(len('" + "x" * 3_000_000 + "'))", seconds=20) == [3_000_000]


def test_lone_surrogates_reach_the_child_and_return_as_question_marks(start: Start) -> None:
    child = start("", "\udcfc")
    assert send(child, "answer += [ascii(arguments[0]), arguments[0]]") == ["'\\udcfc'", "?"]


def test_every_process_gets_the_arguments(start: Start) -> None:
    child = start("", "first", {"second": 2})
    for _ in range(2):
        assert send(child, "answer += arguments") == ["first", {"second": 2}]
        child.stop()


def test_printed_text_is_not_in_the_answer(start: Start) -> None:
    assert send(start(), "print('noise', flush=True); answer.append(1)") == [1]


def test_log_messages_reach_the_parent(start: Start) -> None:
    messages: list[str] = []
    child = start()
    assert child.request("log.debug('%d pages', 3); answer.append(1)", seconds=20, log=messages.append) == [1]
    assert messages == ["3 pages"]
    assert send(child, "log.info('unread')") == []


def test_threads_get_their_own_answers(start: Start) -> None:
    child = start()
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: send(child, f"answer.append({number})"), range(500))
        assert list(answers) == [[number] for number in range(500)]


# --- errors and limits, which end one request


def test_known_errors_are_raised_in_the_parent(start: Start) -> None:
    child = start()
    for error in ("Expected", "Special"):
        with pytest.raises(Expected, match=r"^One\nat a time$"):
            send(child, f"raise {error}('One\\nat a time')")
    process = child.process_id
    assert not is_replaced(child, process)


def test_an_unexpected_error_replaces_the_process(start: Start) -> None:
    child = start()
    send(child, "")
    process = child.process_id
    with pytest.raises(ChildError, match=r"^failed with ZeroDivisionError: division by zero$"):
        send(child, "1 / 0")
    assert is_replaced(child, process)


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(100)",
        "while True: os.write(0, b'x'); time.sleep(0.02)",  # each part is in time
        ENDLESS_LINE,
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["silent", "slow", "endless", "stopped"],
)
def test_an_answer_has_a_time_limit(start: Start, code: str) -> None:
    child = start(max_bytes=1 << 40)
    process = child.process_id
    with pytest.raises(ChildTimeout, match=r"^takes longer than 0\.3 s$"):
        send(child, code, 0.3)
    assert is_replaced(child, process)


def test_a_request_that_is_not_received_times_out(start: Start) -> None:
    child = start()
    send(child, "")
    os.kill(child.process_id or 0, signal.SIGSTOP)
    with pytest.raises(ChildTimeout, match=r"^takes longer than 0\.3 s$"):
        send(child, "#" * 3_000_000, 0.3)
    assert is_replaced(child, None)


def test_the_time_limit_grows_with_the_request(start: Start) -> None:
    child = start()
    send(child, "")
    with pytest.raises(ChildTimeout, match=r"^takes longer than 0\.5 s$"):
        child.request("time.sleep(100)" + "#" * 999_983, seconds=0.1, seconds_per_megabyte=0.4)


def test_cpu_time_is_limited(start: Start) -> None:
    child = start()
    with pytest.raises(ChildTimeout, match=r"^takes more than 0\.2 s of CPU time$"):
        child.request("while True: pass", seconds=60, cpu_seconds=0.2)
    # The limit is per request.
    for _ in range(4):
        child.request(
            "end = time.process_time() + 0.1\nwhile time.process_time() < end: pass",
            seconds=60,
            cpu_seconds=0.2,
        )


@on_linux
def test_memory_is_limited(start: Start) -> None:
    child = start(memory=300 << 20)
    with pytest.raises(ChildError, match=r"^needs more than 300 MB of memory$"):
        send(child, "answer.append('x' * 10**9)")
    assert is_replaced(child, None)


def test_the_size_of_requests_is_limited(start: Start) -> None:
    child = start(max_bytes=1 << 20)
    send(child, "")
    process = child.process_id
    with pytest.raises(ChildError, match=r"^has a request of more than 1 MB$"):
        send(child, "#" * (1 << 20))
    assert not is_replaced(child, process)


@pytest.mark.parametrize(
    "code", ["answer.append('x' * (1 << 20))", "answer += ['x' * 1000] * 1100"], ids=["line", "lines"]
)
def test_the_size_of_answers_is_limited(start: Start, code: str) -> None:
    child = start(max_bytes=1 << 20)
    for _ in range(3):  # the limit is per request
        send(child, "answer.append('x' * 500_000)")
    with pytest.raises(ChildError, match=r"^has an answer of more than 1 MB$"):
        send(child, code)
    assert is_replaced(child, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os._exit(7)", "with status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "by signal SIGKILL"),
        ("ctypes.string_at(0)", "by signal SIGSEGV"),
        ("answer.append(1); os._exit(0)", "with status 0"),
    ],
)
def test_the_end_of_the_process_fails_one_request(start: Start, code: str, message: str) -> None:
    child = start()
    with pytest.raises(ChildError, match=f"^ended its process {message}$"):
        send(child, code)
    assert is_replaced(child, None)


def test_an_idle_process_that_ended_is_replaced(start: Start) -> None:
    child = start()
    send(child, "")
    process = child.process_id or 0
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    assert is_replaced(child, process)


def test_the_answer_of_an_interrupted_request_is_dropped(start: Start) -> None:
    child = start()

    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.request("log.info('.'); answer.append('late')", seconds=20, log=interrupt)
    assert is_replaced(child, None)


# --- start and end


def test_a_failed_start_fails_each_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, error in (("raise Expected('no')", Expected), ("1 / 0", ChildError)):
        child = start(code)
        for _ in range(2):
            with pytest.raises(error, match=r"no|division by zero"):
                send(child, "")
            assert child.process_id is None
    with pytest.raises(ChildTimeout, match=r"^takes longer than 0\.5 s$"):
        send(start("time.sleep(100)", start_seconds=0.5), "")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    # An unclosed socket is a warning, which fails the test.
    with pytest.raises(ChildError, match=r"^cannot start its process .*/no/such/python"):
        send(start(), "")
    gc.collect()


def test_a_missing_module_is_an_error() -> None:
    with pytest.raises(ChildError, match=r"^ended its process with status 1$"):
        send(ChildProcess("no_such_module", memory=1 << 30), "")


@pytest.mark.parametrize("way", ["stop", "close"])
def test_another_thread_can_end_a_request(start: Start, way: str) -> None:
    child = start()
    send(child, "")
    threading.Timer(0.2, getattr(child, way)).start()
    expected = ChildClosed if way == "close" else ChildError
    with pytest.raises(
        expected, match="is closed" if way == "close" else "ended its process by signal SIGKILL"
    ):
        send(child, "time.sleep(100)", 60)
    if way == "stop":
        assert is_replaced(child, None)
    else:
        with pytest.raises(ChildClosed):
            send(child, "")
        assert child.process_id is None


def test_a_writing_process_is_killed_before_its_connection_closes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection closed first, the child would end with BrokenPipeError."""
    child = start(max_bytes=1 << 40)
    send(child, "")
    process = child._child
    assert process is not None
    kill = process.process.kill

    def kill_late() -> None:
        time.sleep(0.3)
        kill()

    monkeypatch.setattr(process.process, "kill", kill_late)
    with pytest.raises(ChildTimeout):
        send(child, ENDLESS_LINE, 0.05)
    assert process.end() == -signal.SIGKILL


def test_the_environment_has_the_import_path_but_no_secrets(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    secret, language, paths = send(
        start(), "answer += map(os.environ.get, ['HF_TOKEN', 'LANG', 'PYTHONPATH'])"
    )
    assert (secret, language) == (None, "C.UTF-8")
    assert paths.split(os.pathsep) == [str(Path.cwd()), *sys.path[1:]]


def test_the_process_has_its_own_session_and_priority(start: Start) -> None:
    child = start(niceness=3)
    assert send(child, "answer.append(os.nice(0))") == [os.nice(0) + 3]
    assert os.getsid(child.process_id or 0) != os.getsid(0)


def test_sigterm_does_not_end_the_process(start: Start) -> None:
    child = start()
    send(child, "")
    process = child.process_id
    os.kill(process or 0, signal.SIGTERM)
    assert not is_replaced(child, process)


@pytest.mark.usefixtures("start")
def test_the_process_ends_with_its_object() -> None:
    child = ChildProcess("obedient_child", memory=1 << 30)
    send(child, "")
    pid = child.process_id or 0
    os.kill(pid, 0)
    del child
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_ends_after_its_parent_was_killed(tmp_path: Path, start: Start) -> None:
    """The parent is killed during a request with an endless loop."""
    script = (
        "import os, signal, sys, threading\n"
        "from app.machine.child_process import ChildProcess\n"
        "child = ChildProcess('obedient_child', memory=1 << 30)\n"
        "child.request('', seconds=20)\n"
        "print(child.process_id, flush=True)\n"
        "threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGKILL]).start()\n"
        "child.request('while True: pass', seconds=600, cpu_seconds=600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(tmp_path)])}
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == -signal.SIGKILL
    wait_for_end(int(finished.stdout))


def wait_for_end(pid: int) -> None:
    status = Path(f"/proc/{pid}/status")
    while status.exists() and "Z (zombie)" not in status.read_text():
        time.sleep(0.01)  # the test's time limit ends an endless wait
