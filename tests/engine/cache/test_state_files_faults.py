"""State files with other owners or modes, damage, failed writes, killed and concurrent processes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.cache.state_files import StateFiles
from tests.conftest import ROOT
from tests.engine.cache.state_files_rig import (
    KEY,
    LARGE,
    OTHER_KEY,
    STATE,
    TOKENS,
    is_same,
    only_file,
    random_state,
    warnings,
)


def change_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make another user the owner of a path. Without root, this process becomes another user."""
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_writable_by_others_is_not_used(
    folder: Path, states: StateFiles, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    states.save(TOKENS, STATE)
    folder.chmod(mode)
    for n in range(3):
        assert states.load(TOKENS) is None
        states.save(TOKENS[n + 1 :], STATE)
    assert len(list(folder.iterdir())) == 1
    assert warnings(caplog) == [
        f"The folder {folder} is not used for states: other users can write to it; run: chmod go-w {folder}"
    ]
    folder.chmod(0o755)  # other users can read only
    assert is_same(states.load(TOKENS), STATE)


def test_a_folder_of_another_user_is_not_used(
    folder: Path, states: StateFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    change_owner(folder, monkeypatch)
    assert states.load(TOKENS) is None
    states.save(TOKENS[1:], STATE)
    assert len(list(folder.iterdir())) == 1
    (warning,) = warnings(caplog)
    assert warning.endswith(" owns it; set CACHE_DIR to a folder of your own")


def test_a_file_of_another_user_is_ignored(
    folder: Path, states: StateFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    if os.geteuid() != 0:
        pytest.skip("only root can change the owner of a file")
    change_owner(only_file(folder), monkeypatch)
    assert states.load(TOKENS) is None
    (warning,) = warnings(caplog)
    assert warning.endswith(" is ignored: user 4711 owns it")


def truncate(path: Path, n_bytes: int) -> None:
    os.truncate(path, n_bytes)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def put_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("moved")))


def put_other_key(path: Path) -> None:
    path.unlink()
    StateFiles(path.parent, OTHER_KEY, max_bytes=LARGE).save(TOKENS, STATE)
    only_file(path.parent).rename(path)


def put_other_tokens(path: Path) -> None:
    path.unlink()
    StateFiles(path.parent, KEY, max_bytes=LARGE).save(TOKENS[::-1], STATE)
    only_file(path.parent).rename(path)


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: truncate(p, 0), "not a state"),
    "truncated in the magic line": (lambda p: truncate(p, 10), "not a state"),
    "truncated in the version": (lambda p: truncate(p, 19), "its format has another version"),
    "truncated in the checksum": (lambda p: truncate(p, 40), "its header is not JSON"),
    "truncated in the header": (lambda p: truncate(p, 120), "its header is not JSON"),
    "truncated in the state": (lambda p: truncate(p, 50_000), r"it has \d+ bytes of 100000"),
    "truncated by a byte": (lambda p: truncate(p, p.stat().st_size - 1), "it has 99999 bytes of 100000"),
    "longer by a byte": (lambda p: truncate(p, p.stat().st_size + 1), "it has 100001 bytes of 100000"),
    "other version": (lambda p: replace(p, b"state 1\n", b"state 2\n"), "its format has another version"),
    "other format": (lambda p: p.write_bytes(b"GGUF" * 1000), "not a state"),
    "no object": (lambda p: replace(p, b'{"key"', b'[1]\n{"'), "its header is not a JSON object"),
    "deep": (lambda p: p.write_bytes(b"tokenstream state 1\n\n" + b"[" * 65_000), "is not JSON"),
    "wrong checksum": (lambda p: replace(p, p.read_bytes()[20:84], b"0" * 64), "its checksum does not match"),
    "other key": (put_other_key, "its header differs in key$"),
    "other tokens": (put_other_tokens, "its header differs in tokens$"),
    "directory": (put_directory, "Is a directory"),
    "pipe": (put_pipe, "not a regular file"),
    "link to itself": (put_link_to_itself, "Too many levels of symbolic links"),
    "link to a valid state": (put_link, "Too many levels of symbolic links"),
    "writable by the group": (lambda p: p.chmod(0o660), "other users can write to it"),
    "writable by all": (lambda p: p.chmod(0o606), "other users can write to it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_invalid_file_is_ignored_with_a_warning_and_overwritten(
    folder: Path, states: StateFiles, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    states.save(TOKENS, STATE)
    path = only_file(folder)
    do_damage, reason = DAMAGES[damage]
    do_damage(path)
    assert states.load(TOKENS) is None
    (warning,) = warnings(caplog)
    assert f"The saved state {path} is ignored: " in warning
    assert re.search(reason, warning)

    states.save(TOKENS, STATE)
    if damage == "directory":  # a directory is not removed
        assert path.is_dir()
    else:
        assert is_same(states.load(TOKENS), STATE)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), in_header=st.booleans())
def test_a_file_with_a_flipped_bit_is_not_loaded(
    folder: Path, position: float, bit: int, in_header: bool
) -> None:
    states = StateFiles(folder, KEY, max_bytes=LARGE)
    states.save(TOKENS, STATE)
    path = only_file(folder)
    data = bytearray(path.read_bytes())
    data[int(position * (300 if in_header else len(data)))] ^= 1 << bit
    path.write_bytes(data)
    assert states.load(TOKENS) is None


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Make writes beyond ``n_bytes`` of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_warning_and_keeps_saved_states(
    folder: Path, states: StateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    with full_disk(50_000):
        for n in range(3):
            states.save(TOKENS[n:], random_state(100_000, seed=1))
    (warning,) = warnings(caplog)
    assert warning == f"No state can be saved in {folder}: File too large"
    assert is_same(states.load(TOKENS), STATE)
    assert len(list(folder.iterdir())) == 1

    states.save(TOKENS[1:], STATE)  # the disk has space again
    assert is_same(states.load(TOKENS[1:]), STATE)


def test_a_folder_that_cannot_be_created_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    states = StateFiles(tmp_path / "file" / "states", KEY, max_bytes=LARGE)
    assert states.load(TOKENS) is None
    states.save(TOKENS, STATE)
    states.save(TOKENS, STATE)
    assert states.load(TOKENS) is None
    assert warnings(caplog) == [f"No state can be saved in {tmp_path}/file/states: Not a directory"]


CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
from app.engine.cache.state_files import StateFiles
states = StateFiles(Path(sys.argv[1]), {"model": "smollm2 é", "kv_type": "f16"}, max_bytes=int(sys.argv[2]))
"""


def child(code: str, folder: Path, max_bytes: int = LARGE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(folder), str(max_bytes)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_temporary_file_of_a_killed_process_is_ignored_and_removed(
    folder: Path, states: StateFiles
) -> None:
    states.save(TOKENS, STATE)
    killed = child(
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "states.save(range(700), np.zeros(1000, np.uint8))",
        folder,
    )
    assert killed.wait(60) == -signal.SIGKILL
    assert killed.stderr is not None
    killed.stderr.close()
    (leftover,) = folder.glob("*.tmp")
    assert is_same(states.load(TOKENS), STATE)

    states.save(TOKENS, STATE)
    assert leftover.exists()  # another process can be writing it
    os.utime(leftover, (0, time.time() - 7200))
    states.save(TOKENS, STATE)
    assert not leftover.exists()


def test_two_processes_can_share_a_folder(folder: Path) -> None:
    # The limit is two of the four files that both processes write and remove.
    code = """
for round in range(100):
    tokens = range(round % 4, 700)
    state = states.load(tokens)
    assert state is None or (state == round % 4).all(), state
    states.save(tokens, np.full(50_000 + os.getpid() % 2, round % 4, np.uint8))
"""
    both = [child(code, folder, max_bytes=110_000) for _ in range(2)]
    assert [p.communicate(timeout=100)[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 110_000
    assert not list(folder.glob("*.tmp"))


def test_states_are_loaded_from_a_read_only_folder(
    states: StateFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)

    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "utime", deny)
    assert is_same(states.load(TOKENS), STATE)
    assert not caplog.records
