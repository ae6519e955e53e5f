"""From findings to CMake's arguments, and when two builds share a wheel."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import cpu
import plan
import pytest
from compilers import Compiler, Toolchain
from plan import BuildFlagsError, Plan, make_plan
from probe import AMX_HEADER, INSTRUCTION_SETS, Findings

GCC = Toolchain(Compiler("c", ("gcc",), (), "gcc 12.2.0"), Compiler("c++", ("g++",), (), "g++ 12.2.0"))
ALL = Findings(dict.fromkeys(INSTRUCTION_SETS), amx_header="repaired")
ARM = Findings({}, unprobed="this is aarch64")


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    path = tmp_path / "native.txt"
    path.write_text("llama-cpp-python==0.3.36 \\\n    --hash=sha256:00\n")
    return path


def having(*names: str, amx_header: str = "unknown") -> Findings:
    return Findings({n: None if n in names else "no" for n in INSTRUCTION_SETS}, amx_header=amx_header)


def options(of: Plan) -> dict[str, str]:
    """The definitions as CMake ends up with them: the last one wins."""
    return dict(argument.removeprefix("-D").split("=", 1) for argument in of.cmake_args)


def test_every_set_is_named_and_only_the_usable_ones_are_on(requirements: Path) -> None:
    found = make_plan(requirements, GCC, having("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2"), {})
    assert options(found) == {
        "GGML_NATIVE": "OFF",
        **{f"GGML_{name}": "ON" for name in ("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2")},
        **{f"GGML_AVX512{suffix}": "OFF" for suffix in ("", "_VBMI", "_VNNI", "_BF16")},
        **{f"GGML_{name}": "OFF" for name in ("AVX_VNNI", "AMX_TILE", "AMX_INT8", "AMX_BF16")},
        "GGML_OPENMP": "OFF",
        "GGML_CCACHE": "OFF",
        "LLAVA_BUILD": "OFF",
    }
    assert found.version == "0.3.36"
    assert found.instruction_sets == ("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2")
    assert not found.repaired_tile_loadconfig


def test_avx_vnni_stands_in_for_avx512_vnni_only(requirements: Path) -> None:
    assert options(make_plan(requirements, GCC, ALL, {}))["GGML_AVX_VNNI"] == "OFF"
    assert options(make_plan(requirements, GCC, having("AVX2", "AVX_VNNI"), {}))["GGML_AVX_VNNI"] == "ON"


def test_the_header_is_repaired_where_the_probe_needed_it(requirements: Path) -> None:
    repaired = make_plan(requirements, GCC, ALL, {})
    assert repaired.repaired_tile_loadconfig
    assert options(repaired)["REPAIR_TILE_LOADCONFIG"] == "ON"
    sound = make_plan(requirements, GCC, dataclasses.replace(ALL, amx_header="sound"), {})
    assert not sound.repaired_tile_loadconfig
    assert "REPAIR_TILE_LOADCONFIG" not in options(sound)
    assert sound.instruction_sets == repaired.instruction_sets
    assert sound.key != repaired.key


def test_what_cannot_be_probed_gets_llama_cpps_defaults_without_openmp(requirements: Path) -> None:
    found = make_plan(requirements, GCC, ARM, {})
    assert options(found) == {"GGML_OPENMP": "OFF", "GGML_CCACHE": "OFF", "LLAVA_BUILD": "OFF"}
    assert found.instruction_sets == ()
    assert found.cpu_identity == cpu.identity()  # llama.cpp fits it to this CPU: no other may get the wheel


def test_build_flags_add_to_what_is_probed(requirements: Path) -> None:
    plain = make_plan(requirements, GCC, ALL, {})
    gpu = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": "-DGGML_CUDA=ON -DCMAKE_CUDA_FLAGS='-a b'"})
    assert options(gpu) == {**options(plain), "GGML_CUDA": "ON", "CMAKE_CUDA_FLAGS": "-a b"}
    assert gpu.instruction_sets == plain.instruction_sets
    assert gpu.key != plain.key


def test_build_flags_win_over_what_is_probed(requirements: Path) -> None:
    flags = "-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8:BOOL=0 -DGGML_OPENMP=ON"
    found = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": flags})
    assert options(found)["GGML_AMX_TILE"] == "OFF"
    assert options(found)["GGML_AMX_INT8"] == "0"
    assert options(found)["GGML_OPENMP"] == "ON"
    assert "AMX" not in found.instruction_sets
    assert not found.repaired_tile_loadconfig


def test_build_flags_can_go_back_to_march_native(requirements: Path) -> None:
    found = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": "-DGGML_NATIVE=ON"})
    assert options(found)["GGML_NATIVE"] == "ON"
    assert found.instruction_sets == tuple(INSTRUCTION_SETS)  # what -march=native means on this machine
    assert found.repaired_tile_loadconfig  # it uses AMX too
    assert found.cpu_identity == cpu.identity()


def test_sets_named_for_another_machine_are_built_with_the_safe_header(requirements: Path) -> None:
    flags = "-DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON"
    found = make_plan(requirements, GCC, having("AVX2"), {"LLAMA_BUILD_FLAGS": flags})
    assert found.instruction_sets == ("AVX2", "AMX")
    assert found.repaired_tile_loadconfig


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-O3", "'-O3' is not a CMake definition such as -DGGML_CUDA=ON"),
        ("-DGGML_CUDA", "'-DGGML_CUDA' is not a CMake definition"),
        ("GGML_CUDA=ON", "'GGML_CUDA=ON' is not a CMake definition"),
        ("-DA='", "LLAMA_BUILD_FLAGS=-DA=': No closing quotation"),
    ],
)
def test_build_flags_of_another_kind_are_refused(requirements: Path, flags: str, message: str) -> None:
    with pytest.raises(BuildFlagsError) as caught:
        make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": flags})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"CXXFLAGS": "-g"},
        {"LDFLAGS": "-static-libstdc++"},
        {"CMAKE_TOOLCHAIN_FILE": "/x"},
        {"LLAMA_BUILD_FLAGS": "-DGGML_LTO=ON"},
    ],
)
def test_the_key_changes_with_what_cmake_reads(requirements: Path, environment: dict[str, str]) -> None:
    assert make_plan(requirements, GCC, ALL, environment).key != make_plan(requirements, GCC, ALL, {}).key


def test_the_key_does_not_change_with_the_rest_of_the_environment(requirements: Path) -> None:
    rest = {"HOME": "/x", "CMAKE_ARGS": "-DA=B", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
    assert make_plan(requirements, GCC, ALL, rest).key == make_plan(requirements, GCC, ALL, {}).key


def test_the_key_changes_with_version_source_sets_and_compiler(requirements: Path) -> None:
    keys = [make_plan(requirements, GCC, ALL, {}).key, make_plan(requirements, GCC, having("AVX2"), {}).key]
    newer = dataclasses.replace(GCC, cxx=dataclasses.replace(GCC.cxx, version="g++ 14.1.0"))
    keys.append(make_plan(requirements, newer, ALL, {}).key)
    requirements.write_text(requirements.read_text().replace("sha256:00", "sha256:01"))
    keys.append(make_plan(requirements, GCC, ALL, {}).key)
    requirements.write_text(requirements.read_text().replace("0.3.36", "0.3.37"))
    keys.append(make_plan(requirements, GCC, ALL, {}).key)
    assert keys[-1].startswith("0.3.37-")
    assert len(set(keys)) == len(keys)


def test_the_key_follows_the_headers_content_and_not_its_place(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_plan(requirements, GCC, ALL, {}).key
    elsewhere = Path(shutil.copy(AMX_HEADER, tmp_path))
    monkeypatch.setattr(plan, "AMX_HEADER", elsewhere)
    assert make_plan(requirements, GCC, ALL, {}).key == key
    elsewhere.write_text(elsewhere.read_text() + "\n")
    assert make_plan(requirements, GCC, ALL, {}).key != key


def test_a_native_build_is_kept_for_its_cpu_alone(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> tuple[str, str]:
        return make_plan(requirements, GCC, ARM, {}).key, make_plan(requirements, GCC, ALL, {}).key

    native, named = keys()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : Another CPU\nflags : sse\n")
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    assert keys()[0] != native
    assert keys()[1] == named
