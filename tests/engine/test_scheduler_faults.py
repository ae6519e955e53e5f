"""Faults of single sequences in the scheduler: the faulty one is dropped, and the others are scheduled."""

from __future__ import annotations

import pytest

from app.engine.cache.prefix_cache import PrefixCache
from app.engine.scheduler import SequenceFault
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import sequence
from tests.engine.scheduler_rig import FixedDraft, Rig


class TestFaults:
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

    def test_a_fault_in_occupy_drops_that_sequence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig(n_slots=2)
        first, second, third = (sequence(3, submitted_at=float(t)) for t in range(3))
        rig.add(first, second, third)
        occupy = rig.cache.occupy

        def fail(slot: int, item: Sequence) -> None:
            occupy(slot, item)
            if item is second:
                raise MemoryError("out of memory")

        monkeypatch.setattr(PrefixCache, "occupy", lambda _, *arguments: fail(*arguments))
        assert self.fault(rig) is second
        rig.step()
        assert rig.scheduler.running == [first, third]
        assert second not in rig.scheduler
        rig.run_all()

    @pytest.mark.parametrize("method", ["restore_sequence", "clear_sequence"])
    def test_a_fault_in_a_move_drops_the_moving_sequence(
        self, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        rig = Rig(n_slots=3)
        three = [sequence(3, submitted_at=float(t)) for t in range(3)]
        rig.add(*three)
        rig.step()
        rig.scheduler.remove(three[1])
        rig.cache.drop(1)
        self.fail_once(monkeypatch, rig.memory, method)
        assert self.fault(rig) is three[2]
        rig.step()
        assert rig.scheduler.running == [three[0]]
        rig.run_all()
        assert {slot for slot, held in rig.memory.slots.items() if held} == set(rig.cache._residents)

    def test_a_fault_in_a_lookup_drops_that_sequence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        first, second = sequence(3), sequence(3)
        rig.add(first, second)
        self.fail_once(monkeypatch, PrefixCache, "lookup")
        assert self.fault(rig) is first
        rig.step()
        assert rig.scheduler.running == [second]

    def test_a_fault_in_a_draft_drops_that_sequence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        first, second = sequence(3), sequence(3)
        rig.add(first, second)
        rig.step()
        first.lookup = FixedDraft([1])  # type: ignore[assignment]
        self.fail_once(monkeypatch, FixedDraft, "propose")
        assert self.fault(rig) is first
        rig.step()
        assert rig.scheduler.running == [second]
