"""The native room is a folder of scripts, not a package: its modules are imported by their bare names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
sys.path.insert(0, str(NATIVE))

from compilers import Toolchain, find_toolchain  # noqa: E402
from probe import Findings, probe  # noqa: E402

# A compiler that knows every flag and whose programs are right: instead of a probe it compiles two lines,
# which is fast and needs no special CPU. What it does about one source is up to the test.
_WRAPPER = """#!/bin/sh
out= previous= source=
for word; do
    [ "$previous" = -o ] && out=$word
    case $word in *.c) source=$(basename "$word") ;; esac
    previous=$word
done
[ "$1" = --version ] && {{ echo "fake 1.0"; exit 0; }}
code='#include <stdio.h>
int main(void) {{ puts("right"); return 0; }}'
{special}
printf '%s' "$code" | {compiler} -w -x c - -o "$out"
"""


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    return find_toolchain(os.environ)


@pytest.fixture(scope="session")
def findings(toolchain: Toolchain) -> Findings:
    return probe(toolchain)


@pytest.fixture
def compiler_with(tmp_path: Path, toolchain: Toolchain) -> Callable[..., Toolchain]:
    """Make a toolchain of fake compilers; lines of shell say what each does beside compiling what is right.

    The lines see ``$source`` (the probe's file name), ``$*`` (the arguments) and ``$code`` (the program).
    """

    def make(cxx: str, c: str = "") -> Toolchain:
        for name, special in (("fake++", cxx), ("fakecc", c)):
            script = tmp_path / name
            script.write_text(_WRAPPER.format(special=special, compiler=toolchain.c.name))
            script.chmod(0o755)
        return find_toolchain({**os.environ, "CXX": str(tmp_path / "fake++"), "CC": str(tmp_path / "fakecc")})

    return make
