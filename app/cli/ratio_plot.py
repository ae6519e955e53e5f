"""Plot of ratios as an SVG: one bar for each label of each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.config.errors import UserError

_BARS = 0.76  # height of all bars of a label; the distance between two labels is 1
_WIDE, _NARROW = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20), (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 2)


class NoMatplotlib(UserError):
    """matplotlib is not installed."""


@dataclass(frozen=True, slots=True)
class Series:
    """Ratios by label, with a title and a colour."""

    title: str
    color: str
    ratios: Mapping[str, float]


def draw_ratios(series: Sequence[Series], axis: str, path: Path) -> None:
    """Draw a bar for each ratio, on a logarithmic scale. The file depends on the arguments only.

    Args:
        series: The ratios.
        axis: Meaning of a ratio.
        path: The SVG to write.

    Raises:
        NoMatplotlib: It is not installed.
        OSError: The file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise NoMatplotlib("a plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "tokenstream", "font.size": 10, "font.family": "DejaVu Sans"})
    labels = list(dict.fromkeys(label for each in series for label in each.ratios))
    height = _BARS / len(series)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.25 * len(series) * len(labels)), layout="constrained")
    for number, each in enumerate(series):
        shown = [label for label in labels if label in each.ratios]
        places = [labels.index(label) + (number - (len(series) - 1) / 2) * height for label in shown]
        values = [each.ratios[label] for label in shown]
        # Bars start at 1, because a logarithmic scale has no zero.
        axes.barh(places, [value - 1 for value in values], height, left=1, label=each.title, color=each.color)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.2g} ×", (max(value, 1), place), (4, 0), textcoords="offset points", va="center"
            )
    values = [value for each in series for value in each.ratios.values()]
    axes.set_xscale("log")
    least, most = min(0.8, 0.9 * min(values)), 1.4 * max(1, *values)
    axes.set_xlim(least, most)
    ticks = [tick for tick in (_NARROW if most < 4 * least else _WIDE) if least <= tick <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
