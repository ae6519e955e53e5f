"""Cores available to this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.machine import cores


@pytest.mark.parametrize(
    ("file", "text", "cpus"),
    [
        ("cpu.max", "150000 100000\n", 1.5),
        ("cpu.max", "max 100000\n", None),
        ("cpu/cpu.cfs_quota_us", "200000\n", 2.0),
        ("cpu/cpu.cfs_quota_us", "-1\n", None),
        ("other", "", None),
    ],
)
def test_the_cpu_quota_of_a_cgroup_is_read(tmp_path: Path, file: str, text: str, cpus: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / file).write_text(text)
    assert cores.cpu_quota(tmp_path) == cpus


def test_there_is_at_least_one_core() -> None:
    assert 1 <= cores.physical_cores() <= len(os.sched_getaffinity(0))
