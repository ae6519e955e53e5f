"""Saved states on a real disk: exact or none, whole or not at all, within their bound."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.engine.cache.state_files import StateFiles
from tests.conftest import ROOT

KEY = {"model": "smollm2 é", "kv_type": "f16"}
OTHER_KEY = {**KEY, "kv_type": "q8_0"}
TOKENS = list(range(700))
ROOMY = 1 << 30


def random_state(n_bytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


STATE = random_state(100_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "states"


@pytest.fixture
def states(folder: Path) -> StateFiles:
    return StateFiles(folder, KEY, max_bytes=ROOMY)


def is_same(loaded: NDArray[np.uint8] | None, saved: NDArray[np.uint8]) -> bool:
    return loaded is not None and loaded.dtype == np.uint8 and np.array_equal(loaded, saved)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_state_outlives_the_object_that_saved_it(
    folder: Path, states: StateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    assert is_same(StateFiles(folder, KEY, max_bytes=ROOMY).load(TOKENS), STATE)
    assert not caplog.records


def test_a_state_that_was_saved_again_replaces_the_first(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    states.save(TOKENS, STATE[:500])
    assert is_same(states.load(TOKENS), STATE[:500])
    assert len(list(folder.iterdir())) == 1


def test_the_loaded_state_is_the_callers_own(states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    loaded = states.load(TOKENS)
    assert loaded is not None
    loaded[:] = 0
    assert is_same(states.load(TOKENS), STATE)


def test_every_other_byte_of_an_array_is_saved_as_it_reads(states: StateFiles) -> None:
    states.save(TOKENS, STATE[::2])
    assert is_same(states.load(TOKENS), STATE[::2])


@pytest.mark.parametrize("tokens", [[], TOKENS[:-1], [*TOKENS, 1], TOKENS[::-1], [2**31 - 1]])
def test_other_tokens_have_no_state(
    states: StateFiles, tokens: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    assert states.load(tokens) is None
    assert not caplog.records


def test_another_key_has_no_state_and_its_files_stay(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    other = StateFiles(folder, OTHER_KEY, max_bytes=ROOMY)
    assert other.load(TOKENS) is None
    other.save(TOKENS, STATE[:10])
    assert is_same(states.load(TOKENS), STATE)
    assert is_same(other.load(TOKENS), STATE[:10])


def test_the_order_of_the_keys_entries_is_of_no_account(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    reversed_key = dict(reversed(KEY.items()))
    assert is_same(StateFiles(folder, reversed_key, max_bytes=ROOMY).load(TOKENS), STATE)


def test_states_are_for_their_owner_alone(folder: Path, states: StateFiles) -> None:
    before = os.umask(0)
    try:
        states.save(TOKENS, STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o600


# --- permissions


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another user own a path. Only root can do that; anyone can be another user."""
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(
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
    folder.chmod(0o755)  # reading is no danger
    assert is_same(states.load(TOKENS), STATE)


def test_a_folder_of_another_user_is_not_used(
    folder: Path, states: StateFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    give_away(folder, monkeypatch)
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
        pytest.skip("a file can be given away by root only")
    give_away(only_file(folder), monkeypatch)
    assert states.load(TOKENS) is None
    (warning,) = warnings(caplog)
    assert warning.endswith(" is ignored: user 4711 owns it")


def test_the_size_is_known_before_a_file_is_read(folder: Path, states: StateFiles) -> None:
    assert states.n_bytes(TOKENS) == 0
    states.save(TOKENS, STATE)
    assert states.n_bytes(TOKENS) == only_file(folder).stat().st_size
    assert states.n_bytes(TOKENS[1:]) == 0


# --- damaged and foreign files


def cut(path: Path, n_bytes: int) -> None:
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
    StateFiles(path.parent, OTHER_KEY, max_bytes=ROOMY).save(TOKENS, STATE)
    only_file(path.parent).rename(path)


def put_other_tokens(path: Path) -> None:
    path.unlink()
    StateFiles(path.parent, KEY, max_bytes=ROOMY).save(TOKENS[::-1], STATE)
    only_file(path.parent).rename(path)


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: cut(p, 0), "not a state"),
    "cut in the magic line": (lambda p: cut(p, 10), "not a state"),
    "cut in the version": (lambda p: cut(p, 19), "its format has another version"),
    "cut in the checksum": (lambda p: cut(p, 40), "its header is not JSON"),
    "cut in the header": (lambda p: cut(p, 120), "its header is not JSON"),
    "cut in the state": (lambda p: cut(p, 50_000), r"it has \d+ bytes of 100000"),
    "cut by a byte": (lambda p: cut(p, p.stat().st_size - 1), "it has 99999 bytes of 100000"),
    "longer by a byte": (lambda p: cut(p, p.stat().st_size + 1), "it has 100001 bytes of 100000"),
    "other version": (lambda p: replace(p, b"state 1\n", b"state 2\n"), "its format has another version"),
    "not ours": (lambda p: p.write_bytes(b"GGUF" * 1000), "not a state"),
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
def test_a_damaged_or_foreign_file_is_named_ignored_and_overwritten(
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
    if damage == "directory":  # not ours to remove
        assert path.is_dir()
    else:
        assert is_same(states.load(TOKENS), STATE)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), beginning=st.booleans())
def test_no_bit_can_flip_unseen(folder: Path, place: float, bit: int, beginning: bool) -> None:
    states = StateFiles(folder, KEY, max_bytes=ROOMY)
    states.save(TOKENS, STATE)
    path = only_file(folder)
    data = bytearray(path.read_bytes())
    data[int(place * (300 if beginning else len(data)))] ^= 1 << bit
    path.write_bytes(data)
    assert states.load(TOKENS) is None


# --- writing: whole or not at all


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Let writes fail at ``n_bytes`` into any file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_one_warning_and_leaves_what_was_there(
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

    states.save(TOKENS[1:], STATE)  # the disk has room again
    assert is_same(states.load(TOKENS[1:]), STATE)


def test_a_folder_that_cannot_be_made_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    states = StateFiles(tmp_path / "file" / "states", KEY, max_bytes=ROOMY)
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


def child(code: str, folder: Path, max_bytes: int = ROOMY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(folder), str(max_bytes)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_a_killed_process_leaves_is_no_state_and_goes_in_time(folder: Path, states: StateFiles) -> None:
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
    assert leftover.exists()  # its writer may still be at it
    os.utime(leftover, (0, time.time() - 7200))
    states.save(TOKENS, STATE)
    assert not leftover.exists()


def test_two_processes_at_one_folder_do_no_harm(folder: Path) -> None:
    # Room for two files of the four that both write and remove.
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


def test_a_folder_that_cannot_be_written_still_serves(
    states: StateFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "utime", refuse)
    assert is_same(states.load(TOKENS), STATE)
    assert not caplog.records


# --- the bound


def use(folder: Path, states: StateFiles, tokens: list[int], at: float) -> Path:
    """Save a state of these tokens as if at time ``at``, in seconds."""
    before = set(folder.glob("*")) if folder.exists() else set()
    states.save(tokens, STATE)
    (path,) = set(folder.glob("*.kv")) - before
    os.utime(path, (at, at))
    return path


def test_the_least_recently_used_files_make_room(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = StateFiles(folder, KEY, max_bytes=310_000)
    other = StateFiles(folder, OTHER_KEY, max_bytes=310_000)
    now = time.time()
    use(folder, states, [1], now - 50)
    foreign = use(folder, other, [2], now - 40)
    use(folder, states, [3], now - 30)
    assert is_same(states.load([1]), STATE)  # used now

    states.save([4], STATE)
    assert not foreign.exists()
    assert [n for n in (1, 3, 4) if states.load([n]) is not None] == [1, 3, 4]
    states.save([5], STATE)
    assert len(list(folder.iterdir())) == 3
    assert not caplog.records


def test_another_process_may_remove_files_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states = StateFiles(folder, KEY, max_bytes=110_000)
    removed = use(folder, states, [1], 0)
    scan = os.scandir

    def scan_and_remove(path: Path) -> AbstractContextManager[list[os.DirEntry[str]]]:
        entries = list(scan(path))
        removed.unlink()
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scan_and_remove)
    states.save([2], STATE)
    assert is_same(states.load([2]), STATE)
    assert not caplog.records


def test_the_file_just_written_stays_even_if_the_clock_went_back(folder: Path) -> None:
    states = StateFiles(folder, KEY, max_bytes=210_000)
    tomorrow = time.time() + 86_400
    use(folder, states, [1], tomorrow)
    use(folder, states, [2], tomorrow)
    states.save([3], STATE)
    assert is_same(states.load([3]), STATE)
    assert len(list(folder.iterdir())) == 2


def test_files_of_others_are_neither_counted_nor_removed(folder: Path) -> None:
    states = StateFiles(folder, KEY, max_bytes=210_000)
    states.save([1], STATE)
    name = only_file(folder).name
    others = ["notes.txt", "model.kv", name.upper(), f"{name}.bak", f"{name[:-4]}.kv", "x.tmp"]
    for other in others:
        (folder / other).write_bytes(bytes(200_000))
        os.utime(folder / other, (0, 0))
    directory, link = folder / ("0" * 64 + ".kv"), folder / ("1" * 64 + ".kv")
    directory.mkdir()
    link.symlink_to(folder / "notes.txt")
    for path in (directory, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    states.save([2], STATE)
    assert is_same(states.load([1]), STATE)
    assert is_same(states.load([2]), STATE)
    states.save([3], STATE)
    assert all((folder / other).exists() for other in others)
    assert directory.is_dir()
    assert link.is_symlink()
    assert len(list(folder.glob("*.kv"))) == 2 + 2 + 2  # states, others by that suffix, directory and link


def test_a_state_beyond_the_bound_is_not_saved(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = StateFiles(folder, KEY, max_bytes=150_000)
    states.save([1], STATE)
    states.save([2], random_state(150_000))
    states.save([3], random_state(150_000))
    assert is_same(states.load([1]), STATE)
    assert states.load([2]) is None
    (warning,) = warnings(caplog)
    assert warning.startswith("A state of 150")
    assert warning.endswith(" bytes is not saved: the limit is 150000")
