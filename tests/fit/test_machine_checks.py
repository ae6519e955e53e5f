"""Checks of the machine, with recorded CPUs and kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.fit import machine_checks
from app.fit.machine_checks import Finding, check_machine
from app.machine import numa
from tests.machine.test_numa import XEON, tree

ZEN_4 = {"model name": "AMD EPYC", "flags": "avx2 avx512f avx512_vnni avx512_bf16"}
FLAGS = {
    "AVX2": ["avx2"],
    "AVX512": ["avx512f"],
    "AVX512_VNNI": ["avx512_vnni"],
    "AVX512_BF16": ["avx512_bf16"],
}


def build(*sets: str) -> dict[str, object]:
    return {"instruction_sets": list(sets), "cpuinfo_flags": {name: FLAGS[name] for name in sets}}


def kernel(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def found(name: str, cpu: dict[str, str], manifest: dict[str, object], sys: Path) -> Finding:
    return next(each for each in check_machine(cpu, manifest, None, sys) if each.check == name)


@pytest.mark.parametrize(
    ("cpu", "sets", "status", "detail"),
    [
        (ZEN_4, ("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16"), "ok", "the library uses AVX2, AVX512, "),
        ({**ZEN_4, "flags": "avx2"}, ("AVX2", "AVX512"), "failure", "AMD EPYC lacks AVX512, which the"),
        (
            ZEN_4,
            ("AVX2",),
            "warning",
            "AMD EPYC has AVX512, AVX512_VNNI, AVX512_BF16, which the lib",
        ),
        ({"Features": "asimd"}, ("AVX2",), "failure", "lacks AVX2"),
        ({}, (), "ok", "llama.cpp chose its instruction sets"),
    ],
)
def test_flags_of_the_cpu_are_compared_with_those_of_the_library(
    cpu: dict[str, str], sets: tuple[str, ...], status: str, detail: str, tmp_path: Path
) -> None:
    finding = found("CPU", cpu, build(*sets) if sets else {}, tmp_path)
    assert finding.status == status
    assert detail in finding.detail
    assert bool(finding.remedy) == (status != "ok")


def test_a_kernel_without_permission_for_amx_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = {"flags": "avx2 amx_tile amx_int8"}
    monkeypatch.setattr(machine_checks, "kernel_permits_amx", lambda: False)
    assert found("AMX", cpu, build("AVX2"), tmp_path).status == "warning"
    assert found("CPU", cpu, build("AVX2"), tmp_path).status == "ok"  # its use would crash
    monkeypatch.setattr(machine_checks, "kernel_permits_amx", lambda: True)
    assert found("AMX", cpu, build("AVX2"), tmp_path).status == "ok"
    assert found("CPU", cpu, build("AVX2"), tmp_path).status == "warning"


@pytest.mark.parametrize(
    ("pages", "status"), [("always [madvise] never", "ok"), ("always madvise [never]", "warning")]
)
def test_huge_pages_should_not_be_off(pages: str, status: str, tmp_path: Path) -> None:
    sys = kernel(tmp_path, kernel__mm__transparent_hugepage__enabled=pages)
    assert found("huge pages", ZEN_4, {}, sys).status == status


@pytest.mark.parametrize(
    ("governor", "driver", "status"),
    [
        ("performance", "acpi-cpufreq", "ok"),
        ("powersave", "acpi-cpufreq", "warning"),
        ("powersave", "intel_pstate", "ok"),
    ],
)
def test_a_governor_of_the_lowest_frequency_is_a_warning(
    governor: str, driver: str, status: str, tmp_path: Path
) -> None:
    files = {"scaling_governor": governor, "scaling_driver": driver}
    sys = kernel(tmp_path, **{f"devices__system__cpu__cpu0__cpufreq__{name}": t for name, t in files.items()})
    assert found("governor", ZEN_4, {}, sys).status == status
    assert found("governor", ZEN_4, {}, tmp_path / "other").status == "ok"


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "physical_cores", lambda: 2)
    cores = [each for each in check_machine({}, {}, 4, tmp_path) if each.check == "cores"]
    assert [(each.status, each.remedy) for each in cores] == [
        ("warning", "unset MODEL_THREADS, or set it to 2")
    ]


@pytest.mark.parametrize(("n_threads", "status"), [(None, "ok"), (16, "ok"), (17, "warning")])
def test_threads_on_several_nodes_are_a_warning(
    n_threads: int | None, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numa, "usable_cpus", lambda: frozenset(range(64)))
    monkeypatch.setattr(numa, "cpu_quota", lambda: None)
    sys = tree(tmp_path, XEON)
    [finding] = [each for each in check_machine({}, {}, n_threads, sys) if each.check == "NUMA"]
    assert finding.status == status
    assert finding.detail.startswith("2 nodes: node 0 (16 cores, 92.2 GB free), node 1 ")
    assert finding.remedy == ("compare the speed with MODEL_THREADS=16" if status == "warning" else "")
