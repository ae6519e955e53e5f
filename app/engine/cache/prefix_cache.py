"""Prefix cache: finds the longest known prefix of a prompt and brings it into a slot of KV memory.

A prefix is held by a live sequence, in RAM or on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from app.engine.cache.kv_state import (
    CacheFigures,
    KVMemory,
    MemoryKind,
    Prefix,
    Resident,
    Saved,
    State,
    StateStore,
)
from app.engine.cache.prefix_tree import PrefixTree
from app.engine.sequence import Sequence

logger = logging.getLogger("tokenstream.cache")

# Cost of bringing a prefix into a slot, in units of prefilled tokens. A copy takes about 5 µs per token each
# way, prefill 500 to 10,000 µs (docs/engine.md). So costs only decide between similar prefixes.
_COST_OF_RESTORING = 4
_COST_OF_COPYING = 8
_COST_OF_READING = 24
# Minimum number of new tokens that justifies a copy.
_MIN_TO_SAVE = 16
_ELSEWHERE = -1  # no slot: every source needs a copy
# Bytes of a saved state besides keys and values: a record per cell (position, sequence ids) and a header.
_CELL_RECORD = 16
_HEADER = 1 << 16  # more than needed: llama.cpp reports the size of KV memory rounded


def transient_bytes(kv_bytes: int, n_ctx: int, n_sequences: int) -> int:
    """Maximum bytes of copies that a cache holds beyond its budget. Part of the memory plan.

    ``move`` and ``occupy`` copy one running sequence at a time. All other copies are within the budget.

    Args:
        kv_bytes: Size of KV memory.
        n_ctx: Cells of KV memory, for all sequences.
        n_sequences: Number of slots.
    """
    if n_sequences == 1:
        return 0
    return (kv_bytes + n_ctx * _CELL_RECORD) // n_sequences + _HEADER


@dataclass(slots=True)
class PrefixCache:
    """Brings the longest known prefix of a prompt into a slot, and saves slots before they are overwritten.

    A slot is saved only when it is needed for another prompt. The next turn of a conversation often arrives
    before that and needs no copy. Saved states stay within ``budget`` bytes. The least recently used state is
    evicted first, contexts last.

    If a method raises, the contents of its slots may be unknown. ``drop`` frees them. The tree gets an item
    last and loses it first: a lookup never finds an item that the cache has given up.
    """

    memory: KVMemory
    kind: MemoryKind
    budget: int
    files: StateStore | None = None
    figures: CacheFigures = field(default_factory=CacheFigures)
    version: int = 0  # changes whenever a lookup may have another result
    _tree: PrefixTree[Resident | Saved] = field(default_factory=PrefixTree)
    _residents: dict[int, Resident] = field(default_factory=dict)  # in the order of assignment
    _saved: dict[Saved, None] = field(default_factory=dict)  # least recently used first

    # --- lookup

    def lookup(self, tokens: Tokens[int], slot: int | None = None) -> Prefix:
        """Find the longest known prefix of a prompt. The last token is excluded: its logits are needed.

        Args:
            tokens: The prompt.
            slot: The target slot; its contents need no copy. None: any slot.
        """
        best, best_score = Prefix(), 0
        n_expected, expected_from = 0, None
        for depth, item in self._tree.matches(tokens):
            n_shared = min(depth, len(tokens) - 1)
            if n_shared <= best_score:
                break  # matches come in descending order
            n_usable = self._usable(item, n_shared, slot)
            score = n_usable - self._cost(item, slot)
            if score > best_score:
                best, best_score = Prefix(n_usable, item), score
            if isinstance(item, Resident) and item.sequence and item.n_computed < n_shared > n_expected:
                n_expected, expected_from = n_shared, item.sequence
        return Prefix(best.n_tokens, best.source, n_expected, expected_from)

    def slot_with(self, tokens: Tokens[int], free: Iterable[int]) -> int | None:
        """The free slot with the longest known prefix of the prompt, if any."""
        source = self.lookup(tokens).source
        if isinstance(source, Resident) and source.sequence is None and source.slot in free:
            return source.slot
        return None

    @property
    def n_idle(self) -> int:
        """Number of tokens of finished sequences in KV memory."""
        return sum(len(r.tokens) for r in self._residents.values() if r.sequence is None)

    def n_idle_tokens(self, slot: int) -> int:
        """Number of tokens of a finished sequence in a slot."""
        resident = self._residents.get(slot)
        return len(resident.tokens) if resident and resident.sequence is None else 0

    def _usable(self, item: Resident | Saved, n_shared: int, slot: int | None) -> int:
        n_tokens = item.n_computed if isinstance(item, Resident) else len(item.tokens)
        if self.kind.truncatable:
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
        return _COST_OF_COPYING

    # --- slots

    def occupy(self, slot: int, sequence: Sequence) -> None:
        """Assign a free slot to a sequence and bring the longest known prefix of its prompt there.

        If this raises, the sequence has no slot.
        """
        prefix = Prefix() if sequence.needs_all_logits else self.lookup(sequence.tokens, slot)
        source, n_tokens = prefix.source, prefix.n_tokens
        tier = source.tier if source else None  # before the state is read from disk
        here = self._residents.get(slot)
        if source is not None and source is here:
            self._save_before_loss(here, n_tokens)
            self._remove(here)
            if n_tokens < here.n_computed:
                self.memory.truncate_sequence(slot, n_tokens)
        else:
            state = self._state_of(source)  # before _empty(), which may evict the source
            self._empty(slot, state)
            n_tokens = self._bring(slot, state, n_tokens)
        sequence.slot, sequence.n_computed = slot, n_tokens
        if not sequence.was_suspended:
            sequence.n_cached, sequence.cache_tier = n_tokens, tier if n_tokens else None
        self._add(Resident(slot, sequence.prompt, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Release the slot of a finished sequence. Its KV stays until the slot is reused."""
        assert sequence.slot is not None
        resident = self._residents[sequence.slot]
        self._remove(resident)
        sequence.slot = None
        if sequence.n_computed:
            self._add(Resident(resident.slot, sequence.tokens[: sequence.n_computed], None))

    def move(self, sequence: Sequence, target: int) -> None:
        """Move a running sequence to another slot, and save the old contents of that slot.

        If this raises, the sequence keeps its old slot.
        """
        assert sequence.slot is not None
        source = self._residents[sequence.slot]
        self._empty(target)
        if sequence.n_computed:
            if not self.memory.restore_sequence(target, self.memory.save_sequence(source.slot)):
                raise RuntimeError(f"KV memory has no room to move sequence {source.slot} to {target}")
            self.memory.clear_sequence(source.slot)
        self._remove(source)
        sequence.slot = target
        self._add(Resident(target, sequence.prompt, sequence))

    def drop(self, slot: int) -> None:
        """Free a slot without saving its contents."""
        if resident := self._residents.get(slot):
            self._remove(resident)
            if resident.sequence is not None:
                resident.sequence.slot = None
        self.memory.clear_sequence(slot)

    def _add(self, resident: Resident) -> None:
        self._residents[resident.slot] = resident
        self._tree.insert(resident.tokens, resident)
        self.version += 1

    def _remove(self, resident: Resident) -> None:
        self._tree.discard(resident)
        del self._residents[resident.slot]
        self.version += 1

    def _empty(self, slot: int, pinned: State | None = None) -> None:
        """Save and clear a slot. Without a resident it is cleared too: a fault may have left KV there."""
        if resident := self._residents.get(slot):
            self._save_before_loss(resident, 0, pinned)
            self._remove(resident)
        self.memory.clear_sequence(slot)

    # --- copies

    def _state_of(self, source: Resident | Saved | None) -> State | None:
        if isinstance(source, Saved):
            return self._touch(source)
        if source is None:
            return None
        # If the budget allows, the copy is cached for the next prompt with this prefix.
        saved = self._save(source)
        return self._copy(source) if saved is None else saved.state

    def _bring(self, slot: int, state: State | None, n_tokens: int) -> int:
        """Fill an empty slot. Returns the number of tokens in it."""
        if state is None:
            return 0
        if not self.memory.restore_sequence(slot, state):
            logger.warning("a saved prefix of %d tokens does not fit into KV memory", n_tokens)
            self.memory.clear_sequence(slot)
            return 0
        if self.kind.truncatable:
            self.memory.truncate_sequence(slot, n_tokens)
        return n_tokens

    def _touch(self, saved: Saved) -> State | None:
        """Return the state of a saved prefix, from disk if necessary. Marks it as most recently used."""
        if saved.state is None:
            saved.state = self._load(saved.tokens)
            if saved.state is None:
                self._discard(saved)
                return None
            self.figures.n_bytes += saved.n_bytes
        self._saved.pop(saved, None)
        self._saved[saved] = None
        return saved.state

    def _load(self, tokens: Tokens[int]) -> State | None:
        if self.files is None:
            return None
        n_bytes = self.files.n_bytes(tokens)
        return self.files.load(tokens) if n_bytes and self._make_room(tokens, n_bytes) else None

    def _save_before_loss(self, resident: Resident, n_kept: int, pinned: State | None = None) -> None:
        """Save a slot unless its tokens beyond ``n_kept`` are few or cached elsewhere."""
        n_known = n_kept if self.kind.truncatable else 0
        for depth, item in self._tree.matches(resident.tokens):
            if item is not resident:
                n_known = max(n_known, self._usable(item, depth, _ELSEWHERE))
                if n_known >= depth:
                    break
        if resident.n_computed - n_known >= _MIN_TO_SAVE:
            self._save(resident, pinned=pinned)

    def _save(
        self, resident: Resident, *, is_context: bool = False, pinned: State | None = None
    ) -> Saved | None:
        """Save a copy of a slot. None, without a copy, if it exceeds the budget."""
        tokens = resident.tokens
        if resident.sequence is not None:
            tokens = resident.sequence.tokens[: resident.n_computed]
        if not self._make_room(tokens, self.memory.sequence_bytes(resident.slot), pinned):
            return None
        state = self._copy(resident)
        return None if state is None else self._keep(Saved(list(tokens), state, is_context))

    def _copy(self, resident: Resident) -> State | None:
        """Copy a slot out of KV memory. A failure costs a prefill later, not a request."""
        try:
            return self.memory.save_sequence(resident.slot)
        except (MemoryError, RuntimeError) as error:
            logger.warning("a prefix of %d tokens cannot be copied: %s", resident.n_computed, error)
            return None

    def _keep(self, saved: Saved) -> Saved:
        self._saved[saved] = None
        self.figures.n_bytes += saved.n_bytes
        self.figures.n_states = len(self._saved)
        self._tree.insert(saved.tokens, saved)
        self.version += 1
        return saved

    def _make_room(self, tokens: Tokens[int], n_bytes: int, pinned: State | None = None) -> bool:
        """Evict states, except ``pinned``, until ``n_bytes`` for these tokens fit into the budget.

        False, without evictions, if they cannot fit.
        """
        if n_bytes + sum(saved.n_bytes for saved in self._saved if saved.state is pinned) > self.budget:
            return False
        for depth, item in list(self._tree.matches(tokens)):
            # The new state replaces a state of the same tokens, and of any prefix that it can be truncated
            # to.
            covered = self.kind.truncatable or depth == len(tokens)
            if not isinstance(item, Saved) or item.is_context or depth < len(item.tokens) or not covered:
                continue
            if pinned is None or item.state is not pinned:  # a pinned state still occupies its bytes
                self._discard(item)
        for saved in sorted(self._saved, key=lambda saved: saved.is_context):
            if self.figures.n_bytes + n_bytes <= self.budget:
                break
            if saved.state is not None and saved.state is not pinned:
                self._evict(saved)
        return True

    def _evict(self, saved: Saved) -> None:
        self.figures.n_evicted += 1
        if saved.is_context and self.files is not None:
            self.figures.n_bytes -= saved.n_bytes
            saved.state = None  # still on disk
        else:
            self._discard(saved)

    def _discard(self, saved: Saved) -> None:
        self._tree.discard(saved)
        self.figures.n_bytes -= saved.n_bytes
        self._saved.pop(saved, None)
        self.figures.n_states = len(self._saved)
        self.version += 1

    def save_prefix(self, sequence: Sequence) -> None:
        """Save the computed tokens of a running sequence for waiting sequences."""
        assert sequence.slot is not None
        self._save(self._residents[sequence.slot])

    # --- contexts

    def load_context(self, tokens: Tokens[int]) -> bool:
        """Load a context's state from disk. False if it must be computed."""
        state = self._load(tokens)
        if state is not None:
            self._keep(Saved(list(tokens), state, is_context=True))
            self.figures.n_disk_bytes += state.nbytes
        return state is not None

    def save_context(self, sequence: Sequence) -> None:
        """Keep a completely computed context in RAM and on disk."""
        assert sequence.slot is not None
        saved = self._save(self._residents[sequence.slot], is_context=True)
        if saved is None:
            logger.warning(
                "the state of a context of %d tokens is not cached: raise PREFIX_CACHE_MB",
                len(sequence.tokens),
            )
        elif self.files is not None and saved.state is not None:
            self.files.save(sequence.tokens, saved.state)
            self.figures.n_disk_bytes += self.files.n_bytes(sequence.tokens)
