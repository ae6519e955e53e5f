"""Plans of the scheduler, step by step, over a fake KV memory of tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.kv_state import MemoryKind
from app.engine.client import Client
from app.engine.scoring import Question, ScoringSequence
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import sequence
from tests.engine.scheduler_rig import MB, FixedDraft, FixedPacing, Rig


def test_without_requests_there_is_no_work() -> None:
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


def test_a_short_rest_of_a_prompt_is_in_the_last_chunk() -> None:
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


def test_a_short_rest_beside_a_decoding_sequence_makes_two_equal_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FixedPacing, "beside_decode", 80)
    rig = Rig()
    rig.add(sequence(5))
    rig.step()
    rig.add(sequence(105))
    assert [rig.step_shape() for _ in range(2)] == [
        [(0, 1, True), (1, 53, False)],
        [(0, 1, True), (1, 52, True)],
    ]


def test_questions_have_the_chunks_of_prompts_beside_a_decoding_sequence() -> None:
    rig = Rig(chunk=100)
    rig.add(sequence(5))
    rig.step()
    questions = tuple(Question((*range(n, n + 14),), ((1,), (2, 3, 4))) for n in (50, 70))
    asked = ScoringSequence([*range(25)], questions=questions)
    rig.add(asked)
    sizes = []
    while asked in rig.scheduler:
        decoding, piece = rig.scheduler.schedule()
        assert (decoding.n_tokens, decoding.decodes, piece.decodes) == (1, True, False)
        sizes.append(piece.n_tokens)
        asked.n_computed += piece.n_tokens
        assert asked.slot is not None
        rig.memory.slots[asked.slot] = asked.tokens[: asked.n_computed]
        asked.read(np.zeros((piece.n_outputs, 100), np.float32))
        if asked.n_pending:
            continue
        if (n_shared := asked.advance()) is None:
            rig.scheduler.remove(asked)
        else:
            rig.cache.rewind(asked, n_shared)
    # The prompt with the first question and two tokens of its longer option, then the second question.
    assert sizes == [10, 10, 10, 10, 1, 10, 6]
    assert asked.logprobs == [[pytest.approx(-np.log(100)), pytest.approx(-3 * np.log(100))]] * 2


class TestOrder:
    def test_the_shortest_remaining_prefill_is_first(self) -> None:
        rig = Rig(chunk=100)
        long, short = sequence(300), sequence(20)
        rig.add(long, short)
        assert [w.sequence for w in rig.step()] == [short, long]

    def test_a_short_prompt_overtakes_a_long_one_in_prefill(self) -> None:
        rig = Rig(chunk=100)
        long, short = sequence(400), sequence(20)
        rig.add(long)
        rig.step()
        rig.add(short)
        assert {w.sequence: w.n_tokens for w in rig.step()} == {long: 80, short: 20}

    def test_a_request_that_waited_as_long_as_its_prefill_is_first(self) -> None:
        rig = Rig(n_slots=1, chunk=100)
        running = sequence(5)
        rig.add(running)
        rig.step()
        # 400 tokens take 0.4 s, so a request that is 0.5 s younger does not overtake.
        long, later = sequence(400, submitted_at=1.0), sequence(5, submitted_at=1.5)
        rig.add(later, long)
        rig.scheduler.remove(running)
        assert [w.sequence for w in rig.step()] == [long]

    def test_sequences_beyond_the_slots_wait(self) -> None:
        rig = Rig(n_slots=2)
        first, second, third, fourth = (sequence(3, submitted_at=t) for t in (0.0, 1, 2, 3))
        rig.add(first, second, third, fourth)
        rig.step()
        assert rig.scheduler.running == [first, second]
        assert rig.scheduler.n_waiting == 2
        rig.scheduler.remove(first)
        rig.step()
        assert rig.scheduler.running == [third, second], "the waiting sequence fills the gap, so none moves"

    def test_a_cancelled_waiting_request_does_not_run(self) -> None:
        rig = Rig(n_slots=1)
        first, second, third = (sequence(3, submitted_at=t) for t in (0.0, 1, 2))
        rig.add(first, second, third)
        rig.step()
        rig.scheduler.remove(second)
        rig.scheduler.remove(first)
        rig.step()
        assert rig.scheduler.running == [third]


class TestGaps:
    def test_the_last_sequence_moves_into_a_gap(self) -> None:
        rig = Rig()
        four = [sequence(3, submitted_at=float(t)) for t in range(4)]
        rig.add(*four)
        rig.step()
        rig.scheduler.remove(four[0])
        rig.scheduler.remove(four[2])
        rig.step()
        assert rig.scheduler.running == [four[1], four[3]]
        assert [x.slot for x in rig.scheduler.running] == [1, 2]
        n_copies = rig.memory.n_restores
        rig.scheduler.remove(four[3])
        rig.step()
        assert rig.memory.n_restores == n_copies, "the end of the last sequence leaves no gap"

    def test_a_batch_with_decodes_has_no_gap(self) -> None:
        rig = Rig()
        rig.add(sequence(5))
        rig.step()
        rig.add(sequence(30, submitted_at=0.0), sequence(8, submitted_at=10.0))
        rig.step()
        shape = rig.step_shape()
        assert [slot for slot, _, _ in shape] == list(range(len(shape)))


class TestAdapters:
    def slots(self, rig: Rig) -> dict[str, list[int | None]]:
        found: dict[str, list[int | None]] = {}
        for item in rig.scheduler.running:
            found.setdefault(item.adapter, []).append(item.slot)
        return found

    def test_sequences_of_an_adapter_stay_contiguous(self) -> None:
        rig = Rig(n_slots=6)
        base = [sequence(3) for _ in range(3)]
        rig.add(*base, sequence(3, adapter="a"))
        rig.step()
        assert self.slots(rig) == {"": [0, 1, 2], "a": [5]}, "both have room"
        rig.add(sequence(3, adapter="a"), sequence(3, adapter="bb"))
        rig.step()
        assert self.slots(rig) == {"": [0, 1, 2], "bb": [3], "a": [4, 5]}
        rig.scheduler.remove(base[1])
        rig.add(sequence(3, adapter="a"))
        rig.step()
        assert self.slots(rig) == {"": [0, 1], "bb": [2], "a": [3, 4, 5]}, "one sequence of each other moves"
        assert rig.memory.n_restores == 2

    def test_no_adapter_waits_for_the_prefill_of_another(self) -> None:
        rig = Rig(chunk=100)
        streams = [sequence(3, max_tokens=50, adapter=adapter) for adapter in ("", "a")]
        rig.add(*streams)
        rig.step()
        prompts = [sequence(40, adapter=adapter) for adapter in ("", "bb")]
        rig.add(*prompts)
        shares = []
        while any(not s.is_decoding for s in prompts):
            work = {w.sequence: w.n_tokens for w in rig.step()}
            assert [work[s] for s in streams] == [1, 1]
            shares.append(tuple(work.get(s, 0) for s in prompts))
        assert sum(map(sum, shares)) >= 80
        assert len(shares) <= 10, "each step has a chunk"


class TestDrafts:
    def decoding(self, rig: Rig, *drafts: list[int], max_tokens: int = 50) -> list[Sequence]:
        sequences = [sequence(3, max_tokens=max_tokens) for _ in drafts]
        rig.add(*sequences)
        rig.step()
        for item, draft in zip(sequences, drafts, strict=True):
            item.lookup = FixedDraft(draft)  # type: ignore[assignment]
        return sequences

    def test_a_draft_follows_the_newest_token(self) -> None:
        rig = Rig()
        self.decoding(rig, [1, 2, 3])
        [work] = rig.scheduler.schedule()
        assert (work.n_tokens, work.n_outputs, work.draft) == (1, 4, [1, 2, 3])

    def test_a_draft_ends_before_max_tokens(self) -> None:
        rig = Rig()
        self.decoding(rig, list(range(9)), max_tokens=4)
        [work] = rig.scheduler.schedule()
        assert len(work.draft) == 2, "one token is generated, and one follows without a draft"

    def test_drafts_of_dense_memory_have_equal_lengths(self) -> None:
        rig = Rig()
        self.decoding(rig, [1, 2, 3, 4], [5, 6])
        assert [w.draft for w in rig.scheduler.schedule()] == [[1, 2], [5, 6]]

    def test_a_full_batch_has_no_drafts(self) -> None:
        rig = Rig()
        self.decoding(rig, *([[1, 2]] * (rig.limits.speculate_up_to + 1)))
        assert not any(w.draft for w in rig.scheduler.schedule())


CLIENTS = [Client("a"), Client("b"), Client("c", priority=1), Client("d", max_running=1)]
KINDS = [
    MemoryKind(),
    MemoryKind(truncatable=False),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_random_events_keep_memory_and_sequences_consistent(data: st.DataObject) -> None:
    """FakeMemory compares the tokens of slots and sequences at every step."""
    kind = data.draw(st.sampled_from(KINDS))
    budget = data.draw(st.sampled_from([0, 400, MB]))
    adapters = data.draw(st.sampled_from([[""], ["", "a"], ["", "a", "bb"]]))
    rig = Rig(4, chunk=16, kind=kind, budget=budget)
    unfinished = list[Sequence]()
    # The texts share prefixes of all lengths.
    prompts = st.builds(
        lambda length, part: [*range(length), 100 + part], st.integers(0, 60), st.integers(0, 2)
    )
    for step in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 3))):
            client = data.draw(st.sampled_from(CLIENTS))
            adapter = data.draw(st.sampled_from(adapters))
            prompt = data.draw(prompts)
            unfinished.append(sequence(prompt, submitted_at=step / 100, client=client, adapter=adapter))
            rig.add(unfinished[-1])
        for item in [item for item in unfinished if item.n_generated == item.params.max_tokens]:
            rig.scheduler.remove(item)
            unfinished.remove(item)
        cancelled = (
            data.draw(st.lists(st.sampled_from(unfinished), unique_by=id, max_size=3)) if unfinished else []
        )
        for item in cancelled:
            rig.scheduler.remove(item)
            unfinished.remove(item)
        work = rig.scheduler.schedule()
        slots = [x.slot for x in rig.scheduler.running]
        for adapter in adapters:
            own = [x.slot for x in rig.scheduler.running if x.adapter == adapter]
            assert own == list(range(*((min(own), max(own) + 1) if own else (0,))))
            planned = [w.sequence for w in work if w.sequence.adapter == adapter]
            if any(s.is_decoding for s in planned):
                assert [s.slot for s in planned] == own, "a gap in the batch"
        rig.memory.compute(work)
        assert len(set(slots)) == len(slots) <= 4
        assert bool(work) == bool(unfinished), "no work is scheduled"
        assert all(w.sequence.n_computed >= w.sequence.n_cached or w.sequence.was_suspended for w in work)
        assert rig.cache.figures.n_bytes <= budget
        assert rig.cache.figures.n_bytes == sum(saved.n_bytes for saved in rig.cache._saved)
    for item in unfinished:
        rig.scheduler.remove(item)
    assert rig.scheduler.running == []
    assert {slot: held for slot, held in rig.memory.slots.items() if held} == {
        slot: [token + 10**8 * len(resident.adapter) for token in resident.tokens]
        for slot, resident in rig.cache._residents.items()
    }
