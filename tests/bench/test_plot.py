"""The plot: ratios above 1 are better, and equal figures give equal files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.goals import OURS, PEER, PEER_FLASH_OFF
from bench.plot import advantages, draw


def test_ratios_above_one_are_better() -> None:
    peer = {"tokens_per_second": 100.0, "ttft_p99": 1000.0}
    figures = {
        "contexts": {
            OURS: {"tokens_per_second": 250.0, "ttft_p99": 100.0},
            PEER: peer,
            PEER_FLASH_OFF: peer,
        },
        "memory": {name: {"after_mb": 900.0} for name in (OURS, PEER, PEER_FLASH_OFF)},
    }
    assert advantages(figures) == pytest.approx(
        {
            "six contexts, fresh start: tokens/s": 2.5,
            "six contexts, fresh start: TTFT p99 in ms": 10.0,
        }
    )


def test_the_file_depends_on_the_figures_only(tmp_path: Path) -> None:
    figures = {"default": {"chat: TTFT p50 in ms": 1.5, "long: tokens/s": 0.9}, "1b": {"long: tokens/s": 1.2}}
    draw(figures, tmp_path / "first.svg")
    draw(figures, tmp_path / "second.svg")
    picture = (tmp_path / "first.svg").read_text()
    assert picture == (tmp_path / "second.svg").read_text()
    assert str(tmp_path) not in picture
    assert "dc:date" not in picture
