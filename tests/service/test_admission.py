"""Places of requests, with a clock of the test."""

from __future__ import annotations

import pytest

from app.service import Client
from app.service.admission import Admission, Place
from app.service.errors import Overloaded

FLOOD, LONE = Client("flood"), Client("lone")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fill(admission: Admission, client: Client = FLOOD) -> list[Place]:
    """Places of a client until one is rejected."""
    places = []
    while True:
        try:
            places.append(admission.enter(client, 0))
        except Overloaded:
            return places


def test_one_client_leaves_an_eighth_of_the_places_to_the_others() -> None:
    admission = Admission(16, 1000)
    flood = fill(admission)
    assert len(flood) == 14
    lone = admission.enter(LONE, 0)
    lone.reserve(2)
    with pytest.raises(Overloaded, match=r"16 requests run or wait \(MAX_CONCURRENT_REQUESTS=16\)"):
        admission.enter(Client("third"), 0)
    lone.leave()
    flood.pop().leave()
    assert len(fill(admission)) == 1


def test_a_few_places_are_open_to_one_client() -> None:
    assert len(fill(Admission(1, 1000))) == 1
    assert len(fill(Admission(7, 1000))) == 7


def test_answers_are_rejected_together() -> None:
    admission = Admission(4, 1000)
    place = admission.enter(LONE, 0)
    with pytest.raises(Overloaded):
        place.reserve(5)
    place.reserve(4)
    place.leave()
    place.leave()
    assert len(fill(admission)) == 4


def test_the_tokens_that_wait_are_bounded() -> None:
    admission = Admission(16, 1000)
    large = admission.enter(FLOOD, 400_000)  # alone, a request may exceed the limit
    with pytest.raises(Overloaded, match=r"100000 prompt tokens wait, and 1 more exceed .* 1000"):
        admission.enter(LONE, 4)
    large.prepared(900)
    other = admission.enter(LONE, 400)
    with pytest.raises(Overloaded):
        other.prepared(101)
    large.begin()
    other.prepared(101)
    other.prepared(899)  # a second prompt is added to the first
    with pytest.raises(Overloaded):
        admission.enter(FLOOD, 4)
    other.leave()
    assert admission.enter(FLOOD, 4000)


def test_a_rejected_request_leaves_nothing_behind() -> None:
    admission = Admission(1, 1000)
    admission.enter(FLOOD, 4000)
    for _ in range(3):
        with pytest.raises(Overloaded):
            admission.enter(LONE, 4000)
    admission = Admission(2, 1000)
    large = admission.enter(FLOOD, 4000)
    with pytest.raises(Overloaded, match="MAX_WAITING_TOKENS"):
        admission.enter(LONE, 4000)
    large.leave()
    assert len(fill(admission)) == 2


def test_retry_after_follows_the_measured_rate() -> None:
    clock = Clock()
    admission = Admission(2, 1000, clock)

    def rejected() -> int:
        with pytest.raises(Overloaded) as error:
            admission.enter(LONE, 0)
        assert f"try again in {error.value.retry_after} s" in str(error.value)
        return error.value.retry_after

    places = fill(admission)
    assert rejected() == 1, "nothing is measured"
    for _ in range(20):
        clock.now += 3.0
        places.pop(0).leave()
        places.append(admission.enter(FLOOD, 0))
    assert [rejected() for _ in range(4)] == [3, 6, 9, 12], "one place is free every 3 s"
    assert [rejected() for _ in range(100)][-1] == 120


def test_idle_time_is_not_measured() -> None:
    clock = Clock()
    admission = Admission(1, 1000, clock)
    for _ in range(2):
        place = admission.enter(FLOOD, 0)
        clock.now += 5.0
        place.leave()
        clock.now += 100.0
    admission.enter(FLOOD, 0)
    with pytest.raises(Overloaded) as error:
        admission.enter(LONE, 0)
    assert error.value.retry_after == 5


def test_a_body_of_small_parts_counts_as_a_whole_one() -> None:
    admission = Admission(4, 100)
    place = admission.enter(LONE, 0)
    for _ in range(200):
        place.read(1)
    with pytest.raises(Overloaded, match="50 prompt tokens wait, and 51 more"):
        admission.enter(FLOOD, 204)


def test_requests_with_too_many_tokens_do_not_shorten_the_expected_time() -> None:
    clock = Clock()
    admission = Admission(4, 100, clock)
    place = admission.enter(LONE, 400)
    clock.now = 20.0
    place.leave()
    place = admission.enter(LONE, 400)
    for n_before in range(3):
        with pytest.raises(Overloaded) as rejection:
            admission.enter(FLOOD, 4)
        assert rejection.value.retry_after == 20 * (n_before + 1)
    place.leave()
