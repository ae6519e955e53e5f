"""Scheduling of requests with shared prefixes, and of requests that share cells."""

from __future__ import annotations

import pytest

from app.engine.cache.kv_state import MemoryKind
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import sequence
from tests.engine.scheduler_rig import Rig


class TestSharedPrefixes:
    def questions(self, n: int, length: int = 10) -> list[Sequence]:
        return [
            sequence([*range(700), *range(10_000 + i * length, 10_000 + (i + 1) * length)]) for i in range(n)
        ]

    @pytest.mark.parametrize("kind", [MemoryKind(), MemoryKind(truncatable=False)])
    def test_concurrent_requests_prefill_a_shared_prefix_once(self, kind: MemoryKind) -> None:
        rig = Rig(n_slots=8, kind=kind)
        rig.add(*self.questions(16))
        rig.run_all()
        assert rig.memory.n_prefilled == 700 + 16 * 10

    def test_a_request_without_the_prefix_does_not_wait_for_it(self) -> None:
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

    def test_the_prefilled_part_of_a_cancelled_request_is_used(self) -> None:
        rig = Rig(chunk=100)
        first, second = self.questions(2)
        rig.add(first, second)
        for _ in range(3):
            rig.step()
        rig.scheduler.remove(first)
        rig.step()
        assert second.n_cached == 300
        rig.run_all()
        assert rig.memory.n_prefilled == 710

    def test_requests_without_a_slot_copy_a_state_that_cannot_be_truncated(self) -> None:
        rig = Rig(n_slots=1, chunk=100, kind=MemoryKind(truncatable=False))
        rig.add(*self.questions(3))
        rig.run_all()
        assert rig.memory.n_prefilled == 700 + 30

    def test_short_prefixes_are_not_waited_for(self) -> None:
        rig = Rig(n_slots=2)
        rig.add(sequence([1, 2, 3, 4]), sequence([1, 2, 3, 5]))
        assert len(rig.step()) == 2
