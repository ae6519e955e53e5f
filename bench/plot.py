"""Plot of the results: ratios to llama-server for each load and model.

python -m bench.plot                 bench/results/*.json → docs/benchmark.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.cli.ratio_plot import Series, draw_ratios
from app.machine.installation import ROOT
from bench import results
from bench.goals import Results, rows

PICTURE = ROOT / "docs" / "benchmark.svg"

_MODELS = {
    "default": ("SmolLM2-135M-Instruct, Q4_1", "#1b6e8a"),
    "1b": ("random weights in the shape of Llama-3.2-1B, Q4_K_M", "#e0a030"),
}


def advantages(figures: Results) -> dict[str, float]:
    """Ratios to llama-server by goal. Above 1, Tokenstream is better; ratios of latencies are inverted."""
    ratios = (row for row in rows(figures) if row.beside == "llama-server" and row.unit == "×")
    return {row.goal: row.compared if row.at_least else 1 / row.compared for row in ratios}


def draw(by_model: dict[str, dict[str, float]], path: Path) -> None:
    """Draw one bar for each model and goal. The file depends on the figures only."""
    named = [_MODELS.get(model, (model, "#777777")) for model in by_model]
    short = [
        {goal.rpartition(" in ")[0] or goal: value for goal, value in figures.items()}
        for figures in by_model.values()
    ]
    series = [Series(title, color, figures) for (title, color), figures in zip(named, short, strict=True)]
    draw_ratios(series, "ratio to llama-server (higher is better)", path)


def main() -> int:
    """Draw all stored results and return the exit status."""
    files = [path for model in _MODELS if (path := results.FOLDER / f"{model}.json").exists()]
    if not files:
        print("error: bench/results has no results; run: make bench", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(exist_ok=True)
    draw({path.stem: advantages(results.read(path)) for path in files}, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
