"""Reads users' files, each in a child process that can be ended.

Files come from anywhere, and their readers are large libraries, some in C: a file may crash one, or keep it
busy for hours, or make it fill memory. In a child that costs one skipped file. It also leaves the server's
interpreter lock and its memory to the server. The child stays for further files, at low priority: starting
it takes some 0.1 s, the reading of most files a few milliseconds.

Run as ``python -m app.knowledge.reading.reader`` this module is the child: a path as a line of JSON on its
standard input, the blocks and at last the outcome as lines of JSON on its standard output.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from app.knowledge.reading.document import Block, Document, UnreadableDocument
from app.machine.child_process import ChildProcess

__all__ = ["SUFFIXES", "Block", "Document", "DocumentReader", "UnreadableDocument", "read_document"]

logger = logging.getLogger("tokenstream.knowledge")

_FORMATS = {
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
}
SUFFIXES: frozenset[str] = frozenset(_FORMATS)  # of the files that are read; in small letters here only
MOST_BYTES = 50 << 20  # of a file
TIME_LIMIT = 300.0  # seconds of processor time; a PDF of 5,000 full pages takes a minute or two
MEMORY_LIMIT = 1 << 30  # bytes of address space; an idle child has about 30 MB
# Seconds without a reply. The child has its processor time limited, but may get little of the processor;
# only a file system that does not answer takes this long.
_SILENCE_LIMIT = 3600.0
_NICENESS = 10


def read_document(path: Path) -> Document:
    """Read one file; for several, keep a :class:`DocumentReader`.

    Raises:
        UnreadableDocument: It gives no text; the message says why.
    """
    with DocumentReader() as reader:
        return reader.read(path)


class DocumentReader:
    """Reads files in a child process, started at the first file and replaced when it was ended."""

    def __init__(
        self,
        *,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Set the limits of a single file.

        Args:
            time_limit: Seconds of processor time.
            memory_limit: Bytes of the child's address space; enforced on Linux.
            most_bytes: Its size.
        """
        self._limits = (time_limit, memory_limit, most_bytes)
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._is_closed = False

    @property
    def process_id(self) -> int | None:
        """Of the child, while there is one."""
        child = self._child
        return child.process_id if child else None

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path) -> Document:
        """Read a file, by the reader for its suffix. One thread at a time; others wait.

        Raises:
            UnreadableDocument: It gives no text; the message says why.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise UnreadableDocument(f"is of no format that is read: {', '.join(sorted(SUFFIXES))}")
        with self._lock:
            if self._is_closed:
                raise UnreadableDocument("is not read: the reader was closed")
            try:
                if not (self._child and self._child.is_alive):
                    self._end()
                    self._child = ChildProcess("app.knowledge.reading.reader")
                return _ask(self._child, path, self._limits)
            except TimeoutError as error:
                self._end()
                raise UnreadableDocument("takes too long: its file system does not answer") from error
            except (OSError, EOFError) as error:
                status = self._end()
                if self._is_closed:
                    raise UnreadableDocument("is not read: the reader was closed") from error
                if status == -signal.SIGPROF:
                    limit = self._limits[0]
                    raise UnreadableDocument(
                        f"takes more than {limit:g} s of processor time to read"
                    ) from error
                raise UnreadableDocument("is damaged: reading it ended the process that reads") from error

    def close(self) -> None:
        """End the child, and with it the reading of a file in another thread: that is unreadable now."""
        self._is_closed = True
        if child := self._child:
            child.kill()
        with self._lock:
            self._end()

    def _end(self) -> int | None:
        child, self._child = self._child, None
        return child.close() if child else None


def _ask(child: ChildProcess, path: Path, limits: tuple[float, int, int]) -> Document:
    child.send(json.dumps([os.fspath(path.absolute()), *limits]).encode() + b"\n")
    blocks: list[Block] = []
    while True:
        # A line for each block: a large document as one would keep all other threads from running.
        kind, *values = json.loads(child.receive(timeout=_SILENCE_LIMIT))
        if kind == "block":
            blocks.append(Block(*values))
        elif kind == "note":
            logger.debug("%s: %s", path, values[0])
        elif kind == "unreadable":
            raise UnreadableDocument(values[0])
        else:
            return Document(tuple(blocks))


# --- the child


def main() -> None:
    """Answer requests until the parent closes the connection."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries may print
    # A service manager may signal all processes; this one ends when its input does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logger.addHandler(_Notes(replies))
    logger.setLevel(logging.DEBUG)
    for line in sys.stdin.buffer:
        path, time_limit, memory_limit, most_bytes = json.loads(line)
        if sys.platform == "linux":  # elsewhere the limit is not enforced, or refused
            resource.setrlimit(resource.RLIMIT_AS, (memory_limit, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, time_limit)  # ends this process, also within a library
        try:
            for block in read_here(Path(path), most_bytes).blocks:
                _reply(replies, "block", block.text, block.level, block.page)
            _reply(replies, "end")
        except UnreadableDocument as error:
            _reply(replies, "unreadable", str(error))
        except RecursionError:
            _reply(replies, "unreadable", "is nested too deeply")
        except MemoryError:
            _reply(replies, "unreadable", f"needs more than {memory_limit >> 20} MB of memory to read")
            return  # what is left of that memory may be in pieces
        signal.setitimer(signal.ITIMER_PROF, 0)


def read_here(path: Path, most_bytes: int = MOST_BYTES) -> Document:
    """Read a file in this process, without limits of time and memory.

    Raises:
        UnreadableDocument: It gives no text; the message says why.
        RecursionError, MemoryError: It is made to be unreadable.
    """
    data = _contents(path, most_bytes)
    if not data.strip():
        raise UnreadableDocument("is empty")
    blocks = _reader(path.suffix.lower())(data)
    if not blocks:
        raise UnreadableDocument("has no text")
    return Document(tuple(blocks))


def _contents(path: Path, most_bytes: int) -> bytes:
    try:
        # A named pipe would be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableDocument("is not a file")
            data = file.read(most_bytes + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            reason = "has vanished"
        elif error.errno == errno.EISDIR:
            reason = "is not a file"
        elif error.errno in (errno.EACCES, errno.EPERM):
            reason = "may not be read: permission denied"
        else:
            reason = f"cannot be read: {error.strerror}"
        raise UnreadableDocument(reason) from error
    if len(data) > most_bytes:
        megabytes = max(status.st_size, len(data)) / (1 << 20)
        raise UnreadableDocument(f"has {megabytes:.1f} MB; at most {most_bytes / (1 << 20):g} MB are read")
    return data


def _reader(suffix: str) -> Callable[[bytes], list[Block]]:
    """The reader of a format; its library is loaded with the first file of that format."""
    if _FORMATS[suffix] == "text":
        from app.knowledge.reading.text import read
    elif _FORMATS[suffix] == "markdown":
        from app.knowledge.reading.markdown import read
    elif _FORMATS[suffix] == "html":
        from app.knowledge.reading.html import read
    elif _FORMATS[suffix] == "pdf":
        from app.knowledge.reading.pdf import read
    else:
        from app.knowledge.reading.docx import read
    return read


class _Notes(logging.Handler):
    """Sends what is logged here to the parent's log."""

    def __init__(self, replies: BinaryIO) -> None:
        super().__init__()
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        _reply(self._replies, "note", record.getMessage())


def _reply(replies: BinaryIO, *values: Any) -> None:
    replies.write(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    if values[0] != "block":
        replies.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent has gone meanwhile
        main()
