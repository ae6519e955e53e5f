"""Plot of the results: ratios to llama-server for each load and model.

python -m bench.plot                 bench/results/*.json → docs/benchmark.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from app.machine.installation import ROOT
from bench import results
from bench.goals import Results, rows

PICTURE = ROOT / "docs" / "benchmark.svg"

_MODELS = {
    "default": ("SmolLM2-135M-Instruct, Q4_1", "#1b6e8a"),
    "1b": ("random weights in the shape of Llama-3.2-1B, Q4_K_M", "#e0a030"),
}
_BAR = 0.38  # height of a bar; the distance between two loads is 1


def advantages(figures: Results) -> dict[str, float]:
    """Ratios to llama-server by goal. Above 1, Tokenstream is better; ratios of latencies are inverted."""
    ratios = (row for row in rows(figures) if row.beside == "llama-server" and row.unit == "×")
    return {row.goal: row.compared if row.at_least else 1 / row.compared for row in ratios}


def draw(by_model: dict[str, dict[str, float]], path: Path) -> None:
    """Draw one bar for each model and goal. The file depends on the figures only."""
    plt.rcParams.update({"svg.hashsalt": "tokenstream", "font.size": 10, "font.family": "DejaVu Sans"})
    goals = list(dict.fromkeys(goal for figures in by_model.values() for goal in figures))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(goals)), layout="constrained")
    for number, (model, figures) in enumerate(by_model.items()):
        title, color = _MODELS.get(model, (model, "#777777"))
        shown = [goal for goal in goals if goal in figures]
        places = [goals.index(goal) + (number - (len(by_model) - 1) / 2) * _BAR for goal in shown]
        values = [figures[goal] for goal in shown]
        # Bars start at 1, because a logarithmic scale has no zero.
        axes.barh(places, [value - 1 for value in values], _BAR, left=1, label=title, color=color)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.2g} ×", (max(value, 1), place), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    values = [value for figures in by_model.values() for value in figures.values()]
    axes.set_xlim(min(0.8, 0.9 * min(values)), 1.4 * max(values))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(goals)), [goal.rpartition(" in ")[0] or goal for goal in goals])
    axes.invert_yaxis()
    axes.set_xlabel("ratio to llama-server (higher is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(by_model), frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


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
