"""A child process that works through requests one at a time, and that can always be ended.

For work on what strangers wrote, done by libraries that may be made to run away or to crash: a thread
within a call into C can be neither ended nor limited in memory, a process can.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

_PART = 1 << 18  # bytes; about what a socket holds


class ChildProcess:
    """A Python module run as a process of its own, whose standard input and output are one socket."""

    def __init__(self, module: str) -> None:
        """Start ``python -m module``.

        Args:
            module: Reads lines of requests from its standard input, writes lines of replies to its
                standard output, and ends at the input's end.

        Raises:
            OSError: It cannot be started.
        """
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", module],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,  # the terminal's Ctrl-C is the parent's to handle
                )
        except OSError:
            self._socket.close()
            raise
        self._received = io.BytesIO()  # lines that came along with those already given out
        self._process = process
        # Also without close(), and at the interpreter's exit, no process is left behind.
        self._finalizer = weakref.finalize(self, _end, process, self._socket)

    @property
    def process_id(self) -> int:
        """Its number in the system."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs: it may have been ended from outside."""
        return self._process.poll() is None

    def send(self, line: bytes, *, timeout: float | None = None) -> None:
        """Send a request, ended by a line feed.

        Args:
            line: It and its line feed.
            timeout: Seconds until the process has taken all of it; any time without.

        Raises:
            TimeoutError: It has not. The process is of no use then; close it.
            OSError: The process has ended.
        """
        self._socket.settimeout(timeout)
        self._socket.sendall(line)

    def receive(self, *, timeout: float) -> bytes:
        """The next line of a reply, with its line feed.

        Args:
            timeout: Seconds until all of it is there.

        Raises:
            TimeoutError: It is not. The process is of no use then; close it.
            EOFError, OSError: The process has ended.
        """
        deadline = time.monotonic() + timeout
        parts = [self._received.readline()]
        while not parts[-1].endswith(b"\n"):
            # A limit for each part would let a process that writes without end run on without end.
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(remaining)
            data = self._socket.recv(_PART)
            if not data:
                raise EOFError("the process has ended")
            self._received = io.BytesIO(data)
            parts.append(self._received.readline())
        return b"".join(parts)

    def kill(self) -> None:
        """End the process from any thread; whoever waits for a reply gets EOFError or OSError."""
        self._process.kill()

    def close(self) -> int:
        """End the process if it still runs.

        Returns:
            Its exit status; minus the signal's number where a signal ended it, as its own limits do.
        """
        self._finalizer()
        return self._process.wait()


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    process.kill()  # before the connection closes: a child that is writing would end with BrokenPipeError
    process.wait()
    connection.close()


def _environment() -> dict[str, str]:
    """What the child needs of the environment: not the tokens and keys in it."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return environment | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
