"""Chooses among builds of the native library for several generations of CPUs, before it is loaded.

`native/portable.py` installs them: each is a folder with libraries and a manifest.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from app.config.errors import UserError
from app.fit import preflight
from app.machine.identity import LIBRARY_VARIABLE, cpu, cpu_flags
from app.machine.installation import INSTALL, bundled_model

logger = logging.getLogger("tokenstream.builds")

BUILDS = Path(sys.prefix) / "native-builds"


class BuildNotUsable(UserError):
    """NATIVE_BUILD names a build that is not installed, or no build works on this CPU."""


def choose(wanted: str) -> None:
    """Select the build for this process and its children.

    The fastest build whose instruction sets this CPU has, and which decodes a few tokens in a child process.
    Without installed builds: the library that was compiled for this machine.

    Args:
        wanted: NATIVE_BUILD: ``auto``, or the name of a build.

    Raises:
        BuildNotUsable: The named build is not installed, or no build works.
        NativeLibraryError: The library, or the named build, does not work on this machine.
    """
    installed = _installed()
    if wanted != "auto" and wanted not in installed:
        names = ", ".join(installed) or "none; `make install WHEELS=…` installs some"
        raise BuildNotUsable(f"NATIVE_BUILD={wanted}: is not installed; installed are: {names}")
    if not installed or LIBRARY_VARIABLE in os.environ:
        preflight.check_library()
        return
    if wanted != "auto":
        _test(installed[wanted])
        logger.info("native build: %s", wanted)
        return
    flags = cpu_flags(cpu())
    reasons = []
    for name, folder in installed.items():
        missing = sorted(_needed(folder) - flags)
        if missing:
            reasons.append(f"{name}: this CPU has no {', '.join(missing)}")
            continue
        try:
            _test(folder)
        except preflight.NativeLibraryError as error:
            reasons.append(f"{name}: {error}")
            logger.warning("native build %s does not work here, trying an older one: %s", name, error)
            continue
        logger.info("native build: %s", name)
        return
    os.environ.pop(LIBRARY_VARIABLE, None)
    raise BuildNotUsable(
        f"no installed native build works on this CPU. {'; '.join(reasons)}. Compile one: {INSTALL}"
    )


def _installed() -> dict[str, Path]:
    """Folders of the builds by name, the fastest first: it needs the most instruction sets."""
    folders = {path.parent.name: path.parent for path in BUILDS.glob("*/native-build.json")}
    return dict(sorted(folders.items(), key=lambda pair: len(_needed(pair[1])), reverse=True))


def _needed(folder: Path) -> set[str]:
    """The flags of /proc/cpuinfo that a build needs."""
    manifest = json.loads((folder / "native-build.json").read_text(encoding="utf-8"))
    return {flag for flags in manifest["cpuinfo_flags"].values() for flag in flags}


def _test(folder: Path) -> None:
    """Select a build, and test it with the default model.

    Raises:
        NativeLibraryError: It does not work.
    """
    os.environ[LIBRARY_VARIABLE] = str(folder)
    preflight.check_library()
    if (model := bundled_model()) is not None:
        preflight.check(model, n_threads=1, n_gpu_layers=0)
