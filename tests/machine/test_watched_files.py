"""Files that are read again after a change."""

from __future__ import annotations

import os
import time
from pathlib import Path

from app.machine.watched_files import WatchedFiles


def test_a_change_that_keeps_inode_size_and_time_is_found(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("first")
    before = path.stat()
    read: list[str] = []
    files = WatchedFiles([path], lambda: read.append(path.read_text()))
    files.check()
    assert read == []
    end = time.monotonic() + 120
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock has coarse steps
        assert time.monotonic() < end
        path.write_text("other")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    files.check()
    files.check()
    assert read == ["other"]
