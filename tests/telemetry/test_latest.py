"""The latest requests."""

from __future__ import annotations

from app.telemetry.latest import MOST, LatestRequests


def test_they_are_bounded_ordered_and_without_texts() -> None:
    latest = LatestRequests()
    latest.add({"route": "/a", "status": 200, "prompt": "secret", "answer": "secret", "model": "x" * 9000})
    [first] = latest.since(0)
    assert {"route": "/a", "status": 200, "model": "x" * 200}.items() <= first.items()
    assert first.keys() == {"ended_at", "route", "status", "model"}
    known = latest.count
    assert latest.since(known) == []
    for number in range(MOST + 5):
        latest.add({"route": f"/{number}"})
        if number == 1:
            assert [one["route"] for one in latest.since(known)] == ["/0", "/1"]
    assert [one["route"] for one in latest.since(known)] == [f"/{number}" for number in range(5, MOST + 5)]
