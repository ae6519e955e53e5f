"""Data types of the prefix cache, and the interfaces of KV memory and state storage."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engine.sequence import Sequence, Tier

State = NDArray[np.uint8]


class KVMemory(Protocol):
    """Methods of ``llama.Context`` that the cache uses."""

    def clear_sequence(self, sequence: int) -> None: ...

    def can_truncate(self, sequence: int, n_tokens: int) -> bool: ...

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None: ...

    def sequence_bytes(self, sequence: int, *, partial: bool = False) -> int: ...

    def save_sequence(self, sequence: int, *, partial: bool = False) -> State: ...

    def restore_sequence(self, sequence: int, state: State, *, partial: bool = False) -> bool: ...


class StateStore(Protocol):
    """Persistent states, implemented by ``state_files.StateFiles``."""

    def n_bytes(self, tokens: Tokens[int], adapter: str = "") -> int:
        """Size of the state after exactly these tokens; 0 if there is none."""

    def load(self, tokens: Tokens[int], adapter: str = "") -> State | None:
        """The state after exactly these tokens, or None."""

    def save(self, tokens: Tokens[int], state: State, adapter: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryKind:
    """Abilities of the KV memory of a model.

    Attributes:
        truncatable: Whether a live or saved sequence can be truncated to any length. A recurrent state is
            valid only for its exact tokens. With sliding windows, a saved state holds only the window; for a
            live one see ``can_truncate``.
        divisible: Whether the part that cannot be truncated can be copied without keys and values of full
            attention: a recurrent state of a hybrid model, or sliding windows.
    """

    truncatable: bool = True
    divisible: bool = False


@dataclass(eq=False, slots=True)
class Resident:
    """Contents of a KV slot: a running sequence, or the tokens of a finished one."""

    slot: int
    tokens: list[int]  # of a running sequence: only the prompt
    sequence: Sequence | None
    adapter: str = ""

    @property
    def n_computed(self) -> int:
        """Number of tokens in KV memory."""
        return len(self.tokens) if self.sequence is None else self.sequence.n_computed

    @property
    def n_held(self) -> int:
        """Number of tokens with keys and values of full attention."""
        return self.n_computed

    @property
    def tier(self) -> Tier:
        return "kv"


@dataclass(eq=False, slots=True)
class Saved:
    """A sequence state outside KV memory. If ``state`` is None it is on disk only.

    Attributes:
        is_partial: Without keys and values of full attention. Another item must hold those of its tokens.
        value: Prefilled tokens that it saves, per byte.
        priority: The lowest is evicted first.
    """

    tokens: list[int]
    state: State | None
    is_context: bool = False
    is_partial: bool = False
    value: float = 0.0
    priority: float = 0.0
    adapter: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes in RAM."""
        return 0 if self.state is None else self.state.nbytes

    @property
    def n_held(self) -> int:
        """Number of tokens with keys and values of full attention."""
        return 0 if self.is_partial else len(self.tokens)

    @property
    def tier(self) -> Tier:
        return "disk" if self.state is None else "ram"


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest known prefix of a prompt.

    Attributes:
        n_tokens: Its length.
        source: Where it is.
        holder: If ``source`` is a partial state, the item with the keys and values of its tokens.
        n_expected: Its length once a running sequence has prefilled the shared part.
        expected_from: That sequence.
    """

    n_tokens: int = 0
    source: Resident | Saved | None = None
    holder: Resident | Saved | None = None
    n_expected: int = 0
    expected_from: Sequence | None = None


@dataclass(slots=True)
class CacheFigures:
    """Size of the saved states, and the numbers of evictions and checkpoints since the start."""

    n_bytes: int = 0  # in RAM
    n_disk_bytes: int = 0  # of states that this process has read or written
    n_states: int = 0
    n_evicted: int = 0
    n_checkpoints: int = 0  # states saved at checkpoints since the start
