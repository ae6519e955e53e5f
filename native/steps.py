"""Run the long commands of a build: output goes to a log, one progress line to the terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_LAST_LINES = 30
_MAX_LINE = 300  # characters; compiler commands have thousands
_POLL_INTERVAL = 0.5  # seconds; also the maximum delay of a signal

# Patterns of the log, each with the cause and a remedy.
_ADVICE = (
    (
        r"Killed signal|signal 9|annot allocate memory|virtual memory exhausted|std::bad_alloc",
        "out of memory; compile one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (r"No space left on device", "disk full; set TMPDIR to a folder with 1 GB free"),
    (
        r"No matching distribution|Could not find a version|name resolution|Max retries|timed out|Connection",
        "a download failed; check the network, the proxy and pip's settings",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a downloaded file differs from the pinned one; check the proxy or mirror",
    ),
    (r"ensurepip", "Python's venv module is incomplete; Debian and Ubuntu: apt install python3-venv"),
)
_WITH_OWN_FLAGS = "find the first error in the log; try without LLAMA_BUILD_FLAGS"
_OTHERWISE = (
    "find the first error in the log; try another compiler (CC, CXX), or "
    "LLAMA_BUILD_FLAGS=-DGGML_NATIVE=ON (instruction sets chosen by llama.cpp)"
)


class BuildError(Exception):
    """A build, its caching or its installation failed. The message names a remedy."""


def run_step(
    title: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str], minutes: int = 0
) -> None:
    """Run ``command`` and append its output to ``log``; ``minutes``: usual duration, 0 if short.

    Raises:
        BuildError: The command fails. The message has the end of the log and a remedy.
    """
    expected = f", usually about {minutes} min" if minutes else ""
    start, started = log.stat().st_size if log.exists() else 0, time.monotonic()
    terminal = sys.stderr.isatty()
    if not terminal:
        print(f"{title}{expected}", file=sys.stderr, flush=True)
    with _signals_deferred() as interrupted, log.open("ab") as output:
        # A new session, so that killpg() ends all compilers.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            while _still_runs(child) and not interrupted:
                if terminal:
                    line = f"{title}: {duration(time.monotonic() - started)}{expected}{_ninja_count(log)}"
                    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if terminal:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if child.returncode:
        otherwise = _WITH_OWN_FLAGS if environment.get("LLAMA_BUILD_FLAGS") else _OTHERWISE
        raise BuildError(_failure(title, child.returncode, log, start, otherwise))


@contextmanager
def _signals_deferred() -> Iterator[list[int]]:
    """Defer SIGINT and SIGTERM until the end of the block; yields the list of received signals.

    An exception in a signal handler can interrupt Popen() before the child's id is known. It can also leave
    subprocess's lock taken, and waiting for the child would never end.
    """
    received: list[int] = []
    deferred = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in deferred}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def duration(seconds: float) -> str:
    """Format seconds, such as ``3 min 2 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _still_runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_POLL_INTERVAL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _ninja_count(log: Path) -> str:
    """Progress from ninja's last ``[57/92]`` in the log."""
    counts = re.findall(rb"^\s*\[(\d+)/(\d+)\]", _tail(log, 20_000), re.MULTILINE)
    return f" ({int(counts[-1][0])} of {int(counts[-1][1])} files)" if counts else ""


def _tail(log: Path, size: int) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read()


def _failure(title: str, status: int, log: Path, start: int, otherwise: str) -> str:
    with log.open("rb") as file:
        file.seek(start)
        output = file.read().decode("utf-8", "replace")
    how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, output)), otherwise)
    last = "\n".join(f"  | {_shortened(line)}" for line in output.splitlines()[-_LAST_LINES:])
    return f"{title} failed ({how}). End of {log}:\n{last}\nRemedy: {advice}"


def _shortened(line: str) -> str:
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}…"
