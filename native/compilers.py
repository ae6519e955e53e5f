"""Find the C and C++ compilers in CMake's search order."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Language = Literal["c", "c++"]

# CMake's order (CMakeDetermineCCompiler, CMakeDetermineCXXCompiler), without names of Windows and AIX.
_NAMES: dict[Language, tuple[str, ...]] = {
    "c": ("cc", "gcc", "icx", "clang"),
    "c++": ("c++", "g++", "icpx", "clang++"),
}
_VARIABLES: dict[Language, tuple[str, str]] = {"c": ("CC", "CFLAGS"), "c++": ("CXX", "CXXFLAGS")}
# C and C++ compiler of each family: CC=gcc-13 implies CXX=g++-13.
_FAMILIES = (("clang", "clang++"), ("gcc", "g++"), ("icx", "icpx"), ("cc", "c++"))


class NoCompilerError(Exception):
    """No usable compiler. The message names the package to install or the variable to set."""


@dataclass(frozen=True)
class Compiler:
    """A compiler for one language.

    Attributes:
        command: Program and arguments; ``ccache g++`` is two words.
        flags: Value of CFLAGS or CXXFLAGS.
        version: First line of ``--version``.
    """

    language: Language
    command: tuple[str, ...]
    flags: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        """The command in shell syntax."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Toolchain:
    """The compilers of a build."""

    c: Compiler
    cxx: Compiler

    def environment(self) -> dict[str, str]:
        """Variables that make CMake use these compilers."""
        return {"CC": self.c.name, "CXX": self.cxx.name}


def find_toolchain(environment: Mapping[str, str] = os.environ) -> Toolchain:
    """Find the compilers: CC and CXX if set, else the first name on the PATH.

    Raises:
        NoCompilerError: A compiler is missing, or fails to print its version.
    """
    path = environment.get("PATH", os.defpath)
    commands: dict[Language, tuple[str, ...]] = {}
    for language, (variable, _) in _VARIABLES.items():
        if environment.get(variable, "").strip():
            commands[language] = _from_variable(variable, environment[variable], path)
    named = dict(commands)
    for language in _VARIABLES:
        if language not in commands:
            commands[language] = _search(language, named, path)
    return Toolchain(*(_describe(language, commands[language], environment) for language in ("c", "c++")))


def _from_variable(variable: str, value: str, path: str) -> tuple[str, ...]:
    command = tuple(_split(variable, value))
    if not shutil.which(command[0], path=path):
        raise NoCompilerError(
            f"{variable}={value}: program {command[0]!r} not found; name a compiler or unset {variable}"
        )
    return command


def _search(language: Language, named: Mapping[Language, tuple[str, ...]], path: str) -> tuple[str, ...]:
    candidates = [*_relatives(language, named), *_NAMES[language]]
    for candidate in candidates:
        if shutil.which(candidate, path=path):
            return (candidate,)
    raise NoCompilerError(
        "no C++ compiler found; compiling llama.cpp requires one. "
        "Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
    )


def _relatives(language: Language, named: Mapping[Language, tuple[str, ...]]) -> list[str]:
    """Candidates of the same family as the compiler set for the other language."""
    for command in named.values():
        name = os.path.basename(command[-1])  # noqa: PTH119 - a suffix of the text is replaced below
        for family in _FAMILIES:
            ours, theirs = family if language == "c" else family[::-1]
            if theirs in name:
                return [command[-1][: -len(name)] + name.replace(theirs, ours)]
    return []


def _describe(language: Language, command: tuple[str, ...], environment: Mapping[str, str]) -> Compiler:
    variable, flags_variable = _VARIABLES[language]
    try:
        answer = subprocess.run(
            [*command, "--version"],
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(
            f"{shlex.join(command)} --version failed ({error}); set {variable} to a compiler"
        ) from None
    if answer.returncode:
        reason = (answer.stderr or answer.stdout).strip().partition("\n")[0]
        raise NoCompilerError(
            f"{shlex.join(command)} --version failed ({reason}); set {variable} to a compiler"
        )
    flags = tuple(_split(flags_variable, environment.get(flags_variable, "")))
    return Compiler(language, command, flags, answer.stdout.partition("\n")[0].strip())


def _split(variable: str, value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError as error:
        raise NoCompilerError(f"{variable}={value}: {error}") from None
