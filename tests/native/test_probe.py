"""Probes of instruction sets on this CPU, and with programs that crash."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import cpu
import probe
import pytest
from compilers import NoCompilerError, Toolchain
from probe import AMX_HEADER, INSTRUCTION_SETS, Findings

pytestmark = pytest.mark.timeout(600)  # seconds: compilers on a busy machine

CompilerWith = Callable[..., Toolchain]

FLAGS = set(cpu.fields().get("flags", "").split())

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or not FLAGS, reason="no /proc/cpuinfo of an x86-64"
)
with_amx = pytest.mark.skipif("amx_int8" not in FLAGS, reason="this CPU has no AMX")

OFF_WITH_AVX2 = {"AVX2", "AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX"}


@on_x86
def test_usable_sets_are_in_cpuinfo(findings: Findings) -> None:
    assert findings.unprobed == ""
    assert findings.reasons.keys() == INSTRUCTION_SETS.keys()
    for name, reason in findings.reasons.items():
        has = set(INSTRUCTION_SETS[name].cpuinfo) <= FLAGS
        if reason is None:
            assert has, f"{name} is usable, but not in /proc/cpuinfo"
        elif has:
            # The CPU has the set, so compiler or kernel do not support it.
            assert reason.startswith(("does not compile", "needs", "the kernel", "_tile_loadconfig")), reason


@on_x86
def test_a_probe_has_the_flags_of_its_set_and_of_the_needed_ones() -> None:
    flags = probe.flags_with_needs(INSTRUCTION_SETS["AVX512_VNNI"])
    assert flags[-1] == "-mavx512vnni"
    assert {"-msse4.2", "-mavx", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl"} < set(flags)
    assert len(flags) == len(set(flags))


@on_x86
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("__builtin_trap();", "killed by SIGILL"),
        ("*(volatile int *)0 = 1;", "killed by SIGSEGV"),
        ('puts("wrong result"); return 1;', "wrong result"),
        ('puts("wrong result"); return 0;', "wrong result"),
        ("return 0;", "exit status 0"),
    ],
)
def test_a_failed_probe_excludes_its_set_and_all_that_need_it(
    compiler_with: CompilerWith, body: str, reason: str
) -> None:
    code = f"#include <stdio.h>\nint main(void) {{ {body} }}"
    findings = probe.probe(compiler_with(f"[ $source = avx2.c ] && code='{code}'"))
    assert findings.reasons["AVX2"] is not None
    assert findings.reasons["AVX2"].startswith(reason)
    assert {name for name, reason in findings.reasons.items() if reason} == OFF_WITH_AVX2
    assert findings.reasons["AVX512"] == "needs AVX2"


@on_x86
def test_an_unknown_compiler_flag_excludes_its_set(compiler_with: CompilerWith) -> None:
    reject = 'case "$*" in *-mavx512bf16*) echo "error: unknown -mavx512bf16" >&2; exit 1 ;; esac'
    for toolchain in (compiler_with(reject), compiler_with("", reject)):
        findings = probe.probe(toolchain)
        reason = findings.reasons["AVX512_BF16"]
        assert reason is not None
        assert reason.startswith("does not compile: error: unknown -mavx512bf16")
        assert set(findings.usable) == INSTRUCTION_SETS.keys() - {"AVX512_BF16"}


@on_x86
def test_the_header_is_repaired_only_if_the_repair_works(compiler_with: CompilerWith) -> None:
    wrong = "code='int main(void) { __builtin_trap(); }'"
    sound = probe.probe(compiler_with(""))
    assert (sound.amx_header, sound.reasons["AMX"]) == ("sound", None)
    repairable = f'[ $source = amx.c ] && case "$*" in *"-include {AMX_HEADER}"*) ;; *) {wrong} ;; esac'
    repaired = probe.probe(compiler_with(repairable))
    assert (repaired.amx_header, repaired.reasons["AMX"]) == ("repaired", None)
    broken = probe.probe(compiler_with(f"[ $source = amx.c ] && {wrong}"))
    assert broken.amx_header == "unknown"
    assert broken.reasons["AMX"] is not None


@on_x86
@with_amx
def test_the_finding_on_the_header_equals_that_of_a_direct_compilation(
    findings: Findings, toolchain: Toolchain, tmp_path: Path
) -> None:
    def is_sound(*extra: str) -> bool:
        amx = INSTRUCTION_SETS["AMX"]
        flags = [*probe.flags_with_needs(amx), *extra]
        command = [*toolchain.cxx.command, "-O3", "-w", *flags, "-x", "c++", str(amx.source)]
        subprocess.run([*command, "-o", str(tmp_path / "amx")], check=True)
        result = subprocess.run([str(tmp_path / "amx")], capture_output=True, text=True, check=False)
        return (result.returncode, result.stdout) == (0, "right\n")

    expected = "sound" if is_sound() else "repaired" if is_sound("-include", str(AMX_HEADER)) else "unknown"
    assert findings.amx_header == expected


def test_other_processors_are_not_probed(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    findings = probe.probe(toolchain)
    assert findings.usable == ()
    assert "aarch64" in findings.unprobed


@on_x86
def test_without_running_programs_nothing_is_probed(compiler_with: CompilerWith) -> None:
    findings = probe.probe(compiler_with("code='int main(void) { return 3; }'"))
    assert findings.usable == ()
    assert "do not run here: exit status 3" in findings.unprobed


@on_x86
def test_a_compiler_that_cannot_compile_is_an_error(compiler_with: CompilerWith) -> None:
    with pytest.raises(
        NoCompilerError, match=r"cannot compile a trivial program.*error: stdio.h: no such file"
    ):
        probe.probe(compiler_with("echo 'fatal error: stdio.h: no such file' >&2; exit 1"))
