"""Metrics of several servers as one exposition."""

from __future__ import annotations

from collections.abc import Iterable


def merged(texts: Iterable[str]) -> str:
    """Merge expositions in Prometheus' text format. Their samples must differ in a label.

    Args:
        texts: One exposition for each server.
    """
    samples: dict[str, list[str]] = {}
    heads: dict[str, str] = {}
    for text in texts:
        for family in text.split("# HELP ")[1:]:
            name = family.partition(" ")[0]
            head, kind, lines = family.split("\n", 2)
            heads.setdefault(name, f"# HELP {head}\n{kind}\n")
            samples.setdefault(name, []).append(lines)
    return "".join(heads[name] + "".join(samples[name]) for name in heads)
