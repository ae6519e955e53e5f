"""Locations of the user's files."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger("tokenstream.folders")


def cache_folder() -> Path:
    """Folder for reproducible data, with one subfolder per purpose.

    Without XDG_CACHE_HOME and with a read-only home, it is a private folder for temporary files. Otherwise
    every start would repeat the measurements of the first one and prefill all contexts.
    """
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured).expanduser() / "tokenstream"
    return _writable(Path("~/.cache").expanduser() / "tokenstream")


@functools.cache
def _writable(folder: Path) -> Path:
    if _can_write(folder):
        return folder
    substitute = Path(tempfile.gettempdir()) / f"tokenstream-{os.getuid()}"
    if not _can_write(substitute) or not _is_private(substitute):
        return folder  # its users log the error
    logger.warning("%s is not writable: caches are kept in %s; set XDG_CACHE_HOME", folder, substitute)
    return substitute


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _is_private(folder: Path) -> bool:
    """Whether only this user can use a folder. Others may have created it in a shared place."""
    status = folder.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o077 and not folder.is_symlink()
