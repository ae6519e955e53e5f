"""KV memory without a model: slots of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from app.engine.cache.kv_state import MemoryKind
from app.engine.client import LOCAL, Client
from app.engine.sampling.params import SamplingParams
from app.engine.scheduler import Work
from app.engine.sequence import AnswerSequence, Sequence


def sequence(
    prompt: list[int] | int,
    *,
    max_tokens: int = 8,
    submitted_at: float = 0.0,
    client: Client = LOCAL,
    adapter: str = "",
) -> AnswerSequence:
    """A sequence with a prompt. An integer is the length of a prompt of unique tokens."""
    nothing = cast(Any, None)
    if isinstance(prompt, int):
        prompt = list(range(FakeMemory.unique, FakeMemory.unique + prompt))
        FakeMemory.unique += len(prompt)
    params = SamplingParams(max_tokens=max_tokens)
    return AnswerSequence(
        prompt,
        params,
        cast(Any, NoSampler()),
        nothing,
        submitted_at=submitted_at,
        client=client,
        adapter=adapter,
    )


def values(item: Sequence, n_tokens: int) -> list[int]:
    """KV of the first tokens: they depend on the adapter."""
    return [token + 10**8 * len(item.adapter) for token in item.tokens[:n_tokens]]


class NoSampler:
    """A sampler for tests that do not sample."""

    def forced(self, limit: int) -> list[int]:
        return []


@dataclass
class FakeMemory:
    """The operations of llama.cpp's KV memory on tokens, errors included."""

    unique = 1_000_000

    kind: MemoryKind = field(default_factory=MemoryKind)
    slots: dict[int, list[int]] = field(default_factory=dict)
    n_prefilled: int = 0
    n_saves: int = 0
    n_restores: int = 0

    def clear_sequence(self, sequence: int) -> None:
        self.slots.pop(sequence, None)

    def can_truncate(self, sequence: int, n_tokens: int) -> bool:
        return self.kind.truncatable or n_tokens == len(self.slots[sequence])

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None:
        held = self.slots[sequence]
        assert n_tokens <= len(held)
        if n_tokens < len(held) and not self.kind.truncatable:
            raise ValueError("a recurrent state was truncated")
        self.slots[sequence] = held[:n_tokens]

    def sequence_bytes(self, sequence: int, *, partial: bool = False) -> int:
        return 4 * len(self.slots[sequence])

    def save_sequence(self, sequence: int, *, partial: bool = False) -> NDArray[np.uint8]:
        self.n_saves += 1
        return np.asarray(self.slots[sequence], np.int32).view(np.uint8)

    def restore_sequence(self, sequence: int, state: NDArray[np.uint8], *, partial: bool = False) -> bool:
        self.n_restores += 1
        self.slots[sequence] = state.view(np.int32).tolist()
        return True

    def compute(self, work: list[Work], token: int = 7) -> None:
        """Execute a plan like the engine. Every sequence generates ``token``."""
        for piece in work:
            item = piece.sequence
            assert item.slot is not None
            held = self.slots.setdefault(item.slot, [])
            assert held == values(item, item.n_computed), "KV memory and the sequence differ"
            held += values(item, item.n_computed + piece.n_tokens)[len(held) :]
            if not item.is_decoding:
                self.n_prefilled += piece.n_tokens
            item.n_computed += piece.n_tokens
            if piece.n_outputs:
                item.tokens.append(token)
