"""The cache folder of a read-only home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from app.machine.folders import cache_folder

UNWRITABLE = Path("/proc/nobody")  # also for root


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(UNWRITABLE / tmp_path.name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"tokenstream-{os.getuid()}"


def test_a_writable_home_has_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tokenstream"


def test_a_read_only_home_is_replaced_by_a_private_folder(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache_folder() == cache_folder() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert caplog.messages == [
        f"{Path.home()}/.cache/tokenstream is not writable: caches are kept in {temporary}; "
        "set XDG_CACHE_HOME"
    ]


@pytest.mark.parametrize("kind", ["open", "link"])
def test_a_folder_that_others_can_use_is_no_substitute(temporary: Path, kind: str) -> None:
    if kind == "open":
        temporary.mkdir(mode=0o700)
        temporary.chmod(0o755)
    else:
        (temporary.parent / "target").mkdir(mode=0o700)
        temporary.symlink_to(temporary.parent / "target")
    assert cache_folder() == Path.home() / ".cache" / "tokenstream"


def test_a_configured_folder_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(UNWRITABLE))
    assert cache_folder() == UNWRITABLE / "tokenstream"
