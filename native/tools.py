"""pip, CMake and ninja in an environment of their own, made for one build and thrown away after."""

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

# Each would change the build without being part of its key; SOURCE_DATE_EPOCH makes llama.cpp choose other
# instruction sets.
_NOT_PASSED_ON = ("CMAKE_ARGS", "SOURCE_DATE_EPOCH", "SKBUILD_")


@dataclass(frozen=True)
class BuildTools:
    """What a build runs with.

    Attributes:
        scratch: A folder that goes away with the tools.
        environment: Of every command: the compilers that were probed, the tools' programs on the PATH.
        log: The file that gets the output of all commands.
    """

    scratch: Path
    environment: Mapping[str, str]
    log: Path

    def run(self, title: str, *command: str, minutes: int = 0, **more: str) -> None:
        """Run ``command`` with the variables ``more``; ``minutes`` is how long it usually takes, if long.

        Raises:
            BuildError: It fails; the message has the end of the log and what to try.
        """
        environment = {**self.environment, **more}
        run_step(title, command, log=self.log, environment=environment, minutes=minutes)

    def pip(self, title: str, *arguments: str, minutes: int = 0, **more: str) -> None:
        """Run pip; everything else as in `run`."""
        python = str(self.scratch / "tools" / "bin" / "python")
        self.run(title, python, "-m", "pip", *arguments, minutes=minutes, **more)


@contextlib.contextmanager
def build_tools(requirements: Path, toolchain: Toolchain, log: Path) -> Iterator[BuildTools]:
    """Install ``build.txt`` of the folder ``requirements`` for the time of a build; ``log`` begins anew.

    Raises:
        BuildError: That fails.
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
        tools.run("Preparing a place to build", sys.executable, "-m", "venv", str(venv))
        build_packages = str(requirements / "build.txt")
        tools.pip("Installing the build tools", "install", "--require-hashes", "-r", build_packages)
        yield tools
