"""Prefix cache: finds the longest known prefix of a prompt and brings it into a slot of KV memory.

A prefix is held by a live sequence, in RAM or on disk.
"""

from __future__ import annotations

import logging
import math
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
from app.engine.cache.prefix_lookup import PrefixLookup
from app.engine.cache.prefix_trees import PrefixTrees
from app.engine.cache.saved_states import SavedStates
from app.engine.sequence import Sequence

logger = logging.getLogger("tokenstream.cache")

# Minimum number of new tokens that justifies a copy.
_MIN_TO_SAVE = 16
# Of a sequence that is cut to a checkpoint, the minimum part that justifies a copy of the whole: an eighth.
_MIN_SHARE_TO_SAVE = 8
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
    before that and needs no copy. Saved states stay within ``budget`` bytes.

    Memory that cannot be truncated is also saved at checkpoints of running sequences. Such a state is partial
    if possible: without keys and values of full attention, which the slot or another saved state holds.

    If a method raises, the contents of its slots may be unknown. ``drop`` frees them. The tree gets an item
    last and loses it first: a lookup never finds an item that the cache has given up.
    """

    memory: KVMemory
    kind: MemoryKind
    budget: int
    files: StateStore | None = None
    _trees: PrefixTrees = field(default_factory=PrefixTrees)
    _residents: dict[int, Resident] = field(default_factory=dict)  # in the order of assignment
    _saved: SavedStates = field(init=False)
    _lookup: PrefixLookup = field(init=False)
    _n_changes: int = 0  # of residents

    def __post_init__(self) -> None:
        has_files = self.files is not None
        self._saved = SavedStates(self._trees, self.kind, self.budget, has_files=has_files)
        self._lookup = PrefixLookup(self._trees, self.memory, self.kind)

    @property
    def figures(self) -> CacheFigures:
        return self._saved.figures

    @property
    def version(self) -> int:
        """A number that changes whenever a lookup may have another result."""
        return self._n_changes + self._saved.n_changes

    # --- lookup

    def lookup(self, tokens: Tokens[int], adapter: str = "", slot: int | None = None) -> Prefix:
        """The longest known prefix of a prompt; see ``PrefixLookup.longest``."""
        return self._lookup.longest(tokens, adapter, slot)

    def slot_with(self, sequence: Sequence, free: Iterable[int]) -> int | None:
        """The free slot with the longest known prefix of the prompt, if any."""
        prefix = self.lookup(sequence.searched, sequence.adapter)
        source = prefix.holder or prefix.source
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

    # --- slots

    def occupy(self, slot: int, sequence: Sequence) -> None:
        """Assign a free slot to a sequence and bring the longest known prefix of its prompt there.

        If this raises, the sequence has no slot.
        """
        prefix = self.lookup(sequence.searched, sequence.adapter, slot)
        n_tokens = prefix.n_tokens
        tier = prefix.source.tier if prefix.source else None  # before the state is read from disk
        source, partial = self._parts_of(prefix)
        here = self._residents.get(slot)
        if source is not None and source is here:
            self._save_before_loss(here, n_tokens, partial)
            self._remove(here)
            if n_tokens < here.n_computed:
                n_tokens = self._cut(slot, n_tokens, partial)
        else:
            state = self._state_of(source, partial)  # before _empty(), which may evict the source
            self._empty(slot, state, partial)
            n_tokens = self._bring(slot, state, n_tokens, partial)
        sequence.slot, sequence.n_computed = slot, n_tokens
        if not sequence.was_suspended:
            sequence.n_cached, sequence.cache_tier = n_tokens, tier if n_tokens else None
        self._add(Resident(slot, sequence.prompt, sequence, sequence.adapter))

    def leave(self, sequence: Sequence) -> None:
        """Release the slot of a finished sequence. Its KV stays until the slot is reused."""
        assert sequence.slot is not None
        resident = self._residents[sequence.slot]
        self._remove(resident)
        sequence.slot = None
        if sequence.n_computed:
            tokens = sequence.tokens[: sequence.n_computed]
            self._add(Resident(resident.slot, tokens, None, sequence.adapter))

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
        self._add(Resident(target, sequence.prompt, sequence, sequence.adapter))

    def rewind(self, sequence: Sequence, n_tokens: int) -> None:
        """Keep at most the first ``n_tokens`` of a running sequence: fewer if they cannot be restored."""
        slot = sequence.slot
        assert slot is not None
        if not self.memory.can_truncate(slot, n_tokens):
            prefix = self.lookup(sequence.tokens[: n_tokens + 1], sequence.adapter, _ELSEWHERE)
            source, partial = self._parts_of(prefix)
            state = self._state_of(source, partial)
            self.memory.clear_sequence(slot)
            n_tokens = self._bring(slot, state, prefix.n_tokens, partial)
        elif n_tokens < sequence.n_computed:
            self.memory.truncate_sequence(slot, n_tokens)
        sequence.n_computed = n_tokens

    def drop(self, slot: int) -> None:
        """Free a slot without saving its contents."""
        if resident := self._residents.get(slot):
            self._remove(resident)
            if resident.sequence is not None:
                resident.sequence.slot = None
        self.memory.clear_sequence(slot)

    def _add(self, resident: Resident) -> None:
        self._residents[resident.slot] = resident
        self._trees.insert(resident)
        self._n_changes += 1

    def _remove(self, resident: Resident) -> None:
        self._trees.discard(resident)
        del self._residents[resident.slot]
        self._n_changes += 1

    def _empty(self, slot: int, *pinned: State | None) -> None:
        """Save and clear a slot. Without a resident it is cleared too: a fault may have left KV there."""
        if resident := self._residents.get(slot):
            self._save_before_loss(resident, 0, *pinned)
            self._remove(resident)
        self.memory.clear_sequence(slot)

    # --- copies

    def _parts_of(self, prefix: Prefix) -> tuple[Resident | Saved | None, State | None]:
        """The item that fills a slot, and the partial state to which the slot is then cut."""
        if prefix.holder is not None and isinstance(prefix.source, Saved):
            return prefix.holder, self._touch(prefix.source)
        return prefix.source, None

    def _state_of(self, source: Resident | Saved | None, *pinned: State | None) -> State | None:
        if isinstance(source, Saved):
            return self._touch(source)
        if source is None:
            return None
        # If the budget allows, the copy is cached for the next prompt with this prefix.
        saved = self._save(source, pinned=pinned)
        return self._copy(source) if saved is None else saved.state

    def _bring(self, slot: int, state: State | None, n_tokens: int, partial: State | None) -> int:
        """Fill an empty slot. Returns the number of tokens in it."""
        if state is None:
            return 0
        if not self.memory.restore_sequence(slot, state):
            return self._not_restored(slot, n_tokens)
        if self.kind.truncatable or partial is not None:
            return self._cut(slot, n_tokens, partial)
        return n_tokens

    def _cut(self, slot: int, n_tokens: int, partial: State | None) -> int:
        """Truncate a slot, to ``partial`` if given. Returns the number of tokens in it."""
        if partial is not None and not self.memory.restore_sequence(slot, partial, partial=True):
            return self._not_restored(slot, n_tokens)
        self.memory.truncate_sequence(slot, n_tokens)
        return n_tokens

    def _not_restored(self, slot: int, n_tokens: int) -> int:
        logger.warning(
            "a saved prefix of %d tokens does not fit into KV memory: it is computed again", n_tokens
        )
        self.memory.clear_sequence(slot)
        return 0

    def _touch(self, saved: Saved) -> State | None:
        """Return the state of a saved prefix, from disk if necessary. Marks it as most recently used."""
        if saved.state is None:
            saved.state = self._load(saved.tokens, saved.adapter)
            if saved.state is None:
                self._saved.discard(saved)
                return None
            self.figures.n_bytes += saved.n_bytes
        self._saved.mark_used(saved)
        return saved.state

    def _load(self, tokens: Tokens[int], adapter: str) -> State | None:
        if self.files is None:
            return None
        n_bytes = self.files.n_bytes(tokens, adapter)
        saved = Saved(list(tokens), None, adapter=adapter)
        has_room = n_bytes and self._saved.make_room(saved, n_bytes)
        return self.files.load(tokens, adapter) if has_room else None

    def _save_before_loss(self, resident: Resident, n_kept: int, *pinned: State | None) -> None:
        """Save a slot unless its tokens beyond ``n_kept`` are few or cached elsewhere."""
        n_known = n_kept if self.kind.truncatable else 0
        for depth, item in self._trees.matches(resident.tokens, resident.adapter):
            if item is not resident and not (isinstance(item, Saved) and item.is_partial):
                n_known = max(n_known, self._lookup.usable(item, depth, _ELSEWHERE))
                if n_known >= depth:
                    break
        n_lost = resident.n_computed - n_known
        if self.kind.divisible and n_kept:  # the slot still holds these tokens, for its partial states
            n_lost = min(n_lost, resident.n_computed - n_kept)
            if n_lost < resident.n_computed // _MIN_SHARE_TO_SAVE:
                return
        if n_lost >= _MIN_TO_SAVE:
            self._save(resident, pinned=pinned)

    def _save(
        self,
        resident: Resident,
        *,
        is_context: bool = False,
        is_needed: bool = False,
        is_partial: bool = False,
        pinned: Tokens[State | None] = (),
    ) -> Saved | None:
        """Save a copy of a slot. None, without a copy, if the budget has no room.

        Args:
            resident: The contents of the slot.
            is_context: Whether it is the state of a context.
            is_needed: Whether it replaces states of any value.
            is_partial: Whether to save only what cannot be truncated.
            pinned: States that must not be evicted.
        """
        tokens = resident.tokens
        if resident.sequence is not None:
            tokens = resident.sequence.tokens[: resident.n_computed]
        n_bytes = self.memory.sequence_bytes(resident.slot, partial=is_partial)
        saved = Saved(list(tokens), None, is_context, is_partial, adapter=resident.adapter)
        saved.value = self._saved.value(saved, n_bytes, resident)
        least = math.inf if is_needed or is_context else saved.value
        if not self._saved.make_room(saved, n_bytes, pinned, value=least):
            return None
        saved.state = self._copy(resident, is_partial=is_partial)
        if saved.state is None:
            return None
        self._saved.keep(saved)
        return saved

    def _copy(self, resident: Resident, *, is_partial: bool = False) -> State | None:
        """Copy a slot out of KV memory. A failure costs a prefill later, not a request."""
        try:
            return self.memory.save_sequence(resident.slot, partial=is_partial)
        except (MemoryError, RuntimeError) as error:
            logger.warning("a prefix of %d tokens cannot be copied: %s", resident.n_computed, error)
            return None

    def save_prefix(self, sequence: Sequence) -> None:
        """Save the computed tokens of a running sequence for waiting sequences."""
        assert sequence.slot is not None
        self._save(self._residents[sequence.slot], is_needed=True)

    def save_checkpoint(self, sequence: Sequence) -> None:
        """Save the state after the computed tokens of a running sequence, unless it is known."""
        assert sequence.slot is not None
        n_tokens = sequence.n_computed
        for depth, item in self._trees.matches(sequence.tokens[:n_tokens], sequence.adapter):
            if depth < n_tokens:
                break
            if isinstance(item, Saved) and len(item.tokens) == n_tokens:
                return
        if self._save(self._residents[sequence.slot], is_partial=self.kind.divisible):
            self.figures.n_checkpoints += 1

    # --- contexts

    def load_context(self, tokens: Tokens[int], adapter: str = "") -> bool:
        """Load a context's state from disk. False if it must be computed."""
        state = self._load(tokens, adapter)
        if state is not None:
            saved = Saved(list(tokens), state, is_context=True, adapter=adapter)
            saved.value = self._saved.value(saved, state.nbytes)
            self._saved.keep(saved)
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
            self.files.save(sequence.tokens, saved.state, sequence.adapter)
            self.figures.n_disk_bytes += self.files.n_bytes(sequence.tokens, sequence.adapter)
