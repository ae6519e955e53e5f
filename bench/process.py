"""Processes: programs that print figures; servers with start, readiness, memory, CPU time and end."""

from __future__ import annotations

import json
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

_START_LIMIT = 600.0  # seconds; a large model and the prefill of contexts take minutes
_STOP_LIMIT = 30.0  # seconds
_POLL_INTERVAL = 0.01  # seconds


def free_port() -> int:
    """An unused TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def printed_figures(command: Sequence[str]) -> dict[str, float]:
    """The figures that a program prints as JSON.

    Raises:
        BenchError: The program fails. The message has the end of its error output.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(
            f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr[-2000:]}"
        )
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


class ServerProcess:
    """A running server. It is ready when ``ready_url`` answers with status 200.

    Attributes:
        ready_after: Time from start to readiness, in seconds.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], ready_url: str, log: Path
    ) -> None:
        """Start the process and wait until it is ready.

        Raises:
            BenchError: The process ends, or is not ready in ten minutes. The message has the end of its log.
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
            time.sleep(_POLL_INTERVAL)
        self.ready_after = time.perf_counter() - started

    def _tree(self) -> Iterator[Path]:
        """Folders in /proc of the process and its descendants."""
        pids = [str(self._process.pid)]
        while pids:
            folder = Path("/proc", pids.pop())
            yield folder
            for children in folder.glob("task/*/children"):
                pids += children.read_text().split()

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process and its descendants. Shared pages count once per process."""
        pages = sum(int((folder / "statm").read_text().split()[1]) for folder in self._tree())
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process and its descendants, in seconds."""
        ticks = 0
        for folder in self._tree():
            # The process name in parentheses may contain spaces. utime and stime are fields 12, 13 after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process with SIGTERM, and after 30 s with SIGKILL."""
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
    except OSError:  # connection refused, or an error status
        return False
