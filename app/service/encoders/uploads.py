"""Documents that clients store in DATA_PATH."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from app.knowledge.reading.reader import MOST_BYTES, SUFFIXES
from app.service.errors import BadRequest

FOLDER = "uploads"  # below DATA_PATH
_MOST_NAME_BYTES = 200
_NOT_IN_NAMES = '/\\:"<>|?*'


class TooLarge(Exception):
    """A document is larger than the knowledge base reads."""


def checked_name(name: str) -> str:
    """Check the file name of an upload.

    Raises:
        BadRequest: It is a path, hidden, too long, or of a kind that is not read.
    """
    shown = repr(name[:100])
    if not name or name.startswith((".", "~$")) or any(c in _NOT_IN_NAMES or ord(c) < 32 for c in name):
        message = (
            f"{shown} should have no dot or ~$ at its start, no control character, none of {_NOT_IN_NAMES}"
        )
        raise BadRequest(message, field="name")
    if len(name.encode("utf-8", "replace")) > _MOST_NAME_BYTES:
        raise BadRequest(f"{shown}… should have at most {_MOST_NAME_BYTES} bytes", field="name")
    if Path(name).suffix.lower() not in SUFFIXES:
        raise BadRequest(f"{shown} should end with one of {', '.join(sorted(SUFFIXES))}", field="name")
    return name


async def store_upload(data_path: Path, name: str, parts: AsyncIterator[bytes]) -> int:
    """Store a document in the folder of uploads, whole or not at all. An old version is replaced.

    Args:
        data_path: DATA_PATH.
        name: File name of the document.
        parts: Its content.

    Returns:
        Its size in bytes.

    Raises:
        BadRequest: The name is not allowed.
        TooLarge: The content is larger than the knowledge base reads.
    """
    folder = anyio.Path(data_path, FOLDER)
    target = folder / checked_name(name)
    await folder.mkdir(exist_ok=True)
    # A hidden file is not indexed.
    partial = folder / f".{secrets.token_hex(8)}.part"
    size = 0
    try:
        async with await partial.open("xb") as file:
            async for part in parts:
                size += len(part)
                if size > MOST_BYTES:
                    raise TooLarge
                await file.write(part)
        await anyio.to_thread.run_sync(os.replace, partial, target)
    except BaseException:
        with anyio.CancelScope(shield=True), contextlib.suppress(FileNotFoundError):
            await partial.unlink()
        raise
    return size
