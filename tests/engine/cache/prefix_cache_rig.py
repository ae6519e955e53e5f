"""A prefix cache over a fake KV memory."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
from numpy.typing import NDArray

from app.engine.cache.kv_state import MemoryKind
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import FakeMemory, sequence

PREFIX = list(range(100))


MB = 1 << 20


class Rig:
    """A prefix cache with its memory."""

    def __init__(
        self, *, budget: int = MB, kind: MemoryKind | None = None, files: Files | None = None
    ) -> None:
        self.memory = FakeMemory(kind or MemoryKind())
        self.cache = PrefixCache(self.memory, self.memory.kind, budget, files)

    def start(self, slot: int, prompt: list[int]) -> Sequence:
        """Start a sequence in a slot and prefill the rest of its prompt."""
        item = sequence(prompt)
        self.cache.occupy(slot, item)
        assert self.memory.slots.get(slot, []) == prompt[: item.n_computed]
        self.memory.slots[slot] = list(prompt)
        item.n_computed = len(prompt)
        return item

    def run(self, slot: int, prompt: list[int]) -> Sequence:
        """Start a sequence and end it."""
        item = self.start(slot, prompt)
        self.cache.leave(item)
        return item


class Files:
    """State files in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, tuple[int, ...]], NDArray[np.uint8]] = {}

    def n_bytes(self, tokens: Tokens[int], adapter: str = "") -> int:
        state = self.kept.get((adapter, tuple(tokens)))
        return 0 if state is None else state.nbytes

    def load(self, tokens: Tokens[int], adapter: str = "") -> NDArray[np.uint8] | None:
        return self.kept.get((adapter, tuple(tokens)))

    def save(self, tokens: Tokens[int], state: NDArray[np.uint8], adapter: str = "") -> None:
        self.kept[adapter, tuple(tokens)] = state.copy()
