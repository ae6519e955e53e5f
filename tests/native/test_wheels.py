"""Building and keeping the wheel: pip, a real sdist and a real environment, but nothing to compile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import build
import pytest
import steps
import wheels
from compilers import Toolchain
from plan import CMAKE_INCLUDE, make_plan
from probe import HERE, INSTRUCTION_SETS, Findings
from steps import BuildError
from wheels import Builder, obtain

pytestmark = pytest.mark.timeout(600)  # seconds: environments and compilers, on a machine that may be busy

ALL = Findings(dict.fromkeys(INSTRUCTION_SETS), amx_header="repaired")

# A build backend that compiles nothing: its wheel holds the environment that it saw, and the time.
BACKEND = """
import json, os, pathlib, sys, time, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {before}
    name = "llama_cpp_python-9.9.9-py3-none-any.whl"
    info = "llama_cpp_python-9.9.9.dist-info"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as archive:
        archive.writestr("llama_cpp/seen.json", json.dumps({{**os.environ, "python": sys.prefix, "at": time.time()}}))
        archive.writestr(f"{{info}}/METADATA", "Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: 9.9.9\\n")
        archive.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{{info}}/RECORD", "")
    return name
"""  # noqa: E501
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "llama_cpp_python"
version = "9.9.9"
"""


@pytest.fixture
def requirements(tmp_path: Path) -> Callable[..., Path]:
    """Make a requirements folder that pins a small sdist; its backend runs ``before`` (Python) first."""

    def make(before: str = "pass") -> Path:
        folder = tmp_path / "requirements"
        folder.mkdir(exist_ok=True)
        sdist = folder / "llama_cpp_python-9.9.9.tar.gz"
        files = {
            "pyproject.toml": PYPROJECT,
            "backend.py": BACKEND.format(before=before),
            "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n",
        }
        with tarfile.open(sdist, "w:gz") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(f"llama_cpp_python-9.9.9/{name}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
        pinned = f"--no-index\n--find-links {folder}\nllama-cpp-python==9.9.9 --hash=sha256:{digest}\n"
        (folder / "native.txt").write_text(pinned)
        (folder / "build.txt").write_text("# nothing is needed\n")
        return folder

    return make


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
    pytest.fail("the wheel in the cache is good, and was built again")


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
    again = obtain(tmp_path, put_wheel("again"))
    assert again.seconds is not None
    assert content(again.path) == "again"


@pytest.mark.parametrize("half", ["nothing", "a damaged wheel", "an interruption"])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, half: str) -> None:
    def fails(folder: Path) -> None:
        put_wheel()(folder)
        wheel = next(folder.iterdir())
        if half == "nothing":
            wheel.unlink()
        elif half == "a damaged wheel":
            wheel.write_bytes(wheel.read_bytes()[:40])
        else:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if half == "an interruption" else BuildError):
        obtain(tmp_path, fails)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="Set TOKENSTREAM_WHEEL_CACHE to another folder"):
        obtain(tmp_path / "file" / "key", put_wheel())


def test_the_caches_place(tmp_path: Path) -> None:
    assert wheels.cache_folder({}) == Path.home() / ".cache/tokenstream/wheels"
    assert wheels.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/tokenstream/wheels")
    assert wheels.cache_folder({"XDG_CACHE_HOME": "/x", "TOKENSTREAM_WHEEL_CACHE": "/y"}) == Path("/y")


def test_parallel_jobs() -> None:
    assert 1 <= wheels.parallel_jobs({}) <= (os.cpu_count() or 1)
    assert wheels.parallel_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": "7"}) == 7
    with pytest.raises(BuildError, match="CMAKE_BUILD_PARALLEL_LEVEL=many"):
        wheels.parallel_jobs({"CMAKE_BUILD_PARALLEL_LEVEL": "many"})


def test_a_failing_build_shows_the_end_of_its_log_and_what_to_try(
    builder: Callable[..., Builder], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "[print('line', i) for i in range(100)]"
    fail = (
        f"{lines}; print('c++: fatal error: Killed signal terminated program cc1plus'); raise SystemExit(1)"
    )
    compile_it = builder(fail)
    with pytest.raises(BuildError) as caught:
        obtain(tmp_path / "key", compile_it)
    message = str(caught.value)
    assert "Compiling llama.cpp for this CPU failed (exit status 1)" in message
    assert str(compile_it.log) in message
    assert "Killed signal terminated program" in message
    assert "CMAKE_BUILD_PARALLEL_LEVEL=1" in message
    assert "line 99" in message
    assert "line 10\n" not in message
    assert "line 10\n" in compile_it.log.read_text()
    assert list((tmp_path / "key").iterdir()) == []
    assert len(capfd.readouterr().err.splitlines()) == 3  # one line a step, and none of pip's


def test_the_command_builds_the_pinned_sdist_and_installs_it(
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
        """Run the command; returns the environment in which the installed wheel was built."""
        assert build.main(["install", "--venv", str(target), *arguments]) == 0
        installed = next(target.glob("lib/python3*/site-packages/llama_cpp/seen.json"))
        seen: dict[str, str] = json.loads(installed.read_text())
        return seen

    first = install()
    told = capsys.readouterr()
    assert "built in" in told.out
    assert "AVX512_VNNI AVX512_BF16 AMX" in told.out
    assert "CMAKE_ARGS is ignored; set LLAMA_BUILD_FLAGS" in told.err

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
    # It was built in an environment of its own, which is gone.
    assert first["python"] not in (sys.prefix, str(target))
    assert not Path(first["python"]).exists()

    assert install() == first
    assert "taken from the cache" in capsys.readouterr().out
    # pip's own cache of wheels would hand out the first build here.
    assert install("--rebuild")["at"] != first["at"]


def test_a_folder_that_is_no_environment_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["install", "--venv", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a Python environment" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_ended_takes_its_compilers_with_it(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    script = f"""
import signal, sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
import build, wheels
build.find_toolchain = lambda: None
def endless(*_, **__):
    build_step = ["sh", "-c", "sleep 60 & echo $! > {pid_file}; wait"]
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
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert "Traceback" not in stderr
    compiler = Path("/proc", pid_file.read_text().strip(), "stat")
    deadline = time.monotonic() + 30
    # Whoever adopts a dead process may take a moment to bury it.
    while compiler.exists() and compiler.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the compiler still runs"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("output", "environment", "advice"),
    [
        ("No space left on device", {}, "TMPDIR"),
        ("ERROR: No matching distribution found", {}, "the network"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", {}, "differs from the pinned one"),
        ("error: strange", {}, "try another compiler (CC, CXX)"),
        (
            "error: strange",
            {"LLAMA_BUILD_FLAGS": "-DGGML_CUDA=ON"},
            "try without LLAMA_BUILD_FLAGS",
        ),
    ],
)
def test_a_failure_says_what_to_try(
    tmp_path: Path, output: str, environment: dict[str, str], advice: str
) -> None:
    log = tmp_path / "log"
    log.write_text("std::bad_alloc of an earlier step\n")
    with pytest.raises(BuildError) as caught:
        steps.run_step(
            "A step", ["/bin/sh", "-c", f"echo '{output}'; exit 3"], log=log, environment=environment
        )
    assert str(caught.value).startswith("A step failed (exit status 3)")
    assert advice in str(caught.value).rpartition("Remedy: ")[2]


def test_progress_counts_what_ninja_has_done(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("  [1/83] c++ -c a.cpp\n  [57/83] c++ -c b.cpp\nwarning: [3/4] of nothing\n")
    assert steps._ninja_count(log) == " (57 of 83 files)"
    assert steps.duration(182.4) == "3 min 2 s"
    assert steps.duration(9) == "9 s"
