"""A scheduler over a fake KV memory."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from app.engine.cache.kv_state import MemoryKind
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.pacing import Pacing
from app.engine.scheduler import Limits, Scheduler, Work
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import FakeMemory

MB = 1 << 20


class FixedPacing(Pacing):
    """Chunks of a fixed size, and 1 ms per token."""

    beside_decode = 10

    def chunk(self, n_decoding: Tokens[int], largest: int, position: int = 0) -> int:
        return self.beside_decode if n_decoding else largest


class Rig:
    """A scheduler with its memory."""

    def __init__(
        self,
        n_slots: int = 4,
        *,
        chunk: int = 100,
        kind: MemoryKind | None = None,
        budget: int = MB,
    ) -> None:
        self.memory = FakeMemory(kind or MemoryKind())
        self.cache = PrefixCache(self.memory, self.memory.kind, budget)
        self.limits = Limits(n_slots=n_slots, prefill_chunk=chunk)
        self.scheduler = Scheduler(self.limits, self.cache, FixedPacing())

    def add(self, *sequences: Sequence) -> None:
        for item in sequences:
            self.scheduler.add(item)

    def step(self) -> list[Work]:
        work = self.scheduler.schedule()
        self.memory.compute(work)
        return work

    def step_shape(self) -> list[tuple[int | None, int, bool]]:
        return [(w.sequence.slot, w.n_tokens, w.n_outputs > 0) for w in self.step()]

    def run_all(self, n_tokens: int = 3) -> None:
        """Run steps until every sequence has generated ``n_tokens``."""
        for _ in range(10_000):
            work = self.step()
            if not work:
                assert self.scheduler.n_waiting == 0
                return
            for item in {w.sequence for w in work}:
                if item.n_generated >= n_tokens:
                    self.scheduler.remove(item)
        raise AssertionError("the sequences do not finish")


class FixedDraft:
    """A lookup that always proposes ``draft``."""

    def __init__(self, draft: list[int]) -> None:
        self.draft = draft

    def propose(self, tokens: list[int], limit: int) -> list[int]:
        return self.draft[:limit]

    def report(self, n_proposed: int, n_accepted: int) -> None:
        pass
