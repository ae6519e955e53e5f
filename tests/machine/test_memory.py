"""Available memory according to the files of the kernel, which folders imitate."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.machine.memory import available_memory, machine_memory, returnable_buffer

GIB = 1 << 30
MIB = 1 << 20
V1_NO_LIMIT = 9223372036854771712
ANON = 40 * MIB


class FakeKernel:
    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroup = folder / "proc", folder / "cgroup"
        self.write("proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable:  8388608 kB\n")
        self.write("proc/self/status", f"Name:\tpython\nVmRSS:\t  99999 kB\nRssAnon:\t   {ANON // 1024} kB\n")
        self.write("proc/self/cgroup", "0::/\n")

    def write(self, path: str, text: str | int) -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def version_2(
        self, folder: str, *, limit: int | str, used: int, cached: int = 0, high: str = "max"
    ) -> None:
        self.write(f"cgroup/{folder}/memory.max", f"{limit}\n")
        self.write(f"cgroup/{folder}/memory.high", f"{high}\n")
        self.write(f"cgroup/{folder}/memory.current", f"{used}\n")
        halves = f"inactive_file {cached // 2}\nactive_file {cached - cached // 2}\n"
        self.write(f"cgroup/{folder}/memory.stat", f"anon {used - cached}\nfile 999999999999\n{halves}")

    def version_1(self, folder: str, *, limit: int, used: int, cached: int = 0) -> None:
        self.write(f"cgroup/memory/{folder}/memory.limit_in_bytes", limit)
        self.write(f"cgroup/memory/{folder}/memory.usage_in_bytes", used)
        text = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 0\n"
        self.write(f"cgroup/memory/{folder}/memory.stat", text)

    def available(self) -> int:
        return available_memory(self.proc, self.cgroup)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def test_without_limits_memory_is_that_of_the_machine(kernel: FakeKernel) -> None:
    """The memory of this process is part of the available memory."""
    assert kernel.available() == 8 * GIB + ANON


def test_the_limit_of_a_container_applies(kernel: FakeKernel) -> None:
    kernel.version_2("", limit=2 * GIB, used=500 * MIB)
    assert kernel.available() == 2 * GIB - 500 * MIB + ANON


def test_cached_files_can_be_freed(kernel: FakeKernel) -> None:
    kernel.version_2("", limit=2 * GIB, used=1900 * MIB, cached=1800 * MIB)
    assert kernel.available() == 2 * GIB - 100 * MIB + ANON


def test_a_limit_above_the_memory_of_the_machine_has_no_effect(kernel: FakeKernel) -> None:
    kernel.version_2("", limit=64 * GIB, used=500 * MIB)
    assert kernel.available() == 8 * GIB + ANON


def test_a_cgroup_without_a_limit_has_no_effect(kernel: FakeKernel) -> None:
    kernel.version_2("", limit="max", used=500 * MIB)
    assert kernel.available() == 8 * GIB + ANON


def test_the_throttling_limit_applies(kernel: FakeKernel) -> None:
    kernel.version_2("", limit=2 * GIB, used=0, high=str(GIB))
    assert kernel.available() == GIB + ANON


@pytest.mark.parametrize("lowest", ["a.slice", "a.slice/b.service"])
def test_the_lowest_limit_of_nested_cgroups_applies(kernel: FakeKernel, lowest: str) -> None:
    kernel.write("proc/self/cgroup", "0::/a.slice/b.service\n")
    for folder in ("a.slice", "a.slice/b.service"):
        kernel.version_2(folder, limit=GIB if folder == lowest else 4 * GIB, used=0)
    kernel.version_2("other.slice", limit=MIB, used=0)
    assert kernel.available() == GIB + ANON


def test_limits_of_cgroups_version_1_apply(kernel: FakeKernel) -> None:
    kernel.write("proc/self/cgroup", "5:devices:/x\n4:cpu,memory:/docker/abc\n0::/\n")
    kernel.version_1("docker/abc", limit=3 * GIB, used=2 * GIB, cached=GIB)
    kernel.version_1("", limit=V1_NO_LIMIT, used=10 * GIB)
    assert kernel.available() == 2 * GIB + ANON


@pytest.mark.parametrize("path", ["/docker/abc", "/../abc"])
def test_a_path_of_the_host_is_found_in_a_container(kernel: FakeKernel, path: str) -> None:
    """In a container, its cgroup is mounted at the root, but its path is that on the host."""
    kernel.write("proc/self/cgroup", f"4:memory:{path}\n0::{path}\n")
    kernel.version_1("", limit=GIB, used=100 * MIB)
    assert kernel.available() == GIB - 100 * MIB + ANON


def test_above_the_limit_only_the_memory_of_this_process_is_available(kernel: FakeKernel) -> None:
    kernel.version_2("", limit=GIB, used=2 * GIB)
    assert kernel.available() == ANON


def test_without_these_files_all_memory_is_available(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) == machine_memory()


def test_a_buffer_larger_than_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="a buffer of 4611686018427387904 bytes does not fit"):
        returnable_buffer(1 << 62)


def test_this_machine_has_available_memory() -> None:
    assert 64 * MIB < available_memory() <= machine_memory()
