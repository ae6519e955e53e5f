"""FairLock admits one thread at a time, in the order of their requests."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from app.engine.fair_lock import FairLock


def test_a_thread_that_returns_at_once_waits_behind_the_others() -> None:
    lock = FairLock()
    order: list[str] = []
    both = threading.Barrier(2)

    def compute(name: str) -> None:
        both.wait()
        for _ in range(50):
            with lock:
                order.append(name)
                time.sleep(0.001)  # long enough for the other thread to wait

    threads = [threading.Thread(target=compute, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(order) == ["a"] * 50 + ["b"] * 50
    same_in_a_row = sum(one == next_ for one, next_ in itertools.pairwise(order))
    assert same_in_a_row <= 5, "the threads alternate"
    assert not lock.is_taken


def test_one_thread_at_a_time_holds_the_lock() -> None:
    lock = FairLock()
    inside: list[int] = []
    n_inside: list[int] = []

    def compute(number: int) -> None:
        for _ in range(300):
            with lock:
                inside.append(number)
                n_inside.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(n_inside) == 1800
    assert max(n_inside) == 1


def test_an_exception_releases_the_lock() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="failed"), lock:
        raise ValueError("failed")
    assert not lock.is_taken
