"""The test decode at startup: its error messages, and its repetition after changes.

The crashes are real: a preloaded library replaces the function that computes a graph.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.engine.llama import ModelLoadError
from app.fit import preflight
from app.machine import identity
from tests.conftest import MODEL, ROOT

AMX_CPU = "avx2 avx512f avx512_vnni amx_tile amx_int8"
BUILT_WITH_AMX = {
    "AVX2": ["avx2"],
    "AVX512_VNNI": ["avx512_vnni"],
    "AMX": ["amx_tile", "amx_int8"],
}

HEADERS = ("signal", "stdio", "stdlib", "sys/resource", "unistd")

Crash = Callable[[str], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenstream" / "preflight"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]], str], None]:
    """Fake the instruction sets of the build and of the CPU."""

    def write_machine(built_with: dict[str, list[str]], cpu_flags: str) -> None:
        manifest, cpuinfo = tmp_path / "native-build.json", tmp_path / "cpuinfo"
        manifest.write_text(json.dumps({"cpuinfo_flags": built_with}))
        cpuinfo.write_text(
            f"processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: {cpu_flags}\n\nprocessor\t: 1\n"
        )
        monkeypatch.setattr(identity, "MANIFEST", manifest)
        monkeypatch.setattr(identity, "CPUINFO", cpuinfo)
        monkeypatch.setattr(preflight, "kernel_permits_amx", lambda: True)

    return write_machine


@pytest.fixture
def crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crash:
    """Make every decode run these lines of C."""

    def preload(body: str) -> None:
        source, library = tmp_path / "crash.c", tmp_path / "libdie.so"
        source.write_text(
            "".join(f"#include <{header}.h>\n" for header in HEADERS)
            + f"int ggml_backend_sched_graph_compute_async(void *s, void *g) {{ {body}; return 0; }}\n"
        )
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source], check=True)
        monkeypatch.setenv("LD_PRELOAD", str(library))

    return preload


def fault(n_gpu_layers: int = 0) -> str:
    """The error message of the check of the default model."""
    with pytest.raises(preflight.NativeLibraryError) as error:
        preflight.check(MODEL, n_threads=2, n_gpu_layers=n_gpu_layers)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_working_library_is_tested_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check(MODEL, n_threads=2, n_gpu_layers=0)
    assert [path.stat().st_size for path in cache.iterdir()] == [0]
    monkeypatch.setattr(
        preflight.subprocess, "run", lambda *_, **__: pytest.fail("the test decode runs again")
    )
    preflight.check(MODEL, n_threads=2, n_gpu_layers=0)


@pytest.mark.parametrize("changed", ["model", "library", "manifest", "cpu", "gpu layers"])
def test_the_library_is_tested_again_after_a_change(
    changed: str, machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[str]] = []

    def passing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    libraries, model = tmp_path / "lib", tmp_path / "model.gguf"
    libraries.mkdir()
    (libraries / "libllama.so").write_bytes(b"one")
    model.write_bytes(b"GGUF")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(libraries))
    monkeypatch.setattr(preflight.subprocess, "run", passing)
    machine(BUILT_WITH_AMX, AMX_CPU)
    for _ in range(2):
        preflight.check(model, n_threads=2, n_gpu_layers=0)
    assert len(runs) == 1
    if changed == "model":
        model.write_bytes(b"GGUF, another")
    elif changed == "library":
        (libraries / "libllama.so").write_bytes(b"another")
    elif changed == "manifest":
        machine({"AVX2": ["avx2"]}, AMX_CPU)
    elif changed == "cpu":
        machine(BUILT_WITH_AMX, "avx2")
    preflight.check(model, n_threads=2, n_gpu_layers=3 if changed == "gpu layers" else 0)
    assert len(runs) == 2


def test_the_error_for_sigill_names_the_missing_instruction_set(
    machine: Callable[..., None], crash: Crash, cache: Path
) -> None:
    machine(BUILT_WITH_AMX, "avx2 avx512f avx512_vnni")
    crash("__builtin_trap()")
    message = fault()
    assert "SIGILL" in message
    assert "built with AVX2, AVX512_VNNI and AMX; this CPU (Test CPU) has no AMX." in message
    assert message.endswith("make rebuild.")
    assert not cache.exists()


def test_the_error_for_sigsegv_suggests_a_build_without_amx(
    machine: Callable[..., None], crash: Crash
) -> None:
    machine(BUILT_WITH_AMX, AMX_CPU)
    crash("*(volatile int *)0 = 1")
    message = fault()
    assert "SIGSEGV" in message
    assert "this CPU supports all of them; the likely cause is AMX" in message
    assert 'make rebuild LLAMA_BUILD_FLAGS="-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF"' in message


def test_a_kernel_that_does_not_permit_amx_is_named(
    machine: Callable[..., None], crash: Crash, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(BUILT_WITH_AMX, AMX_CPU)
    monkeypatch.setattr(preflight, "kernel_permits_amx", lambda: False)
    crash("__builtin_trap()")
    assert "the kernel of this machine does not permit AMX" in fault()


def test_the_error_for_other_signals_names_the_newest_instruction_set(
    machine: Callable[..., None], crash: Crash
) -> None:
    machine({"AVX2": ["avx2"], "AVX512": ["avx512f"]}, AMX_CPU)
    crash("raise(SIGBUS)")
    message = fault(n_gpu_layers=1)
    assert "SIGBUS" in message
    assert "the newest set, AVX512" in message
    assert "MODEL_GPU_LAYERS=0" in message


def test_the_error_for_an_unknown_library_suggests_a_rebuild(
    crash: Crash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "MANIFEST", tmp_path / "none.json")
    crash("__builtin_trap()")
    assert fault().endswith("It may be built for another CPU. Build it for this machine: make rebuild.")


def test_a_library_from_another_folder_is_named(crash: Crash, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = identity.library_files()[0].parent
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    crash("__builtin_trap()")
    assert f"LLAMA_CPP_LIB_PATH={folder} and may be built for another CPU: unset it." in fault()


def test_the_error_for_an_abort_quotes_the_assertion(crash: Crash) -> None:
    crash('fputs("ggml.c:1: GGML_ASSERT(a == b) failed\\nbye\\n", stderr); abort()')
    message = fault()
    assert "SIGABRT" in message
    assert "Its last message: ggml.c:1: GGML_ASSERT(a == b) failed." in message


def test_the_error_for_sigkill_names_memory(crash: Crash) -> None:
    crash("raise(SIGKILL)")
    message = fault()
    assert "memory ran out" in message
    assert "make rebuild" not in message


def test_a_hanging_library_times_out(crash: Crash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_STARTING_TIME", 2.0)
    monkeypatch.setattr(preflight, "_SLOWEST_DISK", float("inf"))
    crash("sleep(60)")
    assert "did not end within" in fault()


def test_a_failed_decode_is_reported(crash: Crash) -> None:
    crash("return -1")  # GGML_STATUS_FAILED
    message = fault()
    assert "failed in a test decode" in message
    assert "llama_decode returned" in message
    assert message.endswith("make rebuild")


def test_a_library_that_cannot_be_loaded_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert fault().startswith(
        "the native library cannot be loaded (Shared library with base name 'llama' not found)"
    )
    (tmp_path / "libllama.so").write_bytes(b"not a library")
    message = fault()
    assert "libllama.so" in message
    assert message.endswith("make rebuild")


def test_a_truncated_model_is_an_error_of_the_model(tmp_path: Path) -> None:
    model = tmp_path / "cut.gguf"
    model.write_bytes(MODEL.read_bytes()[:3_000_000])
    with pytest.raises(ModelLoadError) as error:
        preflight.check(model, n_threads=2, n_gpu_layers=0)
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_an_unwritable_cache_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    preflight.check(MODEL, n_threads=2, n_gpu_layers=0)


def test_the_process_writes_no_core_file(crash: Crash) -> None:
    # The crashing process prints the limit of its core file.
    crash('struct rlimit r; getrlimit(RLIMIT_CORE, &r); fprintf(stderr, "core %lu\\n", r.rlim_max); abort()')
    assert "core 0" in fault()


@pytest.mark.slow
def test_a_library_that_crashes_during_loading_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library for another CPU can crash in its static constructors."""
    source = tmp_path / "constructor.c"
    source.write_text("__attribute__((constructor)) static void f(void) { __builtin_trap(); }\n")
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libllama.so", source], check=True)
    preflight.check_library()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(preflight.NativeLibraryError, match=r"crashed with SIG\w+ .* during loading"):
        preflight.check_library()
    command_line = subprocess.run(
        [sys.executable, "-m", "app", "generate", "--prompt", "x"], capture_output=True, text=True, cwd=ROOT
    )
    assert command_line.returncode == 1
    assert command_line.stderr.startswith("error: the native library crashed with SIG")
    assert len(command_line.stderr.splitlines()) == 1
