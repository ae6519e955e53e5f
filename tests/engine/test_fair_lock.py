"""FairLock: one at a time, in the order they came."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from app.engine.fair_lock import FairLock


def test_who_comes_back_at_once_goes_behind_those_who_wait() -> None:
    lock = FairLock()
    order: list[str] = []
    both = threading.Barrier(2)

    def compute(name: str) -> None:
        both.wait()
        for _ in range(50):
            with lock:
                order.append(name)
                time.sleep(0.001)  # long enough for the other to come

    threads = [threading.Thread(target=compute, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(order) == ["a"] * 50 + ["b"] * 50
    same_in_a_row = sum(one == next_ for one, next_ in itertools.pairwise(order))
    assert same_in_a_row <= 5, "they alternate"
    assert not lock.is_taken


def test_one_at_a_time() -> None:
    lock = FairLock()
    inside: list[int] = []
    worst: list[int] = []

    def compute(number: int) -> None:
        for _ in range(300):
            with lock:
                inside.append(number)
                worst.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(worst) == 1800
    assert max(worst) == 1


def test_an_error_gives_the_turn_back() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="failed"), lock:
        raise ValueError("failed")
    assert not lock.is_taken
