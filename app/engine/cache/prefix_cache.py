"""Token prefixes and where their KV is: in a live sequence, in RAM, or on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engine.cache.prefix_tree import PrefixTree
from app.engine.sequence import Sequence

logger = logging.getLogger("tokenstream.cache")

State = NDArray[np.uint8]

# What it costs to bring a prefix into a slot, in tokens that could be prefilled meanwhile. Copies of a
# state take some 5 µs a token each way, prefilling 500 to 10,000 (see docs/engine.md): small numbers,
# which only decide between sources of nearly the same length.
_COST_OF_RESTORING = 4
_COST_OF_COPYING = 8
_COST_OF_READING = 24
# A text that goes beyond all others by fewer tokens is not worth a copy of the whole.
_LEAST_TO_SAVE = 16
_ELSEWHERE = -1  # no slot: what would have to be copied out of the one where it lies


class KVMemory(Protocol):
    """The part of ``llama.Context`` that the cache works on."""

    def clear_sequence(self, sequence: int) -> None:
        """Free a sequence."""

    def can_truncate(self, sequence: int, n_tokens: int) -> bool:
        """Whether its first tokens can be kept alone."""

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None:
        """Keep its first tokens."""

    def share_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Let an empty sequence have the first tokens of another, in the same cells."""

    def save_sequence(self, sequence: int) -> State:
        """Copy it out."""

    def restore_sequence(self, sequence: int, state: State) -> bool:
        """Copy it in."""


class StateStore(Protocol):
    """States that outlive the process: ``state_files.StateFiles``."""

    def load(self, tokens: Tokens[int]) -> State | None:
        """The state after exactly these tokens, if it is there."""

    def save(self, tokens: Tokens[int], state: State) -> None:
        """Keep it."""


@dataclass(frozen=True, slots=True)
class MemoryKind:
    """What the KV memory of this model and layout can do.

    Attributes:
        can_be_cut: Whether a sequence can go back to any earlier token, saved or not. A recurrent state
            cannot: it is right for exactly the tokens that made it. With sliding windows a saved state
            cannot, of which only the window is there, and one in KV memory can as ``can_truncate`` says.
        shares_cells: Whether a prefix can belong to several sequences at once without a copy.
    """

    can_be_cut: bool = True
    shares_cells: bool = False


@dataclass(eq=False, slots=True)
class Resident:
    """What a slot of KV memory holds: a running sequence, or what a finished one left there."""

    slot: int
    tokens: list[int]  # of a running sequence its prompt: what can be known of it before it ends
    sequence: Sequence | None

    @property
    def n_computed(self) -> int:
        """How many of its tokens are in KV memory."""
        return len(self.tokens) if self.sequence is None else self.sequence.n_computed


@dataclass(eq=False, slots=True)
class Saved:
    """A sequence state outside KV memory; without ``state`` it lies on disk alone."""

    tokens: list[int]
    state: State | None
    is_context: bool = False

    @property
    def n_bytes(self) -> int:
        """What it takes of the budget."""
        return 0 if self.state is None else self.state.nbytes


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest prefix of a prompt that is known.

    Attributes:
        n_tokens: How long it is.
        source: Who has it.
        n_expected: How long it will be as soon as a running sequence has prefilled what it shares.
        expected_from: That sequence.
    """

    n_tokens: int = 0
    source: Resident | Saved | None = None
    n_expected: int = 0
    expected_from: Sequence | None = None


@dataclass(slots=True)
class CacheFigures:
    """What the cache holds and has done."""

    n_bytes: int = 0
    n_states: int = 0
    n_evicted: int = 0


@dataclass(slots=True)
class PrefixCache:
    """Brings the longest known prefix of a prompt into a slot, and keeps what slots would lose.

    A state is saved when its slot is needed for something else, not before: a conversation's next turn
    often comes first, and then costs nothing. Saved states stay under ``budget`` bytes; the least recently
    used goes first, contexts last.
    """

    memory: KVMemory
    kind: MemoryKind
    budget: int
    files: StateStore | None = None
    figures: CacheFigures = field(default_factory=CacheFigures)
    version: int = 0  # changes whenever a lookup may have another result
    _tree: PrefixTree[Resident | Saved] = field(default_factory=PrefixTree)
    _residents: dict[int, Resident] = field(default_factory=dict)
    _saved: dict[Saved, None] = field(default_factory=dict)  # least recently used first

    # --- looking

    def lookup(self, tokens: Tokens[int], slot: int | None = None) -> Prefix:
        """Find the longest known prefix of a prompt, its last token aside: that one gives the logits.

        Args:
            tokens: The prompt.
            slot: Where it is to go; what this slot holds is there already. None: any slot.
        """
        best, best_score = Prefix(), 0
        n_expected, expected_from = 0, None
        for depth, item in self._tree.matches(tokens):
            n_shared = min(depth, len(tokens) - 1)
            if n_shared <= best_score:
                break  # all that follow share as little or less
            n_usable = self._usable(item, n_shared, slot)
            score = n_usable - self._cost(item, slot)
            if score > best_score:
                best, best_score = Prefix(n_usable, item), score
            if isinstance(item, Resident) and item.sequence and item.n_computed < n_shared > n_expected:
                n_expected, expected_from = n_shared, item.sequence
        return Prefix(best.n_tokens, best.source, n_expected, expected_from)

    def slot_with(self, tokens: Tokens[int], free: Iterable[int]) -> int | None:
        """The free slot, if any, that holds the longest known prefix of the prompt."""
        source = self.lookup(tokens).source
        if isinstance(source, Resident) and source.sequence is None and source.slot in free:
            return source.slot
        return None

    def n_idle_tokens(self, slot: int) -> int:
        """How many tokens a finished sequence has left in a slot."""
        resident = self._residents.get(slot)
        return len(resident.tokens) if resident and resident.sequence is None else 0

    def _usable(self, item: Resident | Saved, n_shared: int, slot: int | None) -> int:
        n_tokens = item.n_computed if isinstance(item, Resident) else len(item.tokens)
        if self.kind.can_be_cut:
            return min(n_tokens, n_shared)
        if n_tokens <= n_shared:
            return n_tokens
        if isinstance(item, Resident) and item.sequence is None and slot in (None, item.slot):
            return n_shared if self.memory.can_truncate(item.slot, n_shared) else 0
        return 0

    def _cost(self, item: Resident | Saved, slot: int | None) -> int:
        if isinstance(item, Saved):
            return _COST_OF_RESTORING if item.state is not None else _COST_OF_READING
        if item.sequence is None and slot in (None, item.slot):
            return 0
        return 0 if self.kind.shares_cells else _COST_OF_COPYING

    # --- what happens to slots

    def occupy(self, slot: int, sequence: Sequence) -> None:
        """Give a free slot to a sequence and bring the longest known prefix of its prompt there."""
        prefix = Prefix() if sequence.wants_all_logits else self.lookup(sequence.tokens, slot)
        source, n_tokens = prefix.source, prefix.n_tokens
        here = self._residents.get(slot)
        if source is not None and source is here:
            self._save_before_loss(here, n_tokens)
            self._forget(here)
            if n_tokens < here.n_computed:
                self.memory.truncate_sequence(slot, n_tokens)
        else:
            # The state is in hand before anything makes room for it.
            state = self._state_of(source)
            if here is not None:
                self._save_before_loss(here, 0)
                self._forget(here)
                self.memory.clear_sequence(slot)
            n_tokens = self._bring(slot, source, state, n_tokens)
        sequence.slot, sequence.n_computed, sequence.n_cached = slot, n_tokens, n_tokens
        self._settle(Resident(slot, sequence.prompt, sequence))

    def leave(self, sequence: Sequence) -> None:
        """The sequence ends; what it computed stays in its slot until that is needed."""
        assert sequence.slot is not None
        resident = self._residents[sequence.slot]
        self._forget(resident)
        sequence.slot = None
        if sequence.n_computed:
            self._settle(Resident(resident.slot, sequence.tokens[: sequence.n_computed], None))

    def move(self, sequence: Sequence, target: int) -> None:
        """Give a running sequence another slot, and save what that held."""
        assert sequence.slot is not None
        source = self._residents[sequence.slot]
        if here := self._residents.get(target):
            self._save_before_loss(here, 0)
            self._forget(here)
            self.memory.clear_sequence(target)
        if sequence.n_computed:
            if self.kind.shares_cells:
                self.memory.share_prefix(source.slot, target, -1)
            elif not self.memory.restore_sequence(target, self.memory.save_sequence(source.slot)):
                raise RuntimeError(f"sequence {source.slot} cannot be moved to {target}")
            self.memory.clear_sequence(source.slot)
        self._forget(source)
        sequence.slot = target
        self._settle(Resident(target, sequence.prompt, sequence))

    def drop(self, slot: int) -> None:
        """Forget what a slot holds and free it, saving nothing."""
        if resident := self._residents.get(slot):
            self._forget(resident)
            if resident.sequence is not None:
                resident.sequence.slot = None
        self.memory.clear_sequence(slot)

    def evict_idle(self) -> bool:
        """Free the slot that has been idle longest, saving what it holds; False if there is none."""
        for resident in self._residents.values():
            if resident.sequence is None:
                self._save_before_loss(resident, 0)
                self._forget(resident)
                self.memory.clear_sequence(resident.slot)
                return True
        return False

    @property
    def n_idle(self) -> int:
        """Tokens that finished sequences have left in KV memory."""
        return sum(len(r.tokens) for r in self._residents.values() if r.sequence is None)

    def _settle(self, resident: Resident) -> None:
        self._residents[resident.slot] = resident
        self._tree.insert(resident.tokens, resident)
        self.version += 1

    def _forget(self, resident: Resident) -> None:
        del self._residents[resident.slot]
        self._tree.discard(resident)
        self.version += 1

    # --- copies

    def _state_of(self, source: Resident | Saved | None) -> State | None:
        if isinstance(source, Saved):
            return self._touch(source)
        if source is None or self.kind.shares_cells:
            return None
        # The next one who wants it need not copy it out again.
        return self._save(source)

    def _bring(self, slot: int, source: Resident | Saved | None, state: State | None, n_tokens: int) -> int:
        """Fill an empty slot; returns how many tokens it then holds."""
        if state is not None:
            if not self.memory.restore_sequence(slot, state):
                logger.warning("a saved prefix of %d tokens does not fit into KV memory", n_tokens)
                self.memory.clear_sequence(slot)
                return 0
            if self.kind.can_be_cut:
                self.memory.truncate_sequence(slot, n_tokens)
            return n_tokens
        if isinstance(source, Resident):
            self.memory.share_prefix(source.slot, slot, n_tokens)
            return n_tokens
        return 0

    def _touch(self, saved: Saved) -> State | None:
        if saved.state is None and self.files is not None:
            saved.state = self.files.load(saved.tokens)
            if saved.state is None:
                self._discard(saved)
                return None
            self.figures.n_bytes += saved.n_bytes
            self._make_room(saved)
        self._saved.pop(saved, None)
        self._saved[saved] = None
        return saved.state

    def _save_before_loss(self, resident: Resident, n_kept: int) -> None:
        """Save what a slot holds beyond ``n_kept`` tokens, unless it is known elsewhere or short."""
        n_known = n_kept if self.kind.can_be_cut else 0
        for depth, item in self._tree.matches(resident.tokens):
            if item is not resident:
                n_known = max(n_known, self._usable(item, depth, _ELSEWHERE))
                if n_known >= depth:
                    break
        if resident.n_computed - n_known >= _LEAST_TO_SAVE and self.budget:
            self._save(resident)

    def _save(self, resident: Resident, *, is_context: bool = False) -> State:
        tokens = resident.tokens
        if resident.sequence is not None:
            tokens = resident.sequence.tokens[: resident.n_computed]
        state = self.memory.save_sequence(resident.slot)
        self._keep(Saved(list(tokens), state, is_context))
        return state

    def _keep(self, saved: Saved) -> None:
        if saved.n_bytes > self.budget:
            return
        for depth, item in list(self._tree.matches(saved.tokens)):
            # Exactly the same text, or one that this one can be cut back to, is of no more use.
            covered = self.kind.can_be_cut or depth == len(saved.tokens)
            if isinstance(item, Saved) and depth == len(item.tokens) and covered and not item.is_context:
                self._discard(item)
        self._tree.insert(saved.tokens, saved)
        self._saved[saved] = None
        self.figures.n_bytes += saved.n_bytes
        self.figures.n_states = len(self._saved)
        self.version += 1
        self._make_room(saved)

    def _make_room(self, newest: Saved) -> None:
        while self.figures.n_bytes > self.budget:
            oldest = next((s for s in self._saved if not s.is_context and s is not newest), None)
            self._evict(oldest or next(s for s in self._saved if s.state is not None and s is not newest))

    def _evict(self, saved: Saved) -> None:
        self.figures.n_evicted += 1
        if saved.is_context and self.files is not None:
            self.figures.n_bytes -= saved.n_bytes
            saved.state = None  # the file stays, and is read again when it is wanted
        else:
            self._discard(saved)

    def _discard(self, saved: Saved) -> None:
        self.figures.n_bytes -= saved.n_bytes
        self._saved.pop(saved, None)
        self._tree.discard(saved)
        self.figures.n_states = len(self._saved)
        self.version += 1

    def save_prefix(self, sequence: Sequence) -> None:
        """Save what a running sequence has computed, for those who cannot take it over now."""
        assert sequence.slot is not None
        if self.budget:
            self._save(self._residents[sequence.slot])

    # --- contexts

    def load_context(self, tokens: Tokens[int]) -> bool:
        """Take a context's state from disk; False if it has to be computed."""
        state = self.files.load(tokens) if self.files is not None else None
        if state is not None:
            self._keep(Saved(list(tokens), state, is_context=True))
        return state is not None

    def save_context(self, sequence: Sequence) -> None:
        """Keep a context, whose tokens are all computed, in RAM and on disk."""
        assert sequence.slot is not None
        state = self._save(self._residents[sequence.slot], is_context=True)
        if self.files is not None:
            self.files.save(sequence.tokens, state)
