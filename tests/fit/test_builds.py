"""The choice among builds: real libraries, and one that crashes at load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.fit import builds, preflight
from app.machine import identity

Install = Callable[[str, str], Path]


@pytest.fixture
def library() -> Path:
    """The folder of the library in use."""
    return identity.library_files()[0].parent


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """A CPU with avx2 and avx512f, and no installed builds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Not only deleted: the variable that choose() sets is removed at the end.
    monkeypatch.setenv(identity.LIBRARY_VARIABLE, "")
    monkeypatch.delenv(identity.LIBRARY_VARIABLE)
    monkeypatch.setattr(builds, "BUILDS", tmp_path / "native-builds")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse4_2 avx2 avx512f\n")
    monkeypatch.setattr(identity, "CPUINFO", cpuinfo)


@pytest.fixture
def install(tmp_path: Path, library: Path) -> Install:
    """Install the library in use as a build that needs some flags."""

    def copy(name: str, flags: str) -> Path:
        folder = tmp_path / "native-builds" / name
        folder.mkdir(parents=True)
        for file in library.iterdir():
            (folder / file.name).symlink_to(file)
        sets = {flag.upper(): [flag] for flag in flags.split()}
        (folder / "native-build.json").write_text(json.dumps({"key": name, "cpuinfo_flags": sets}))
        return folder

    return copy


def break_library(folder: Path) -> None:
    """Replace a library by one whose constructor executes an illegal instruction."""
    (folder / "crash.c").write_text(
        "__attribute__((constructor)) static void crash(void) { __builtin_trap(); }"
    )
    target = folder / "libllama.so"
    target.unlink()
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, folder / "crash.c"], check=True)


def test_the_build_with_the_most_instruction_sets_of_this_cpu_is_chosen(install: Install) -> None:
    install("old", "sse4_2")
    best = install("new", "sse4_2 avx2 avx512f")
    install("newest", "sse4_2 avx2 avx512f amx_tile")
    builds.choose("auto")
    assert os.environ[identity.LIBRARY_VARIABLE] == str(best)
    assert identity.manifest()["key"] == "new"
    assert identity.library_files()[0].parent == best


def test_flags_of_an_arm_cpu_decide_too(install: Install) -> None:
    identity.CPUINFO.write_text("processor\t: 0\nFeatures\t: asimdhp asimddp\n")
    install("i8mm", "asimdhp asimddp i8mm")
    best = install("dotprod", "asimdhp asimddp")
    builds.choose("auto")
    assert os.environ[identity.LIBRARY_VARIABLE] == str(best)


@pytest.mark.slow
def test_a_build_that_crashes_is_passed_over(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    works = install("old", "sse4_2")
    break_library(install("new", "sse4_2 avx2"))
    with caplog.at_level(logging.INFO):
        builds.choose("auto")
    assert os.environ[identity.LIBRARY_VARIABLE] == str(works)
    assert "native build new does not work here" in caplog.text
    assert "crashed" in caplog.text


@pytest.mark.slow
def test_a_named_build_is_used_or_an_error(install: Install) -> None:
    old = install("old", "sse4_2")
    break_library(install("new", "sse4_2 avx2"))
    builds.choose("old")
    assert os.environ.pop(identity.LIBRARY_VARIABLE) == str(old)
    with pytest.raises(preflight.NativeLibraryError, match="crashed"):
        builds.choose("new")
    with pytest.raises(
        builds.BuildNotUsable, match="NATIVE_BUILD=none: is not installed; installed are: new, old"
    ):
        builds.choose("none")


def test_without_a_build_for_this_cpu_the_error_names_what_it_lacks(install: Install) -> None:
    install("newest", "amx_tile")
    with pytest.raises(builds.BuildNotUsable, match="newest: this CPU has no amx_tile"):
        builds.choose("auto")
    assert identity.LIBRARY_VARIABLE not in os.environ


def test_without_builds_the_compiled_library_is_used() -> None:
    builds.choose("auto")
    assert identity.LIBRARY_VARIABLE not in os.environ


def test_a_library_named_in_the_environment_takes_precedence(
    install: Install, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("old", "sse4_2")
    monkeypatch.setenv(identity.LIBRARY_VARIABLE, str(library))
    builds.choose("auto")
    assert os.environ[identity.LIBRARY_VARIABLE] == str(library)
