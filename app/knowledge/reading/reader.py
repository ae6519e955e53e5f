"""Reads users' files in a child process.

Files are untrusted, and their readers are large libraries, some in C. A file can crash a reader, take hours,
or fill memory. In a child process this costs one skipped file. The child also keeps the work off the server's
interpreter lock and memory. It is reused for more files, at low priority.

Run as ``python -m app.knowledge.reading.reader`` this module is the child.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from app.knowledge.reading.document import (
    Block,
    Document,
    ReadFailed,
    TimeLimitExceeded,
    UnreadableDocument,
)
from app.machine.child_process import (
    ChildClosed,
    ChildError,
    ChildNotStarted,
    ChildProcess,
    ChildTimeout,
    serve,
)

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
SUFFIXES: frozenset[str] = frozenset(_FORMATS)  # of readable files, in lower case
MOST_BYTES = 50 << 20  # of a file
TIME_LIMIT = 20.0  # seconds of CPU time; a full page of a PDF takes 10 to 25 ms
MEMORY_LIMIT = 1 << 30  # bytes of address space; an idle child has about 30 MB
# Wall time per CPU time. On a busy machine a child of low priority may get little CPU time. Only a file
# system that does not respond takes this long.
_WALL_TIME_FACTOR = 30.0
_START_TIME_LIMIT = 300.0  # seconds, enough for a busy machine
_NICENESS = 10
_ERRORS = [ReadFailed, UnreadableDocument]  # of the child


def read_document(path: Path) -> Document:
    """Read a file. For several files, use a :class:`DocumentReader`.

    Raises:
        UnreadableDocument: The file has no readable text; the message has the reason.
    """
    with DocumentReader() as reader:
        return reader.read(path)


class DocumentReader:
    """Reads files in a child process, started at the first file and replaced after it has ended."""

    def __init__(
        self,
        *,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Set the limits per file.

        Args:
            time_limit: Seconds of CPU time.
            memory_limit: Bytes of the child's address space; enforced on Linux.
            most_bytes: Size of the file.
        """
        self._time_limit = time_limit
        self._child = ChildProcess(
            "app.knowledge.reading.reader",
            [most_bytes],
            memory=memory_limit,
            errors=_ERRORS,
            niceness=_NICENESS,
            start_seconds=_START_TIME_LIMIT,
        )

    @property
    def process_id(self) -> int | None:
        """Process id of the current child."""
        return self._child.process_id

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path) -> Document:
        """Read a file with the reader for its suffix. Other threads wait.

        Raises:
            UnreadableDocument: The file has no readable text; the message has the reason.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise UnreadableDocument(f"has no supported format: {', '.join(sorted(SUFFIXES))}")
        try:
            blocks = self._child.request(
                os.fspath(path.absolute()),
                seconds=_WALL_TIME_FACTOR * self._time_limit,
                cpu_seconds=self._time_limit,
                log=lambda message: logger.debug("%s: %s", path, message),
            )
        except ChildClosed as error:
            raise UnreadableDocument("is not read: the reader was closed") from error
        except ChildTimeout as error:
            raise TimeLimitExceeded(f"cannot be read: the reader {error} (KNOWLEDGE_FILE_SECONDS)") from error
        except ChildNotStarted as error:
            raise ReadFailed(f"cannot be read: the reader {error}") from error
        except ChildError as error:
            raise UnreadableDocument(f"cannot be read: the reader {error}") from error
        return Document(tuple(Block(*block) for block in blocks))

    def pause(self) -> None:
        """End an idle child. The next file starts another."""
        self._child.stop()

    def close(self) -> None:
        """End the child. A file that another thread is reading becomes unreadable."""
        self._child.close()


# --- the child


def _start(most_bytes: int) -> Callable[[str], Iterator[tuple[str, int, int | None]]]:
    def handle(path: str) -> Iterator[tuple[str, int, int | None]]:
        try:
            document = read_here(Path(path), most_bytes)
        except RecursionError as error:
            raise UnreadableDocument("is nested too deeply") from error
        for block in document.blocks:
            yield block.text, block.level, block.page

    return handle


def read_here(path: Path, most_bytes: int = MOST_BYTES) -> Document:
    """Read a file in this process, without limits of time and memory.

    Raises:
        UnreadableDocument: The file has no readable text; the message has the reason.
        RecursionError, MemoryError: The file is nested too deeply or expands too much.
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
        # Without O_NONBLOCK, opening a named pipe would block.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableDocument("is not a file")
            data = file.read(most_bytes + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UnreadableDocument("does not exist") from error
        if error.errno == errno.EISDIR:
            raise UnreadableDocument("is not a file") from error
        denied = error.errno in (errno.EACCES, errno.EPERM)
        reason = "permission denied" if denied else error.strerror
        raise ReadFailed(f"cannot be read: {reason}") from error
    if len(data) > most_bytes:
        megabytes = max(status.st_size, len(data)) / (1 << 20)
        raise UnreadableDocument(f"has {megabytes:.1f} MB; at most {most_bytes / (1 << 20):g} MB are read")
    return data


def _reader(suffix: str) -> Callable[[bytes], list[Block]]:
    """The reader of a format. Its library is imported on first use."""
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


if __name__ == "__main__":
    serve(_start, errors=_ERRORS, logger=logger)
