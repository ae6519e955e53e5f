"""CMake arguments of a build, and the key of its wheel."""

from __future__ import annotations

import dataclasses
import re
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


def findings_of(*names: str, amx_header: str = "unknown") -> Findings:
    return Findings({n: None if n in names else "no" for n in INSTRUCTION_SETS}, amx_header=amx_header)


def options(of: Plan) -> dict[str, str]:
    """The definitions that CMake uses. The last one of a name wins."""
    return dict(argument.removeprefix("-D").split("=", 1) for argument in of.cmake_args)


def test_usable_instruction_sets_are_on_and_all_others_off(requirements: Path) -> None:
    found = make_plan(requirements, GCC, findings_of("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2"), {})
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


@pytest.mark.parametrize(("gpu", "option"), [("cuda", "CUDA"), ("Vulkan", "VULKAN"), ("metal", "METAL")])
def test_a_gpu_is_an_option_of_the_build(requirements: Path, gpu: str, option: str) -> None:
    found = make_plan(requirements, GCC, ALL, {"GPU": gpu, "LLAMA_BUILD_FLAGS": "-DGGML_AVX2=OFF"})
    assert options(found)[f"GGML_{option}"] == "ON"
    assert options(found)["GGML_AVX2"] == "OFF"
    assert found.key != make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": "-DGGML_AVX2=OFF"}).key


def test_an_unknown_gpu_is_an_error(requirements: Path) -> None:
    with pytest.raises(BuildFlagsError, match="GPU=rocm: should be one of cuda, vulkan, metal"):
        make_plan(requirements, GCC, ALL, {"GPU": "rocm"})


def test_avx_vnni_is_on_only_without_avx512_vnni(requirements: Path) -> None:
    assert options(make_plan(requirements, GCC, ALL, {}))["GGML_AVX_VNNI"] == "OFF"
    assert options(make_plan(requirements, GCC, findings_of("AVX2", "AVX_VNNI"), {}))["GGML_AVX_VNNI"] == "ON"


def test_the_header_is_repaired_if_the_probe_needed_it(requirements: Path) -> None:
    repaired = make_plan(requirements, GCC, ALL, {})
    assert repaired.repaired_tile_loadconfig
    assert options(repaired)["REPAIR_TILE_LOADCONFIG"] == "ON"
    sound = make_plan(requirements, GCC, dataclasses.replace(ALL, amx_header="sound"), {})
    assert not sound.repaired_tile_loadconfig
    assert "REPAIR_TILE_LOADCONFIG" not in options(sound)
    assert sound.instruction_sets == repaired.instruction_sets
    assert sound.key != repaired.key


def test_unprobed_cpus_get_the_defaults_of_llama_cpp_without_openmp(requirements: Path) -> None:
    found = make_plan(requirements, GCC, ARM, {})
    assert options(found) == {"GGML_OPENMP": "OFF", "GGML_CCACHE": "OFF", "LLAVA_BUILD": "OFF"}
    assert found.instruction_sets == ()
    assert found.cpu_identity == cpu.identity()  # llama.cpp builds for this CPU, so the wheel is for no other


def test_build_flags_are_added_to_the_probed_ones(requirements: Path) -> None:
    default = make_plan(requirements, GCC, ALL, {})
    gpu = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": "-DGGML_CUDA=ON -DCMAKE_CUDA_FLAGS='-a b'"})
    assert options(gpu) == {**options(default), "GGML_CUDA": "ON", "CMAKE_CUDA_FLAGS": "-a b"}
    assert gpu.instruction_sets == default.instruction_sets
    assert gpu.key != default.key


def test_build_flags_override_the_probed_ones(requirements: Path) -> None:
    flags = "-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8:BOOL=0 -DGGML_OPENMP=ON"
    found = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": flags})
    assert options(found)["GGML_AMX_TILE"] == "OFF"
    assert options(found)["GGML_AMX_INT8"] == "0"
    assert options(found)["GGML_OPENMP"] == "ON"
    assert "AMX" not in found.instruction_sets
    assert not found.repaired_tile_loadconfig


def test_every_included_file_is_part_of_the_key(requirements: Path) -> None:
    files = set(make_plan(requirements, GCC, ALL, {}).forced_files())
    for path in [path for path in files if path.suffix in (".cpp", ".h")]:
        for name in re.findall(r'#include "(.*)"', path.read_text()):
            included = path.with_name(name)
            assert included in files or not included.exists(), f"{path.name} includes {name}"


def test_build_flags_can_select_march_native(requirements: Path) -> None:
    found = make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": "-DGGML_NATIVE=ON"})
    assert options(found)["GGML_NATIVE"] == "ON"
    assert found.instruction_sets == tuple(INSTRUCTION_SETS)  # the sets of -march=native on this machine
    assert found.repaired_tile_loadconfig  # it includes AMX
    assert found.cpu_identity == cpu.identity()


def test_amx_in_build_flags_uses_the_repaired_header(requirements: Path) -> None:
    flags = "-DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON"
    found = make_plan(requirements, GCC, findings_of("AVX2"), {"LLAMA_BUILD_FLAGS": flags})
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
def test_other_build_flags_are_rejected(requirements: Path, flags: str, message: str) -> None:
    with pytest.raises(BuildFlagsError) as error:
        make_plan(requirements, GCC, ALL, {"LLAMA_BUILD_FLAGS": flags})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"CXXFLAGS": "-g"},
        {"LDFLAGS": "-static-libstdc++"},
        {"CMAKE_TOOLCHAIN_FILE": "/x"},
        {"LLAMA_BUILD_FLAGS": "-DGGML_LTO=ON"},
    ],
)
def test_the_key_changes_with_variables_of_cmake(requirements: Path, environment: dict[str, str]) -> None:
    assert make_plan(requirements, GCC, ALL, environment).key != make_plan(requirements, GCC, ALL, {}).key


def test_the_key_does_not_change_with_other_variables(requirements: Path) -> None:
    others = {"HOME": "/x", "CMAKE_ARGS": "-DA=B", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
    assert make_plan(requirements, GCC, ALL, others).key == make_plan(requirements, GCC, ALL, {}).key


def test_the_key_changes_with_version_source_sets_and_compiler(requirements: Path) -> None:
    keys = [
        make_plan(requirements, GCC, ALL, {}).key,
        make_plan(requirements, GCC, findings_of("AVX2"), {}).key,
    ]
    newer = dataclasses.replace(GCC, cxx=dataclasses.replace(GCC.cxx, version="g++ 14.1.0"))
    keys.append(make_plan(requirements, newer, ALL, {}).key)
    requirements.write_text(requirements.read_text().replace("sha256:00", "sha256:01"))
    keys.append(make_plan(requirements, GCC, ALL, {}).key)
    requirements.write_text(requirements.read_text().replace("0.3.36", "0.3.37"))
    keys.append(make_plan(requirements, GCC, ALL, {}).key)
    assert keys[-1].startswith("0.3.37-")
    assert len(set(keys)) == len(keys)


def test_the_key_depends_on_the_content_of_the_header_only(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_plan(requirements, GCC, ALL, {}).key
    copy = Path(shutil.copy(AMX_HEADER, tmp_path))
    monkeypatch.setattr(plan, "AMX_HEADER", copy)
    assert make_plan(requirements, GCC, ALL, {}).key == key
    copy.write_text(copy.read_text() + "\n")
    assert make_plan(requirements, GCC, ALL, {}).key != key


def test_the_key_of_a_native_build_depends_on_the_cpu(
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
