"""Archives of builds."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
import zipfile
from pathlib import Path

import portable
import pytest
from compilers import NoCompilerError, find_toolchain
from probe import INSTRUCTION_SETS
from steps import BuildError


def write_wheel(path: Path, **libraries: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in libraries.items():
            wheel.writestr(f"llama_cpp/lib/{name}.so", content)
    return path


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two builds with a common library, and one for another machine."""
    wheels = {
        name: (
            write_wheel(tmp_path / f"{name}.whl", llama="common", cpu=f"for {name}", cpu_0=f"for {name}"),
            name,
        )
        for name in ("avx2", "avx512", "i8mm")
    }
    path = tmp_path / "builds.zip"
    portable.write_archive(path, wheels)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_is_installed_with_equal_files_once(archive: Path, tmp_path: Path) -> None:
    installed: list[str] = []
    venv = tmp_path / "venv"
    (venv / portable.FOLDER / "old").mkdir(parents=True)
    names = portable.install_archive(str(archive), venv, lambda wheel: installed.append(wheel.name))
    assert names == ["avx2", "avx512"]
    assert installed == ["avx2.whl"]
    folder = venv / portable.FOLDER
    assert contents(folder) == {
        f"{name}/{file}": text
        for name in names
        for file, text in {
            "llama.so": "common",
            "cpu.so": f"for {name}",
            "cpu_0.so": f"for {name}",
            "native-build.json": name,
        }.items()
    }
    real = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(real) == 5  # common, two of cpu, two manifests
    moved = folder.rename(tmp_path / "moved")
    assert len(contents(moved)) == 8


def test_an_archive_is_installed_from_a_url(archive: Path, tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "venv").mkdir()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert portable.install_archive(f"{url}/builds.zip", tmp_path / "venv", lambda _: None)
        with pytest.raises(BuildError, match="404"):
            portable.install_archive(f"{url}/other.zip", tmp_path / "venv", lambda _: None)
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "message"), [("missing.zip", "No such file"), ("x.whl", "none of the builds")]
)
def test_other_files_are_rejected_and_change_nothing(tmp_path: Path, name: str, message: str) -> None:
    write_wheel(tmp_path / "x.whl", llama="x")
    kept = tmp_path / "venv" / portable.FOLDER / "avx2"
    kept.mkdir(parents=True)
    with pytest.raises(BuildError, match=message):
        portable.install_archive(str(tmp_path / name), tmp_path / "venv", lambda _: None)
    assert kept.exists()
    assert [path.name for path in (tmp_path / "venv").iterdir()] == [portable.FOLDER]


def test_builds_of_another_machine_are_passed_over(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    (tmp_path / "venv").mkdir()
    assert portable.install_archive(str(archive), tmp_path / "venv", lambda _: None) == ["i8mm"]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BuildError, match="none of the builds for riscv64"):
        portable.install_archive(str(archive), tmp_path / "venv", lambda _: None)


@pytest.mark.parametrize("machine", [portable.X86_64, portable.AARCH64])
def test_each_build_has_the_sets_of_the_build_before(machine: str) -> None:
    builds = [build for build in portable.BUILDS.values() if build.machine == machine]
    assert len(builds) > 1
    assert all(set(older.sets) < set(newer.sets) for older, newer in itertools.pairwise(builds))
    assert all(build.findings().usable == build.sets for build in builds if machine == portable.X86_64)
    for build in builds:
        assert set(build.cpuinfo_flags()) == set(build.sets)
        assert all(set(INSTRUCTION_SETS[name].needs) <= set(build.sets) for name in build.findings().usable)


def test_plans_for_another_machine_name_it(tmp_path: Path) -> None:
    requirements = tmp_path / "native.txt"
    requirements.write_text("llama-cpp-python==0.3.36")
    toolchain = find_toolchain()
    flags = {"LLAMA_BUILD_FLAGS": "-DGGML_LTO=ON"}
    plans = {name: portable.BUILDS[name].plan(requirements, toolchain, flags) for name in ("dotprod", "i8mm")}
    assert plans["i8mm"].instruction_sets == ("FP16", "DOTPROD", "I8MM")
    assert "-DGGML_CPU_ARM_ARCH=armv8.2-a+fp16+dotprod+i8mm" in plans["i8mm"].cmake_args
    assert {"-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DGGML_NATIVE=OFF", "-DGGML_LTO=ON"} <= set(
        plans["i8mm"].cmake_args
    )
    assert plans["i8mm"].key != plans["dotprod"].key


def test_a_missing_cross_compiler_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoCompilerError, match=r"aarch64-linux-gnu-gcc.*apt install g\+\+-aarch64-linux-gnu"):
        portable.find_compilers(portable.AARCH64, {"PATH": str(tmp_path)})
