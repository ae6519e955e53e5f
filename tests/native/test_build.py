"""``native/build.py install``, with a real pip, sdist and environment, but without compilation."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import build
import pytest
import wheels
from compilers import Toolchain
from plan import CMAKE_INCLUDE
from probe import HERE, INSTRUCTION_SETS, Findings

from tests.polling import wait_for

pytestmark = pytest.mark.timeout(600)  # seconds: environments on a busy machine

ALL = Findings(dict.fromkeys(INSTRUCTION_SETS), amx_header="repaired")


def test_install_builds_and_installs_the_pinned_sdist(
    requirements: Callable[..., Path],
    toolchain: Toolchain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "REQUIREMENTS", requirements())
    monkeypatch.setattr(build, "probe", lambda _: ALL)
    monkeypatch.setenv("TOKENSTREAM_WHEEL_CACHE", str(tmp_path / "wheels"))
    for variable in ("CMAKE_ARGS", "SKBUILD_CMAKE_BUILD_TYPE", "SOURCE_DATE_EPOCH"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.delenv("LLAMA_BUILD_FLAGS", raising=False)
    target = tmp_path / "env"
    venv.create(target, with_pip=True, symlinks=True)

    def install(*arguments: str) -> dict[str, str]:
        """Run the command. Returns the environment of the build of the installed wheel."""
        assert build.main(["install", "--venv", str(target), *arguments]) == 0
        installed = next(target.glob("lib/python3*/site-packages/llama_cpp/environment.json"))
        build_environment: dict[str, str] = json.loads(installed.read_text())
        return build_environment

    first = install()
    printed = capsys.readouterr()
    assert "built in" in printed.out
    assert "AVX512_VNNI AVX512_BF16 AMX" in printed.out
    assert "CMAKE_ARGS is ignored; set LLAMA_BUILD_FLAGS" in printed.err

    manifest = json.loads((target / "native-build.json").read_text())
    assert manifest["version"] == "9.9.9"
    assert manifest["repaired_tile_loadconfig"] is True
    assert manifest["cpuinfo_flags"]["AMX"] == ["amx_tile", "amx_int8"]
    assert manifest["instruction_sets"] == list(manifest["cpuinfo_flags"])
    assert (tmp_path / "wheels" / manifest["key"] / "build.log").exists()

    assert "-DGGML_AMX_INT8=ON" in manifest["flags"]
    include = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={CMAKE_INCLUDE}"
    assert shlex.split(first["CMAKE_ARGS"]) == [*manifest["flags"], include]
    assert (first["CC"], first["CXX"]) == (toolchain.c.name, toolchain.cxx.name)
    assert first["CMAKE_BUILD_PARALLEL_LEVEL"] == str(wheels.parallel_jobs())
    assert not {"SKBUILD_CMAKE_BUILD_TYPE", "SOURCE_DATE_EPOCH"} & first.keys()
    # The environment of the build is removed.
    assert first["python"] not in (sys.prefix, str(target))
    assert not Path(first["python"]).exists()

    assert install() == first
    assert "taken from the cache" in capsys.readouterr().out
    # The cache of pip would return the first build here.
    assert install("--rebuild")["at"] != first["at"]


def test_a_folder_without_an_environment_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["install", "--venv", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a Python environment" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_build_and_its_compilers(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
import build, wheels
build.find_toolchain = lambda: None
def endless(*_, **__):
    build_step = ["sh", "-c", "sleep 600 & echo $! > {pid_file}; wait"]
    from steps import run_step
    log = Path({str(tmp_path / "log")!r})
    run_step("Compiling", build_step, log=log, environment={{"PATH": "/bin:/usr/bin"}})
build._plan = endless
sys.exit(build.main(["install", "--venv", {sys.prefix!r}]))
"""
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=100)
    assert running.returncode == 128 + number
    assert "Traceback" not in stderr
    compiler = Path("/proc", pid_file.read_text().strip(), "stat")
    # The parent process can take a moment to reap it.
    wait_for(lambda: not compiler.exists() or compiler.read_text().rpartition(")")[2].split()[0] == "Z")
