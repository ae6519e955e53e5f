"""Wheels are built once and cached, with a real pip and sdist, but without compilation."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import wheels
from compilers import Toolchain
from plan import make_plan
from probe import INSTRUCTION_SETS, Findings
from steps import BuildError
from wheels import Builder, obtain

pytestmark = pytest.mark.timeout(600)  # seconds: environments and compilers on a busy machine

ALL = Findings(dict.fromkeys(INSTRUCTION_SETS), amx_header="repaired")


@pytest.fixture
def builder(
    tmp_path: Path, requirements: Callable[..., Path], toolchain: Toolchain
) -> Callable[..., Builder]:
    def make(before: str = "pass") -> Builder:
        folder = requirements(before)
        plan = make_plan(folder / "native.txt", toolchain, ALL, {})
        return Builder(plan, folder, tmp_path / "build.log")

    return make


def put_wheel(content: str = "x") -> Callable[[Path], None]:
    def build_one(folder: Path) -> None:
        with zipfile.ZipFile(folder / "some-1-py3-none-any.whl", "w") as archive:
            archive.writestr("some/file", content)

    return build_one


def content(wheel: Path) -> str:
    return zipfile.ZipFile(wheel).read("some/file").decode()


def no_build(_: Path) -> None:
    pytest.fail("the cached wheel is built again")


def test_a_wheel_is_built_once(tmp_path: Path) -> None:
    first = obtain(tmp_path / "key", put_wheel())
    second = obtain(tmp_path / "key", no_build)
    assert first.path == second.path
    assert first.seconds is not None
    assert second.seconds is None
    assert list((tmp_path / "key").iterdir()) == [first.path]


def test_rebuild_ignores_the_cache(tmp_path: Path) -> None:
    obtain(tmp_path, put_wheel("old"))
    fresh = obtain(tmp_path, put_wheel("new"), rebuild=True)
    assert fresh.seconds is not None
    assert content(obtain(tmp_path, no_build).path) == "new"


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_wheel_is_built_again(tmp_path: Path, damage: str) -> None:
    wheel = obtain(tmp_path, put_wheel("something to find")).path
    data = wheel.read_bytes()
    damaged = {"cut": data[:-30], "changed": data.replace(b"to find", b"to lose"), "empty": b""}[damage]
    assert damaged != data
    wheel.write_bytes(damaged)
    rebuilt = obtain(tmp_path, put_wheel("second"))
    assert rebuilt.seconds is not None
    assert content(rebuilt.path) == "second"


@pytest.mark.parametrize("failure", ["nothing", "a damaged wheel", "an interruption"])
def test_a_failed_build_leaves_no_file(tmp_path: Path, failure: str) -> None:
    def failing(folder: Path) -> None:
        put_wheel()(folder)
        wheel = next(folder.iterdir())
        if failure == "nothing":
            wheel.unlink()
        elif failure == "a damaged wheel":
            wheel.write_bytes(wheel.read_bytes()[:40])
        else:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if failure == "an interruption" else BuildError):
        obtain(tmp_path, failing)
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_an_unwritable_cache_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="Set TOKENSTREAM_WHEEL_CACHE to another folder"):
        obtain(tmp_path / "file" / "key", put_wheel())


def test_the_cache_folder_follows_the_environment(tmp_path: Path) -> None:
    assert wheels.cache_folder({}) == Path.home() / ".cache/tokenstream/wheels"
    assert wheels.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/tokenstream/wheels")
    assert wheels.cache_folder({"XDG_CACHE_HOME": "/x", "TOKENSTREAM_WHEEL_CACHE": "/y"}) == Path("/y")


def test_parallel_jobs_are_cores_or_the_variable() -> None:
    assert 1 <= wheels.parallel_jobs({}) <= (os.cpu_count() or 1)
    assert wheels.parallel_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": "7"}) == 7
    with pytest.raises(BuildError, match="CMAKE_BUILD_PARALLEL_LEVEL=many"):
        wheels.parallel_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": "many"})


def test_the_error_of_a_build_has_the_end_of_its_log_and_a_remedy(
    builder: Callable[..., Builder], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "[print('line', i) for i in range(100)]"
    fail = (
        f"{lines}; print('c++: fatal error: Killed signal terminated program cc1plus'); raise SystemExit(1)"
    )
    build_wheel = builder(fail)
    with pytest.raises(BuildError) as error:
        obtain(tmp_path / "key", build_wheel)
    message = str(error.value)
    assert "Compiling llama.cpp for this CPU failed (exit status 1)" in message
    assert str(build_wheel.log) in message
    assert "Killed signal terminated program" in message
    assert "CMAKE_BUILD_PARALLEL_LEVEL=1" in message
    assert "line 99" in message
    assert "line 10\n" not in message
    assert "line 10\n" in build_wheel.log.read_text()
    assert list((tmp_path / "key").iterdir()) == []
    assert len(capfd.readouterr().err.splitlines()) == 3  # one line per step, and none of pip
