"""A temporary environment with pip, CMake and ninja for one build."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compilers import Toolchain
from steps import run_step

# Variables that change the build but not its key. With SOURCE_DATE_EPOCH llama.cpp chooses other instruction
# sets.
_NOT_PASSED_ON = ("CMAKE_ARGS", "SOURCE_DATE_EPOCH", "SKBUILD_")


@dataclass(frozen=True)
class BuildTools:
    """Environment of a build.

    Attributes:
        scratch: Temporary folder, deleted with the tools.
        environment: Environment variables of each command, with the probed compilers.
        log: Output of all commands.
    """

    scratch: Path
    environment: Mapping[str, str]
    log: Path

    def run(self, title: str, *command: str, minutes: int = 0, **more: str) -> None:
        """Run ``command`` with the environment variables ``more``; ``minutes``: usual duration, 0 if short.

        Raises:
            BuildError: The command fails. The message has the end of the log and a remedy.
        """
        environment = {**self.environment, **more}
        run_step(title, command, log=self.log, environment=environment, minutes=minutes)

    def pip(self, title: str, *arguments: str, minutes: int = 0, **more: str) -> None:
        """Run pip with the arguments of `run`."""
        python = str(self.scratch / "tools" / "bin" / "python")
        self.run(title, python, "-m", "pip", *arguments, minutes=minutes, **more)


@contextlib.contextmanager
def build_tools(requirements: Path, toolchain: Toolchain, log: Path) -> Iterator[BuildTools]:
    """Install ``build.txt`` of the folder ``requirements`` in a temporary environment; truncates ``log``.

    Raises:
        BuildError: The installation fails.
        OSError: The log cannot be written.
    """
    log.write_text("")
    with tempfile.TemporaryDirectory(prefix="tokenstream-build-") as scratch:
        venv = Path(scratch, "tools")
        passed_on = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        environment = {
            **passed_on,
            **toolchain.environment(),
            "PATH": os.pathsep.join([str(venv / "bin"), os.environ.get("PATH", os.defpath)]),
        }
        tools = BuildTools(Path(scratch), environment, log)
        tools.run("Creating the build environment", sys.executable, "-m", "venv", str(venv))
        build_packages = str(requirements / "build.txt")
        tools.pip("Installing the build tools", "install", "--require-hashes", "-r", build_packages)
        yield tools
