"""A server's process: start it, wait until it is ready, weigh it, end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.client import BenchError

_START_LIMIT = 600.0  # seconds: a large model, contexts to be prefilled
_STOP_LIMIT = 30.0  # seconds
_LOOK_EVERY = 0.01  # seconds


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """A running server. It is ready when it answers 200 at ``ready_url``.

    Attributes:
        ready_after: How long that took, in seconds.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], ready_url: str, log: Path
    ) -> None:
        """Start it and wait.

        Raises:
            BenchError: It ends, or is not ready in ten minutes; the message has the end of its log.
        """
        started = time.perf_counter()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
            )
        while not _answers(ready_url):
            ended = self._process.poll() is not None
            if ended or time.perf_counter() - started > _START_LIMIT:
                self.stop()
                end = log.read_text("utf-8", "replace")[-2000:]
                raise BenchError(f"{command[0]} {'ended' if ended else 'is not ready'}. Its log:\n{end}")
            time.sleep(_LOOK_EVERY)
        self.ready_after = time.perf_counter() - started

    def _tree(self) -> Iterator[Path]:
        """The folders in /proc of the process and all its descendants."""
        pids = [str(self._process.pid)]
        while pids:
            folder = Path("/proc", pids.pop())
            yield folder
            for children in folder.glob("task/*/children"):
                pids += children.read_text().split()

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process and its descendants; what they share is counted for each."""
        pages = sum(int((folder / "statm").read_text().split()[1]) for folder in self._tree())
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the process and its descendants since they started."""
        ticks = 0
        for folder in self._tree():
            # The name in parentheses may hold spaces; utime and stime are the 12th and 13th fields after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it, with a signal that leaves it time to tidy up."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # nobody listens yet, or a status that says so
        return False
