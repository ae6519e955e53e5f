"""Plans of the scheduler for several clients."""

from __future__ import annotations

from collections import Counter

import pytest

from app.engine.cache.kv_state import MemoryKind
from app.engine.client import Client
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import sequence
from tests.engine.scheduler_rig import MB, Rig

FLOOD, LONE = Client("flood"), Client("lone")
KINDS = [MemoryKind(), MemoryKind(truncatable=False)]


def rig_of(kind: MemoryKind, n_slots: int = 8, *, budget: int = MB) -> Rig:
    return Rig(n_slots, kind=kind, budget=budget)


def flood(rig: Rig, n: int = 100) -> list[Sequence]:
    """Sequences of one client; as many as there are slots decode."""
    sequences = [sequence(20, max_tokens=200, submitted_at=i / 1000, client=FLOOD) for i in range(n)]
    rig.add(*sequences)
    for _ in range(20):
        rig.step()
    return sequences


def steps_to_first_token(rig: Rig, item: Sequence) -> int:
    for n in range(1, 1000):
        rig.step()
        if item.n_generated:
            return n
    raise AssertionError("no first token")


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_beside_a_flood_has_its_first_token_as_soon_as_beside_one_request(kind: MemoryKind) -> None:
    beside_flood, beside_one = rig_of(kind), rig_of(kind)
    flood(beside_flood)
    flood(beside_one, 1)
    steps = []
    for rig in (beside_flood, beside_one):
        lone = sequence(100, submitted_at=10.0, client=LONE)
        rig.add(lone)
        steps.append(steps_to_first_token(rig, lone))
    assert steps[0] == steps[1]


@pytest.mark.parametrize("kind", KINDS)
def test_clients_have_equal_numbers_of_slots(kind: MemoryKind) -> None:
    rig = rig_of(kind)
    flood(rig)
    rig.add(*(sequence(20, max_tokens=200, submitted_at=10.0, client=LONE) for _ in range(20)))
    slots = list[Counter[str]]()
    for _ in range(60):
        rig.step()
        slots.append(Counter(s.client.name for s in rig.scheduler.running))
    assert slots[-1] == {"flood": 4, "lone": 4}
    assert slots[30:] == slots[-1:] * 30, "no slot changes its client again and again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [MB, 0])
def test_a_suspended_sequence_continues_with_its_tokens(kind: MemoryKind, budget: int) -> None:
    rig = rig_of(kind, 2, budget=budget)
    first, second = flood(rig, 2)
    lone = sequence(100, submitted_at=10.0, client=LONE, max_tokens=3)
    rig.add(lone)
    n_prefilled, admitted_at = rig.memory.n_prefilled, second.admitted_at
    while lone.n_generated < 3:
        rig.step()
    assert (first.slot is None, second.slot is None) == (False, True), "the newest left its slot"
    n_generated = second.n_generated
    rig.scheduler.remove(lone)
    for _ in range(10):
        rig.step()
    assert second.n_generated > n_generated
    assert second.n_cached == 0, "its own tokens are no cached prompt"
    assert second.admitted_at == admitted_at, "its time in the queue ended with its first slot"
    if budget:
        assert rig.memory.n_prefilled == n_prefilled + 100, "nothing is computed twice"


def test_clients_take_turns_by_tokens() -> None:
    """One slot: prompts of 600 tokens, of a client with many and of one with two."""
    rig = Rig(1, chunk=600)
    many = [sequence(600, submitted_at=i / 1000, client=FLOOD) for i in range(6)]
    few = [sequence(600, submitted_at=5.0 + i / 1000, client=LONE) for i in range(2)]
    rig.add(*many, *few)
    order = []
    while (work := rig.step()) and len(order) < 8:
        item = work[0].sequence
        order.append(item.client.name)
        rig.scheduler.remove(item)
    assert order[:4] == ["flood", "lone", "flood", "lone"]
    assert order[4:] == ["flood"] * 4


def test_a_higher_priority_goes_first_and_takes_a_slot() -> None:
    rig = Rig(1)
    flood(rig, 3)
    urgent = sequence(20, submitted_at=10.0, client=Client("urgent", priority=1))
    rig.add(urgent)
    rig.step()
    assert rig.scheduler.running == [urgent]


def test_an_idle_client_saves_no_turns() -> None:
    rig = Rig(1, chunk=600)
    earlier = sequence(600, client=FLOOD)
    rig.add(earlier)
    rig.step()
    other = sequence(5, client=LONE, submitted_at=100.0)
    rig.add(other)
    first = sequence(600, client=FLOOD, submitted_at=0.0)
    rig.add(first)
    rig.scheduler.remove(earlier)
    rig.step()
    assert rig.scheduler.running == [first], "the new client begins in the round of the others"
