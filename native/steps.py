"""Run the long commands of a build: output into a log, one line of progress for the person who waits."""

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
_LONGEST_LINE = 300  # a compiler's command has thousands of characters
_LOOK_EVERY = 0.5  # seconds; a signal is noticed within as much

# What a line in the log says about the cause, and what helps against it.
_ADVICE = (
    (
        r"Killed signal|signal 9|annot allocate memory|virtual memory exhausted|std::bad_alloc",
        "memory ran out; compile one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (r"No space left on device", "a disk is full; TMPDIR names another folder for the build's 1 GB"),
    (
        r"No matching distribution|Could not find a version|name resolution|Max retries|timed out|Connection",
        "a package could not be downloaded; check the network, the proxy and pip's settings",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a downloaded file is not the pinned one; a proxy or mirror may serve damaged files",
    ),
    (r"ensurepip", "Python's venv module is not complete; Debian and Ubuntu: apt install python3-venv"),
)
_WITH_OWN_FLAGS = "look for the first error in the log, and whether it builds without LLAMA_BUILD_FLAGS"
_OTHERWISE = (
    "look for the first error in the log; another compiler can be named with CC and CXX, and "
    "LLAMA_BUILD_FLAGS=-DGGML_NATIVE=ON leaves the instruction sets to llama.cpp"
)


class BuildError(Exception):
    """The library could not be built, kept or installed; the message says what to try."""


def run_step(
    title: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str], minutes: int = 0
) -> None:
    """Run ``command`` and append its output to ``log``; ``minutes`` is how long it usually takes, if long.

    Raises:
        BuildError: It fails; the message has the end of the log and what to try.
    """
    expected = f", usually about {minutes} min" if minutes else ""
    start, started = log.stat().st_size if log.exists() else 0, time.monotonic()
    terminal = sys.stderr.isatty()
    if not terminal:
        print(f"{title}{expected}", file=sys.stderr, flush=True)
    with _signals_kept() as ended, log.open("ab") as output:
        # A session of its own: whatever ends this program can then end all compilers at once.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            while _still_runs(child) and not ended:
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
def _signals_kept() -> Iterator[list[int]]:
    """Keep signals that end this program for later: the list has those that came.

    An exception out of a signal's handler can come between any two instructions: with a child started but
    not yet known, or with subprocess's lock taken, so that waiting for the child never ends.
    """
    came: list[int] = []
    kept = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in kept}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def duration(seconds: float) -> str:
    """Seconds in words, such as ``3 min 2 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _still_runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_LOOK_EVERY)
    except subprocess.TimeoutExpired:
        return True
    return False


def _ninja_count(log: Path) -> str:
    """Ninja's last ``[57/92]`` in the log, while it compiles."""
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
    return f"{title} failed ({how}). The end of {log}:\n{last}\nWhat to try: {advice}"


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
