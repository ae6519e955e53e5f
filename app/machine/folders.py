"""Locations of the user's files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder for reproducible data, with one subfolder per purpose."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenstream"
