"""Supervised child processes that answer requests within limits of time, memory and size.

For untrusted input to libraries that may hang, crash or exhaust memory. A thread in C code can be neither
ended nor limited. If a child fails, its current request fails, and the next request starts another child.

Protocol: lines of JSON over one socket. A request is ``[cpu_seconds, arguments]``. The answer is any number
of ``["part", value]`` and ``["log", message]``, then ``["end", null]`` or ``["error", [name, message]]``.
"""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from app.machine.identity import LIBRARY_VARIABLE

_RECEIVE_BYTES = 1 << 18  # about the size of a socket buffer
_MAX_BYTES = 256 << 20


class ChildError(Exception):
    """A request to a child process failed. The message is a predicate, such as ``takes longer than 1 s``."""


class ChildNotStarted(ChildError):
    """The process cannot be started."""


class ChildTimeout(ChildError):
    """A request exceeded its time limit."""


class ChildClosed(ChildError):
    """The request was ended, or rejected, because its :class:`ChildProcess` was closed."""


class ChildProcess:
    """Runs a module as a child process, started on demand. Thread-safe."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[Any] = (),
        *,
        memory: int,
        errors: Sequence[type[Exception]] = (),
        niceness: int = 0,
        start_seconds: float = 20.0,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        """Set the limits, without starting a child.

        Args:
            module: Run as ``python -m module``; must call :func:`serve`.
            arguments: JSON values for the ``start`` function of each child.
            memory: Bytes of address space; enforced on Linux.
            errors: Exceptions of the child's functions that are raised in the parent too.
            niceness: Added to the child's niceness.
            start_seconds: Time for the interpreter and ``start``, in seconds.
            max_bytes: Size of a request, and of its answer.
        """
        self._module = module
        self._arguments = arguments
        self._memory = memory
        self._errors = {error.__name__: error for error in errors}
        self._niceness = niceness
        self._start_seconds = start_seconds
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_closed = False

    @property
    def process_id(self) -> int | None:
        """Process id of the current child."""
        child = self._child
        return child.process.pid if child else None

    def request(
        self,
        *arguments: Any,
        seconds: float,
        seconds_per_megabyte: float = 0.0,
        cpu_seconds: float | None = None,
        log: Callable[[str], None] | None = None,
    ) -> list[Any]:
        """Send a request and wait for its answer. Requests of other threads wait.

        Args:
            arguments: JSON values for the child's handler. seconds: Time limit of the whole answer, excluding
            the start of a child. seconds_per_megabyte: Added to ``seconds`` for each MB of the request.
            cpu_seconds: CPU time limit; by default one second more than ``seconds``. The kernel enforces it
            in
                the child, even after the parent has exited.
            log: Receives log messages of the child.

        Returns:
            The values yielded by the handler.

        Raises:
            ChildTimeout: A time limit was exceeded.
            ChildNotStarted: The child cannot be started.
            ChildClosed: :meth:`close` was called.
            ChildError: The child ended, or exceeded a limit of memory or size.
            Exception: One of ``errors``, raised by ``start`` or the handler.
        """
        body = _encoded(arguments)
        if len(body) > self._max_bytes:
            raise ChildError(f"has a request of more than {self._max_bytes >> 20} MB")
        seconds += seconds_per_megabyte * len(body) / 1e6
        cpu_seconds = seconds + 1.0 if cpu_seconds is None else cpu_seconds
        with self._lock:
            if self._is_closed:
                raise ChildClosed("is closed")
            child = self._child
            if child is None or child.process.poll() is not None:
                child = self._start()
            return self._exchange(child, body, seconds, cpu_seconds, log)

    def stop(self) -> None:
        """End the current child, and its request with ChildError. The next request starts another child."""
        if child := self._child:
            child.process.kill()
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the current child, and its request with ChildClosed. Later requests are rejected."""
        self._is_closed = True
        self.stop()

    def _start(self) -> _Child:
        self._end()
        try:
            child = self._child = _Child(self._module, str(self._memory), str(self._niceness))
        except OSError as error:
            raise ChildNotStarted(f"cannot start its process ({error})") from error
        try:
            body = _encoded(self._arguments)
            self._exchange(child, body, self._start_seconds, self._start_seconds, None)
        except BaseException:
            self._end()
            raise
        return child

    def _exchange(
        self,
        child: _Child,
        body: bytes,
        seconds: float,
        cpu_seconds: float,
        log: Callable[[str], None] | None,
    ) -> list[Any]:
        child.begin(time.monotonic() + seconds, self._max_bytes)
        parts: list[Any] = []
        try:
            child.send(b"[%s, %s]\n" % (_encoded(cpu_seconds), body))
            while True:
                # One line per part: decoding a large answer at once would block all other threads.
                kind, value = json.loads(child.receive())
                if kind == "part":
                    parts.append(value)
                elif kind == "log":
                    if log:
                        log(value)
                else:
                    break
        except TimeoutError as error:
            self._end()
            raise ChildTimeout(f"takes longer than {seconds:.3g} s") from error
        except (OSError, EOFError, ValueError) as error:
            raise self._failure(self._end(), cpu_seconds) from error
        except BaseException:  # the remaining answer would be read as the next one
            self._end()
            raise
        if kind == "end":
            return parts
        name, message = value
        if name in self._errors:
            raise self._errors[name](message)
        self._end()
        if name == "MemoryError":
            raise ChildError(f"needs more than {self._memory >> 20} MB of memory")
        raise ChildError(f"failed with {name}: {message}")

    def _failure(self, status: int | None, cpu_seconds: float) -> ChildError:
        if self._is_closed:
            return ChildClosed("is closed")
        if status == -signal.SIGPROF:
            return ChildTimeout(f"takes more than {cpu_seconds:.3g} s of CPU time")
        if status is not None and status < 0:
            return ChildError(f"ended its process by signal {signal.Signals(-status).name}")
        return ChildError(f"ended its process with status {status}")

    def _end(self) -> int | None:
        child, self._child = self._child, None
        return child.end() if child else None


class _Child:
    """One process, with a socket for its standard input and output."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C in the terminal signals only the parent
                )
        except OSError:
            self._socket.close()
            raise
        self._received = io.BytesIO()
        self._deadline, self._n_bytes_left, self._max_bytes = 0.0, 0, 0
        # Also ends a process whose owner is garbage-collected, or exits.
        self._finalizer = weakref.finalize(self, _end, self.process, self._socket)

    def begin(self, deadline: float, max_bytes: int) -> None:
        """Set the limits of the next request: a time of ``time.monotonic()``, and the size of its answer."""
        self._deadline, self._n_bytes_left, self._max_bytes = deadline, max_bytes, max_bytes

    def send(self, line: bytes) -> None:
        """Send a line.

        Raises:
            TimeoutError: The deadline has passed.
            OSError: The process has ended.
        """
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        self._socket.sendall(line)

    def receive(self) -> bytes:
        """Receive the next line.

        Raises:
            TimeoutError: The deadline has passed.
            ChildError: The answer is too large.
            EOFError, OSError: The process has ended.
        """
        parts = [self._received.readline()]
        while not parts[-1].endswith(b"\n"):
            # The deadline is for the whole answer, because an endless answer can send parts in time.
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining)
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise EOFError
            self._n_bytes_left -= len(data)
            if self._n_bytes_left < 0:
                raise ChildError(f"has an answer of more than {self._max_bytes >> 20} MB")
            self._received = io.BytesIO(data)
            parts.append(self._received.readline())
        return b"".join(parts)

    def end(self) -> int:
        """Kill the process if it still runs; returns its exit status, negative for a signal."""
        self._finalizer()
        return self.process.wait()


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    process.kill()  # before the connection closes: a child that is writing would end with BrokenPipeError
    process.wait()
    connection.close()


def _environment() -> dict[str, str]:
    """The environment without tokens and keys."""
    kept = (
        *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV"),
        LIBRARY_VARIABLE,
    )
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return environment | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def _encoded(value: Any) -> bytes:
    # Paths may hold lone surrogates.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# --- the child


def serve(
    start: Callable[..., Callable[..., Iterable[Any]]],
    *,
    errors: Sequence[type[Exception]] = (),
    logger: logging.Logger | None = None,
) -> None:
    """Answer the requests of a :class:`ChildProcess` until it closes the connection. Run in the child.

    Args:
        start: Called once, with the ``arguments`` of ChildProcess. Returns the handler of requests, which
            yields the parts of an answer. Lone surrogates become question marks.
        errors: Exceptions that end a request but not the child.
        logger: Its messages go to the parent's ``log``.
    """
    memory, niceness = map(int, sys.argv[1:])
    if sys.platform == "linux":  # other systems do not enforce the limit, or reject it
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(niceness)
    # A service manager may signal all processes. The child ends when the parent closes the connection.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards output of libraries
    if logger:
        logger.addHandler(_LogSender(replies))
        logger.setLevel(logging.DEBUG)
    handle: Callable[..., Iterable[Any]] | None = None
    for line in sys.stdin.buffer:
        cpu_seconds, arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends the process, also within C
        try:
            if handle is None:
                handle = start(*arguments)
            else:
                for part in handle(*arguments):
                    _reply(replies, "part", part)
            _reply(replies, "end", None)
        except BrokenPipeError:  # the parent has ended
            return
        except Exception as error:
            known = next((kind for kind in errors if isinstance(error, kind)), None)
            _reply(replies, "error", [(known or type(error)).__name__, str(error)])
            if known is None:  # such as MemoryError, after which memory may be fragmented
                return
        signal.setitimer(signal.ITIMER_PROF, 0)


def _end_with_parent() -> None:
    """End the process when the connection closes, also within a request, whose limit may be an hour."""
    hangup = select.poll()
    hangup.register(sys.stdin.fileno(), getattr(select, "POLLRDHUP", select.POLLHUP))
    hangup.poll()
    os._exit(0)


class _LogSender(logging.Handler):
    def __init__(self, replies: BinaryIO) -> None:
        super().__init__()
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        _reply(self._replies, "log", record.getMessage())


def _reply(replies: BinaryIO, kind: str, value: Any) -> None:
    replies.write(json.dumps([kind, value], ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    if kind != "part":
        replies.flush()
