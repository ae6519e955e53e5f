"""Shares of the memory for several models in one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from app.fit.speed import memory_of


def shares(sizes: Mapping[str, int], pinned: Collection[str], budget: int) -> dict[str, int]:
    """The memory that each model may plan with.

    If all models fit at once, the sum of the shares is the budget: each gets its least need and an equal part
    of the rest. Otherwise only pinned models have shares of their own. The others may use what the plans of
    these leave, because they are unloaded for each other.

    Args:
        sizes: Bytes of the model files by name.
        pinned: Names of the models that are never unloaded.
        budget: Bytes of all models that are loaded at the same time.
    """
    needs = {name: round(memory_of(size)) for name, size in sizes.items()}
    if (rest := budget - sum(needs.values())) >= 0:
        return {name: need + rest // len(needs) for name, need in needs.items()}
    of_pinned = {name: need for name, need in needs.items() if name in pinned}
    others = [need for name, need in needs.items() if name not in pinned]
    rest = max(0, budget - sum(of_pinned.values()) - max(others, default=0))
    return {name: need + rest // (len(of_pinned) + 1) for name, need in of_pinned.items()}
