"""Steps of a build: remedies in error messages, and progress."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps
from steps import BuildError


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
def test_the_error_of_a_step_has_a_remedy(
    tmp_path: Path, output: str, environment: dict[str, str], advice: str
) -> None:
    log = tmp_path / "log"
    log.write_text("std::bad_alloc of an earlier step\n")
    with pytest.raises(BuildError) as error:
        steps.run_step(
            "A step", ["/bin/sh", "-c", f"echo '{output}'; exit 3"], log=log, environment=environment
        )
    assert str(error.value).startswith("A step failed (exit status 3)")
    assert advice in str(error.value).rpartition("Remedy: ")[2]


def test_progress_is_the_count_of_ninja(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("  [1/83] c++ -c a.cpp\n  [57/83] c++ -c b.cpp\nwarning: [3/4] of nothing\n")
    assert steps._ninja_count(log) == " (57 of 83 files)"
    assert steps.duration(182.4) == "3 min 2 s"
    assert steps.duration(9) == "9 s"
