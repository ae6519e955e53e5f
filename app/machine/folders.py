"""Folders of the user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder for data that can be computed again, with one subfolder per purpose."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenstream"
