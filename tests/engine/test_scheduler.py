"""The scheduler, step by step, without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.sampling import SamplingParams
from app.engine.scheduler import Plan, Scheduler
from app.engine.sequence import Sequence


def sequence(n_prompt: int) -> Sequence:
    nothing = cast(Any, None)
    return Sequence(list(range(n_prompt)), SamplingParams(), nothing, nothing)


def scheduler(n_slots: int = 4, chunk: int = 100, beside_decode: int = 10) -> Scheduler:
    return Scheduler(n_slots, prefill_chunk=chunk, prefill_chunk_beside_decode=beside_decode)


def run(plan: Plan) -> None:
    """Do what the engine does with a plan."""
    for work in plan.work:
        work.sequence.n_computed += work.n_tokens
        if work.samples:
            work.sequence.tokens.append(7)


def shape(plan: Plan) -> list[tuple[int | None, int, bool]]:
    return [(w.sequence.slot, w.n_tokens, w.samples) for w in plan.work]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert scheduler().schedule() == Plan()


def test_a_prompt_is_prefilled_in_chunks_and_sampled_at_its_end() -> None:
    s = scheduler(chunk=100)
    s.add(sequence(250))
    shapes = []
    for _ in range(5):
        plan = s.schedule()
        shapes.append(shape(plan))
        run(plan)
    assert shapes == [[(0, 100, False)], [(0, 100, False)], [(0, 50, True)], [(0, 1, True)], [(0, 1, True)]]


def test_chunks_are_small_beside_a_decoding_sequence() -> None:
    s = scheduler(chunk=100, beside_decode=10)
    s.add(sequence(5))
    run(s.schedule())
    s.add(sequence(25))
    shapes = []
    for _ in range(4):
        plan = s.schedule()
        shapes.append(shape(plan))
        run(plan)
    assert shapes == [
        [(0, 1, True), (1, 10, False)],
        [(0, 1, True), (1, 10, False)],
        [(0, 1, True), (1, 5, True)],
        [(0, 1, True), (1, 1, True)],
    ]


def test_the_budget_goes_to_who_came_first_but_beside_decodes_nobody_leaves_a_gap() -> None:
    s = scheduler(chunk=100, beside_decode=10)
    s.add(sequence(5))
    run(s.schedule())
    s.add(sequence(30))
    s.add(sequence(30))
    assert shape(s.schedule()) == [(0, 1, True), (1, 10, False), (2, 1, False)]


def test_without_decodes_later_prompts_wait_for_the_budget() -> None:
    s = scheduler(chunk=100)
    s.add(sequence(150))
    s.add(sequence(20))
    assert shape(s.schedule()) == [(0, 100, False)]


def test_more_than_fit_wait_in_order() -> None:
    s = scheduler(n_slots=2)
    first, second, third, fourth = (sequence(3) for _ in range(4))
    for one in (first, second, third, fourth):
        s.add(one)
    run(s.schedule())
    assert s.running == [first, second]
    assert s.n_waiting == 2
    assert s.remove(first) == 0
    run(s.schedule())
    assert s.running == [third, second], "who waits fills the gap: nothing has to move"


def test_a_gap_that_nobody_fills_is_closed_by_the_last() -> None:
    s = scheduler()
    all_four = [sequence(3) for _ in range(4)]
    for one in all_four:
        s.add(one)
    run(s.schedule())
    s.remove(all_four[0])
    s.remove(all_four[2])
    plan = s.schedule()
    assert [(m.source, m.target) for m in plan.moves] == [(3, 0)]
    assert s.running == [all_four[3], all_four[1]]
    assert [x.slot for x in s.running] == [0, 1]
    s.remove(all_four[1])
    assert s.schedule().moves == [], "the last one leaves no gap"


def test_a_waiting_request_that_is_cancelled_never_runs() -> None:
    s = scheduler(n_slots=1)
    first, second, third = (sequence(3) for _ in range(3))
    for one in (first, second, third):
        s.add(one)
    run(s.schedule())
    assert s.remove(second) is None
    s.remove(first)
    s.schedule()
    assert s.running == [third]


@dataclass
class Memory:
    """What KV memory would hold: slot → the tokens computed there, by sequence."""

    slots: dict[int, tuple[int, int]] = field(default_factory=dict)

    def apply(self, plan: Plan) -> None:
        for move in plan.moves:
            assert move.target not in self.slots, "a move overwrites a sequence"
            self.slots[move.target] = self.slots.pop(move.source)
        for work in plan.work:
            slot = work.sequence.slot
            assert slot is not None
            owner, computed = self.slots.get(slot, (id(work.sequence), 0))
            assert owner == id(work.sequence), "two sequences in one slot"
            assert computed == work.sequence.n_computed, "a token is computed twice or left out"
            self.slots[slot] = (owner, computed + work.n_tokens)


@settings(max_examples=300)
@given(st.data())
def test_any_course_of_events_keeps_slots_dense_and_computes_each_token_once(data: st.DataObject) -> None:
    n_slots, chunk, beside = 4, 16, 4
    s, memory, alive = scheduler(n_slots, chunk, beside), Memory(), list[Sequence]()
    for _ in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 3))):
            alive.append(sequence(data.draw(st.integers(1, 40))))
            s.add(alive[-1])
        leaving = data.draw(st.lists(st.sampled_from(alive), unique_by=id, max_size=3)) if alive else []
        for one in leaving:
            slot = s.remove(one)
            if slot is not None:
                memory.slots.pop(slot, None)
            alive.remove(one)
        plan = s.schedule()
        memory.apply(plan)
        slots = [x.slot for x in s.running]
        assert slots == list(range(len(slots)))
        assert len(slots) == min(n_slots, len(alive)), "a slot stays empty while somebody waits"
        prefill = sum(w.n_tokens for w in plan.work if not w.sequence.is_decoding)
        assert prefill <= max(chunk, beside + n_slots)
        assert bool(plan.work) == bool(alive), "there is work and nothing is done"
        if any(w.sequence.is_decoding for w in plan.work):
            assert [w.sequence.slot for w in plan.work] == slots, "a gap in the batch"
        run(plan)
