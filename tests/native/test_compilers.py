"""The choice of compilers, and the error messages without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilers import NoCompilerError, find_toolchain
from probe import HERE


def programs(folder: Path, *names: str, version: str = "fake 1.0") -> dict[str, str]:
    """A PATH with only these programs. Each prints a version."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho '{version} of {name}'\necho 'and a second line'\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_the_first_of_cmakes_names_is_used(tmp_path: Path) -> None:
    found = find_toolchain(programs(tmp_path, "clang", "clang++", "gcc", "g++"))
    assert (found.c.command, found.cxx.command) == (("gcc",), ("g++",))
    assert found.cxx.version == "fake 1.0 of g++"
    assert found.environment() == {"CC": "gcc", "CXX": "g++"}


@pytest.mark.parametrize(
    ("variable", "value", "c", "cxx"),
    [
        ("CXX", "clang++-19", "clang-19", "clang++-19"),
        ("CC", "gcc-13", "gcc-13", "g++-13"),
        ("CXX", "ccache g++-13", "gcc-13", "ccache g++-13"),
    ],
)
def test_one_variable_selects_both_compilers_of_a_family(
    tmp_path: Path, variable: str, value: str, c: str, cxx: str
) -> None:
    path = programs(tmp_path, "cc", "c++", "gcc-13", "g++-13", "clang-19", "clang++-19", "ccache")
    found = find_toolchain({**path, variable: value})
    assert (found.c.name, found.cxx.name) == (c, cxx)


def test_flags_are_those_of_the_environment(tmp_path: Path) -> None:
    found = find_toolchain({**programs(tmp_path, "cc", "c++"), "CXXFLAGS": "-g '-DNAME=two words'"})
    assert found.cxx.flags == ("-g", "-DNAME=two words")
    assert found.c.flags == ()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler: program 'no-such-compiler' not found"),
        ({"CXX": "'g++"}, "CXX='g++: No closing quotation"),
        ({"CFLAGS": "'-O2"}, "CFLAGS='-O2: No closing quotation"),
    ],
)
def test_an_unusable_variable_is_named(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    with pytest.raises(NoCompilerError) as error:
        find_toolchain({**programs(tmp_path, "cc", "c++"), **environment})
    assert message in str(error.value)


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    path = programs(tmp_path, "cc", "c++")
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'xcrun: error: no developer tools' >&2\nexit 1\n")
    with pytest.raises(NoCompilerError, match=r"c\+\+ --version failed \(xcrun: error: no developer tools\)"):
        find_toolchain(path)


@pytest.mark.parametrize("command", [["probe"], ["install", "--venv", sys.prefix]])
def test_without_a_compiler_the_error_is_one_line_with_a_remedy(tmp_path: Path, command: list[str]) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    for variable in ("CC", "CXX"):
        environment.pop(variable, None)
    result = subprocess.run(
        [sys.executable, str(HERE / "build.py"), *command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: no C++ compiler found")
    assert "apt install g++" in result.stderr
