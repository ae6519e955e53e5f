"""The scheduler, step by step, over a memory that only remembers tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.kv_state import MemoryKind
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.pacing import Pacing
from app.engine.scheduler import Limits, Scheduler, SequenceFault, Work
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import FakeMemory, sequence

MB = 1 << 20


class FixedPacing(Pacing):
    """Chunks of a fixed size, and a millisecond a token."""

    beside_decode = 10

    def chunk(self, n_decoding: int, largest: int) -> int:
        return self.beside_decode if n_decoding else largest


class Rig:
    """A scheduler and the memory that its plans work on."""

    def __init__(
        self,
        n_slots: int = 4,
        *,
        chunk: int = 100,
        kind: MemoryKind | None = None,
        budget: int = MB,
        n_cells: int | None = None,
    ) -> None:
        self.memory = FakeMemory(kind or MemoryKind())
        self.cache = PrefixCache(self.memory, self.memory.kind, budget)
        dense = not self.memory.kind.shares_cells
        self.limits = Limits(n_slots=n_slots, n_cells=n_cells, prefill_chunk=chunk, dense=dense)
        self.scheduler = Scheduler(self.limits, self.cache, FixedPacing())

    def add(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.add(one)

    def step(self) -> list[Work]:
        work = self.scheduler.schedule()
        self.memory.compute(work)
        return work

    def step_shape(self) -> list[tuple[int | None, int, bool]]:
        return [(w.sequence.slot, w.n_tokens, w.samples) for w in self.step()]

    def run_to_the_end(self, n_tokens: int = 3) -> None:
        """Until every sequence has generated its tokens."""
        for _ in range(10_000):
            work = self.step()
            if not work:
                assert self.scheduler.n_waiting == 0
                return
            for one in {w.sequence for w in work}:
                if one.n_generated >= n_tokens:
                    self.scheduler.remove(one)
        raise AssertionError("it never ends")


def test_nothing_to_do_is_no_work() -> None:
    assert Rig().step() == []


def test_a_prompt_is_prefilled_in_chunks_and_sampled_at_its_end() -> None:
    rig = Rig(chunk=100)
    rig.add(sequence(270))
    assert [rig.step_shape() for _ in range(5)] == [
        [(0, 100, False)],
        [(0, 100, False)],
        [(0, 70, True)],
        [(0, 1, True)],
        [(0, 1, True)],
    ]


def test_a_short_rest_of_a_prompt_goes_along_with_its_last_chunk() -> None:
    rig = Rig(chunk=100)
    rig.add(sequence(220))
    assert [rig.step_shape() for _ in range(2)] == [[(0, 100, False)], [(0, 120, True)]]


def test_chunks_are_small_beside_a_decoding_sequence() -> None:
    rig = Rig(chunk=100)
    rig.add(sequence(5))
    rig.step()
    rig.add(sequence(25))
    assert [rig.step_shape() for _ in range(4)] == [
        [(0, 1, True), (1, 10, False)],
        [(0, 1, True), (1, 10, False)],
        [(0, 1, True), (1, 5, True)],
        [(0, 1, True), (1, 1, True)],
    ]


class TestOrder:
    def test_least_remaining_prefill_goes_first(self) -> None:
        rig = Rig(chunk=100)
        long, short = sequence(300), sequence(20)
        rig.add(long, short)
        assert [w.sequence for w in rig.step()] == [short, long]

    def test_a_short_one_overtakes_a_long_one_under_way(self) -> None:
        rig = Rig(chunk=100)
        long, short = sequence(400), sequence(20)
        rig.add(long)
        rig.step()
        rig.add(short)
        assert {w.sequence: w.n_tokens for w in rig.step()} == {long: 80, short: 20}

    def test_one_that_has_waited_as_long_as_its_prefill_takes_goes_first(self) -> None:
        rig = Rig(n_slots=1, chunk=100)
        running = sequence(5)
        rig.add(running)
        rig.step()
        # A millisecond a token: 400 tokens are 0.4 s, so who came 0.5 s later stays behind.
        long, later = sequence(400, submitted_at=1.0), sequence(5, submitted_at=1.5)
        rig.add(later, long)
        rig.scheduler.remove(running)
        assert [w.sequence for w in rig.step()] == [long]

    def test_more_than_fit_wait(self) -> None:
        rig = Rig(n_slots=2)
        first, second, third, fourth = (sequence(3, submitted_at=t) for t in (0.0, 1, 2, 3))
        rig.add(first, second, third, fourth)
        rig.step()
        assert rig.scheduler.running == [first, second]
        assert rig.scheduler.n_waiting == 2
        rig.scheduler.remove(first)
        rig.step()
        assert rig.scheduler.running == [third, second], "who waits fills the gap: nothing has to move"

    def test_a_waiting_request_that_is_cancelled_never_runs(self) -> None:
        rig = Rig(n_slots=1)
        first, second, third = (sequence(3, submitted_at=t) for t in (0.0, 1, 2))
        rig.add(first, second, third)
        rig.step()
        rig.scheduler.remove(second)
        rig.scheduler.remove(first)
        rig.step()
        assert rig.scheduler.running == [third]


class TestGaps:
    def test_a_gap_that_nobody_fills_is_closed_by_the_last(self) -> None:
        rig = Rig()
        four = [sequence(3, submitted_at=float(t)) for t in range(4)]
        rig.add(*four)
        rig.step()
        rig.scheduler.remove(four[0])
        rig.scheduler.remove(four[2])
        rig.step()
        assert rig.scheduler.running == [four[3], four[1]]
        assert [x.slot for x in rig.scheduler.running] == [0, 1]
        n_copies = rig.memory.n_restores
        rig.scheduler.remove(four[1])
        rig.step()
        assert rig.memory.n_restores == n_copies, "the last one leaves no gap"

    def test_beside_decodes_nobody_leaves_a_gap(self) -> None:
        rig = Rig()
        rig.add(sequence(5))
        rig.step()
        rig.add(sequence(30, submitted_at=0.0), sequence(8, submitted_at=10.0))
        rig.step()
        shape = rig.step_shape()
        assert [slot for slot, _, _ in shape] == list(range(len(shape)))

    def test_shared_cells_need_no_moves(self) -> None:
        rig = Rig(kind=MemoryKind(shares_cells=True), n_cells=1000)
        four = [sequence(3) for _ in range(4)]
        rig.add(*four)
        rig.step()
        rig.scheduler.remove(four[0])
        rig.step()
        assert [x.slot for x in rig.scheduler.running] == [1, 2, 3]


class TestFaults:
    """An exception of one sequence: it can be dropped, and the others are scheduled."""

    def fault(self, rig: Rig) -> Sequence:
        with pytest.raises(SequenceFault, match="out of memory") as raised:
            rig.scheduler.schedule()
        rig.scheduler.drop(raised.value.sequence)
        return raised.value.sequence

    def fail_once(self, patch: pytest.MonkeyPatch, target: object, name: str) -> None:
        def fail(*_: object) -> None:
            patch.undo()
            raise MemoryError("out of memory")

        patch.setattr(target, name, fail)

    def test_of_occupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig(n_slots=2)
        first, second, third = (sequence(3, submitted_at=float(t)) for t in range(3))
        rig.add(first, second, third)
        occupy = rig.cache.occupy

        def fail(slot: int, one: Sequence) -> None:
            occupy(slot, one)
            if one is second:
                raise MemoryError("out of memory")

        monkeypatch.setattr(PrefixCache, "occupy", lambda _, *arguments: fail(*arguments))
        assert self.fault(rig) is second
        rig.step()
        assert rig.scheduler.running == [first, third]
        assert second not in rig.scheduler
        rig.run_to_the_end()

    @pytest.mark.parametrize("method", ["restore_sequence", "clear_sequence"])
    def test_of_a_move(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        rig = Rig(n_slots=3)
        three = [sequence(3, submitted_at=float(t)) for t in range(3)]
        rig.add(*three)
        rig.step()
        rig.scheduler.remove(three[0])
        rig.cache.drop(0)
        self.fail_once(monkeypatch, rig.memory, method)
        assert self.fault(rig) is three[2]
        rig.step()
        assert rig.scheduler.running == [three[1]]
        rig.run_to_the_end()
        assert {slot for slot, held in rig.memory.slots.items() if held} == set(rig.cache._residents)

    def test_of_a_lookup(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        first, second = sequence(3), sequence(3)
        rig.add(first, second)
        self.fail_once(monkeypatch, PrefixCache, "lookup")
        assert self.fault(rig) is first
        rig.step()
        assert rig.scheduler.running == [second]

    def test_of_a_draft(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        first, second = sequence(3), sequence(3)
        rig.add(first, second)
        rig.step()
        first.lookup = Guess([1])  # type: ignore[assignment]
        self.fail_once(monkeypatch, Guess, "propose")
        assert self.fault(rig) is first
        rig.step()
        assert rig.scheduler.running == [second]


class TestSharedPrefixes:
    def questions(self, n: int, length: int = 10) -> list[Sequence]:
        return [
            sequence([*range(700), *range(10_000 + i * length, 10_000 + (i + 1) * length)]) for i in range(n)
        ]

    @pytest.mark.parametrize(
        "kind", [MemoryKind(), MemoryKind(shares_cells=True), MemoryKind(truncatable=False)]
    )
    def test_those_who_come_together_compute_it_once(self, kind: MemoryKind) -> None:
        rig = Rig(n_slots=8, kind=kind, n_cells=16_000 if kind.shares_cells else None)
        rig.add(*self.questions(16))
        rig.run_to_the_end()
        assert rig.memory.n_prefilled == 700 + 16 * 10

    def test_one_without_the_prefix_does_not_wait_for_it(self) -> None:
        rig = Rig(chunk=100)
        with_prefix = self.questions(2)
        other = sequence(1200, submitted_at=0.0)
        rig.add(*with_prefix, other)
        rig.step()
        assert rig.scheduler.n_waiting == 2
        for _ in range(6):
            rig.step()
        assert with_prefix[1].n_cached == 0
        rig.step()
        assert with_prefix[1].n_cached == 700

    def test_a_provider_that_is_cancelled_leaves_what_it_has(self) -> None:
        rig = Rig(chunk=100)
        first, second = self.questions(2)
        rig.add(first, second)
        for _ in range(3):
            rig.step()
        rig.scheduler.remove(first)
        rig.step()
        assert second.n_cached == 300
        rig.run_to_the_end()
        assert rig.memory.n_prefilled == 710

    def test_who_finds_no_slot_finds_a_copy_of_what_cannot_be_cut(self) -> None:
        rig = Rig(n_slots=1, chunk=100, kind=MemoryKind(truncatable=False))
        rig.add(*self.questions(3))
        rig.run_to_the_end()
        assert rig.memory.n_prefilled == 700 + 30

    def test_short_prefixes_are_not_waited_for(self) -> None:
        rig = Rig(n_slots=2)
        rig.add(sequence([1, 2, 3, 4]), sequence([1, 2, 3, 5]))
        assert len(rig.step()) == 2


class TestSharedCells:
    def rig(self, n_cells: int) -> Rig:
        return Rig(n_slots=4, kind=MemoryKind(shares_cells=True), n_cells=n_cells)

    def test_a_request_waits_until_what_it_may_need_is_free(self) -> None:
        rig = self.rig(100)
        first, second = sequence(50, max_tokens=10), sequence(50, max_tokens=10)
        rig.add(first, second)
        rig.step()
        assert rig.scheduler.running == [first]
        rig.scheduler.remove(first)
        rig.step()
        assert rig.scheduler.running == [second]

    def test_what_finished_ones_left_makes_room_and_is_saved(self) -> None:
        rig = self.rig(100)
        first = sequence(50, max_tokens=10)
        rig.add(first)
        rig.step()
        rig.scheduler.remove(first)
        rig.add(sequence(60, max_tokens=30))
        rig.step()
        assert sum(map(len, rig.memory.slots.values())) == 60
        assert rig.cache.lookup([*first.prompt, 1]).n_tokens == 50


class Guess:
    """Proposes the same every time."""

    def __init__(self, draft: list[int]) -> None:
        self.draft = draft

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        return self.draft[:limit]

    def report(self, n_proposed: int, n_accepted: int) -> None:
        pass


class TestDrafts:
    def decoding(self, rig: Rig, *drafts: list[int], max_tokens: int = 50) -> list[Sequence]:
        sequences = [sequence(3, max_tokens=max_tokens) for _ in drafts]
        rig.add(*sequences)
        rig.step()
        for one, draft in zip(sequences, drafts, strict=True):
            one.lookup = Guess(draft)  # type: ignore[assignment]
        return sequences

    def test_a_draft_goes_behind_the_newest_token(self) -> None:
        rig = Rig()
        self.decoding(rig, [1, 2, 3])
        [work] = rig.scheduler.schedule()
        assert (work.n_tokens, work.samples, work.draft) == (1, True, [1, 2, 3])

    def test_it_never_goes_beyond_max_tokens(self) -> None:
        rig = Rig()
        self.decoding(rig, list(range(9)), max_tokens=4)
        [work] = rig.scheduler.schedule()
        assert len(work.draft) == 2, "one is there, one comes anyway"

    def test_sequences_have_equally_long_ones_where_others_cost_a_pass(self) -> None:
        rig = Rig()
        self.decoding(rig, [1, 2, 3, 4], [5, 6])
        assert [w.draft for w in rig.scheduler.schedule()] == [[1, 2], [5, 6]]

    def test_a_full_batch_has_none(self) -> None:
        rig = Rig()
        self.decoding(rig, *([[1, 2]] * (rig.limits.speculate_up_to + 1)))
        assert not any(w.draft for w in rig.scheduler.schedule())


KINDS = [
    MemoryKind(),
    MemoryKind(shares_cells=True),
    MemoryKind(truncatable=False),
    MemoryKind(truncatable=False, shares_cells=True),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_course_of_events_keeps_memory_and_books_in_step(data: st.DataObject) -> None:
    """FakeMemory checks at every step that a slot holds just the tokens that the sequence says."""
    kind = data.draw(st.sampled_from(KINDS))
    budget = data.draw(st.sampled_from([0, 400, MB]))
    n_cells = 200 if kind.shares_cells else None
    rig = Rig(4, chunk=16, kind=kind, budget=budget, n_cells=n_cells)
    alive = list[Sequence]()
    # Texts of few beginnings, so that they share prefixes of all lengths.
    prompts = st.builds(
        lambda length, part: [*range(length), 100 + part], st.integers(0, 60), st.integers(0, 2)
    )
    for step in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 3))):
            alive.append(sequence(data.draw(prompts), submitted_at=step / 100))
            rig.add(alive[-1])
        for one in [one for one in alive if one.n_generated == one.params.max_tokens]:
            rig.scheduler.remove(one)
            alive.remove(one)
        leaving = data.draw(st.lists(st.sampled_from(alive), unique_by=id, max_size=3)) if alive else []
        for one in leaving:
            rig.scheduler.remove(one)
            alive.remove(one)
        work = rig.scheduler.schedule()
        slots = [x.slot for x in rig.scheduler.running]
        if not kind.shares_cells:
            assert slots == list(range(len(slots)))
            if any(w.sequence.is_decoding for w in work):
                assert [w.sequence.slot for w in work] == slots, "a gap in the batch"
        rig.memory.compute(work)
        assert len(set(slots)) == len(slots) <= 4
        assert bool(work) == bool(alive), "there is work and nothing is done"
        assert all(w.sequence.n_computed >= w.sequence.n_cached for w in work)
        if n_cells is not None:
            assert sum(x.max_length for x in rig.scheduler.running) + rig.cache.n_idle <= n_cells
        assert rig.cache.figures.n_bytes <= budget
        assert rig.cache.figures.n_bytes == sum(saved.n_bytes for saved in rig.cache._saved)
    for one in alive:
        rig.scheduler.remove(one)
    assert rig.scheduler.running == []
    assert {slot: held for slot, held in rig.memory.slots.items() if held} == {
        slot: resident.tokens for slot, resident in rig.cache._residents.items()
    }
