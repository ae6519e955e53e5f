"""Shares of the memory for several models."""

from __future__ import annotations

from app.fit.model_shares import shares
from app.fit.speed import memory_of

GB = 10**9


def test_models_that_fit_together_share_all_of_the_memory() -> None:
    found = shares({"a": 1 * GB, "b": 4 * GB}, [], 10 * GB)
    assert sum(found.values()) == 10 * GB
    assert found["b"] - found["a"] == round(memory_of(4 * GB) - memory_of(1 * GB))
    assert found["a"] > memory_of(1 * GB)


def test_otherwise_only_pinned_models_have_shares_and_leave_room_for_the_largest_other() -> None:
    sizes = {"a": 1 * GB, "b": 4 * GB, "c": 3 * GB}
    assert shares(sizes, [], 8 * GB) == {}
    found = shares(sizes, ["a"], 8 * GB)
    assert list(found) == ["a"]
    assert memory_of(1 * GB) < found["a"] <= 8 * GB - memory_of(4 * GB)
