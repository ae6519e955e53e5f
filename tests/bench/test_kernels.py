"""The bench of kernels: the order of variants, the files, and the table in the docs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import kernels, results
from bench.client import BenchError
from bench.goals import GGML, OPENVINO, OURS
from bench.kernels import FILES, PAGE, RESULTS, run, table, write_page
from bench.load import Figures
from tests.conftest import MODEL

RATES = {"prefill": 1200.0, "rate_of_1": 12.34, "rate_of_8": 8.0}
MEASURED = {
    "135M-Q4_1": {
        OURS: RATES,
        GGML: {"prefill": 300.0, "rate_of_1": 12.34, "rate_of_8": 2.0},
        OPENVINO: {"prefill": 800.0, "rate_of_1": 6.17, "rate_of_8": 16.0},
    },
    "135M-Q4_K_M": {OURS: RATES, GGML: RATES},
}
TABLE = """\
| file | tokens/s | Tokenstream | ggml | OpenVINO | to ggml | to OpenVINO |
| --- | --- | --- | --- | --- | --- | --- |
| 135M-Q4_1 | prefill of 512 tokens | 1200 | 300 | 800 | 4.00 × | 1.50 × |
| 135M-Q4_1 | decode of 1 | 12.3 | 12.3 | 6.17 | 1.00 × | 2.00 × |
| 135M-Q4_1 | decode of 8 | 8 | 2 | 16 | 4.00 × | 0.50 × |
| 135M-Q4_K_M | prefill of 512 tokens | 1200 | 1200 | — | 1.00 × | — |
| 135M-Q4_K_M | decode of 1 | 12.3 | 12.3 | — | 1.00 × | — |
| 135M-Q4_K_M | decode of 8 | 8 | 8 | — | 1.00 × | — |"""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Files and variants in the order of measurement. The variant GGML fails, and no process is started."""
    calls: list[tuple[str, str]] = []

    def measure(variant: str, path: Path, n_threads: int, n_steps: int) -> Figures:
        calls.append((path.name, variant))
        if variant == GGML:
            raise BenchError("it does not start")
        return {"prefill": float(len(calls))}

    monkeypatch.setattr(kernels, "measure", measure)
    return calls


def test_the_order_of_variants_rotates_and_failures_are_collected(
    measured: list[tuple[str, str]], small_file: Path
) -> None:
    rounds, failures = run({"a": small_file}, n_threads=2, n_rounds=3, n_steps=4)
    variants = [variant for _, variant in measured]
    assert [variants[begin : begin + 3] for begin in (0, 3, 6)] == [
        [OURS, GGML, OPENVINO],
        [GGML, OPENVINO, OURS],
        [OPENVINO, OURS, GGML],
    ]
    assert rounds == {
        "a": {
            OURS: [{"prefill": 1.0}, {"prefill": 6.0}, {"prefill": 8.0}],
            OPENVINO: [{"prefill": 3.0}, {"prefill": 5.0}, {"prefill": 7.0}],
        }
    }
    assert failures == [f"round {number}: a, {GGML}: it does not start" for number in (1, 2, 3)]


def test_files_with_types_unknown_to_openvino_are_not_measured_with_it(
    measured: list[tuple[str, str]], small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_OPENVINO_READS", {"F32"})
    run({"a": small_file}, n_threads=2, n_rounds=1, n_steps=4)
    assert [variant for _, variant in measured] == [OURS, GGML]


def test_files_are_given_as_names_or_paths(tmp_path: Path) -> None:
    assert kernels._files("1B") == ["1B-Q4_K_M", "1B-Q4_0", "1B-Q4_1", "1B-Q8_0"]
    assert kernels._files(f"135M-Q8_0,{MODEL}") == ["135M-Q8_0", str(MODEL)]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'2B': should be a file or one of 135M, 1B, "):
        kernels._files("2B")


def test_the_packaged_model_is_one_of_the_files() -> None:
    assert FILES["135M-Q4_1"]() == MODEL


def test_the_table_has_all_figures_and_ratios() -> None:
    assert table(MEASURED) == TABLE


def test_the_page_gets_the_table_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench.kernels -->\nold\n<!-- end of bench.kernels -->\nafter\n")
    write_page(MEASURED, page)
    assert page.read_text() == (
        f"before\n<!-- bench.kernels -->\n{TABLE}\n<!-- end of bench.kernels -->\nafter\n"
    )


def test_the_page_shows_the_stored_results() -> None:
    shown = PAGE.read_text().partition("<!-- bench.kernels -->\n")[2]
    stored = f"{table(results.read(RESULTS))}\n" if RESULTS.exists() else ""
    assert shown.startswith(f"{stored}<!-- end of bench.kernels -->\n"), "run: make bench-kernels"
