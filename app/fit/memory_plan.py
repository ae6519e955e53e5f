"""The memory plan: sizes of the KV cache and the prefix cache, and whether everything fits into RAM.

The sizes come from ``app.engine.llama.simulation``, before anything large is allocated.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.config.errors import UserError
from app.engine.cache.prefix_cache import transient_bytes
from app.engine.engine import EngineOptions
from app.engine.llama import KVOptions, ModelLoadError
from app.engine.llama.simulation import SimulatedModel
from app.machine.memory import available_memory

_MIB = 1 << 20

# Python, packages, llama.cpp's library, the child process for chat templates, and the engine's records.
# Measured with the default model, without weights, vocabulary, KV cache and buffers: 32 MiB of anonymous
# memory, 28 MiB of files, and 14 MiB in the child process. The remainder is for requests in flight.
_PROCESS = 96 * _MIB
# llama.cpp needs 350 bytes per vocabulary entry; Python may also cache its text.
_BYTES_PER_VOCABULARY_ENTRY = 512

_GRAIN = 256  # tokens; llama.cpp rounds each sequence's KV cache up to a multiple of this
# Tokens per sequence, unless more are configured: room for a long prompt and its answer.
_MAX_SEQUENCE_TOKENS = 4096
_MIN_SEQUENCE_TOKENS = 512  # below this, fewer sequences are planned
_MAX_SEQUENCES = 8  # more add little throughput on a few cores
_KV_SHARE = 4  # the KV cache may use 1/4 of the memory besides weights; other programs need memory too
_PREFIX_SHARE = 10
_MAX_PREFIX_BYTES = 2048 * _MIB
_MAX_SIMULATED = 1 << 20  # cells; a simulation needs about 50 bytes per cell


class MemoryPlanError(UserError):
    """The configured sizes exceed memory. The message has figures and settings to lower."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory by purpose, in bytes.

    Attributes:
        n_ctx: Cells of the KV cache, for all sequences.
        max_sequences: Sequences per decode step.
        kv_options: Attention and number format of the KV cache.
        weights: Weights, in the form used for computing, and LoRA adapters.
        kv: KV cache.
        compute: Intermediate results and logits of the largest batch.
        process: Python and its packages, vocabulary, helper processes.
        state_copy: Copies between slots, beyond the prefix cache.
        prefix_budget: Limit of the prefix cache.
        available: Memory that this process may use.
    """

    n_ctx: int
    max_sequences: int
    kv_options: KVOptions
    weights: int
    kv: int
    compute: int
    process: int
    state_copy: int
    prefix_budget: int
    available: int

    @property
    def total(self) -> int:
        """Memory needed, in bytes."""
        return self.weights + self.kv + self.compute + self.process + self.state_copy + self.prefix_budget

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    def __str__(self) -> str:
        shape = f"{self.max_sequences} x {self.n_ctx // self.max_sequences} tokens"
        return (
            f"memory: weights {_size(self.weights)} + KV {_size(self.kv)} ({shape}, {self.kv_options.type}) "
            f"+ buffers {_size(self.compute)} + process {_size(self.process)} "
            f"+ state copy {_size(self.state_copy)} + prefixes {_size(self.prefix_budget)} "
            f"= {_size(self.total)} of {_size(self.available)}"
        )


def make_plan(
    path: Path,
    *,
    n_ctx: int | None,
    max_sequences: int | None,
    prefix_mb: int | None,
    kv: KVOptions,
    gpu_layers: int,
    n_threads: int,
    main_gpu: int = 0,
    available: int | None = None,
    adapter_bytes: int = 0,
) -> MemoryPlan:
    """Plan the memory of an engine. Parameters that are None get values that fit.

    Args:
        path: A GGUF file; for a split model its first part.
        n_ctx: Cells of the KV cache, for all sequences.
        max_sequences: Sequences per decode step.
        prefix_mb: MiB of RAM for the prefix cache.
        kv: Attention and number format of the KV cache. The format can be AUTO_KV_TYPE.
        gpu_layers: Layers on the GPU; -1 is all. GPU memory is not counted.
        n_threads: Compute threads.
        main_gpu: Index of the GPU.
        available: Bytes that this process may use; None calls ``available_memory``.
        adapter_bytes: Size of the LoRA adapters, in host memory.

    Raises:
        MemoryPlanError: The plan exceeds the available memory.
        ModelLoadError: llama.cpp rejects the model, or a context with these options.
    """
    model = SimulatedModel(path, gpu_layers=gpu_layers, main_gpu=main_gpu)
    try:
        kv = model.resolved(kv)
        planner = _Planner(
            model,
            EngineOptions(n_ctx=_GRAIN, max_sequences=1, n_threads=n_threads, kv=kv),
            prefix_budget=None if prefix_mb is None else prefix_mb * _MIB,
            available=available_memory() if available is None else available,
            adapter_bytes=adapter_bytes,
        )
        if n_ctx is None:
            plan = planner.choose_lengths(max_sequences)
        elif max_sequences is None:
            plan = planner.choose_sequences(n_ctx)
        else:
            plan = planner.plan(n_ctx, max_sequences)
        if not plan.fits:
            raise MemoryPlanError(planner.refusal(plan))
        return plan
    finally:
        model.close()


class _Planner:
    """Plans for one model on one machine."""

    def __init__(
        self,
        model: SimulatedModel,
        options: EngineOptions,
        *,
        prefix_budget: int | None,
        available: int,
        adapter_bytes: int,
    ) -> None:
        self._model = model
        self._options = options
        self._prefix_budget = prefix_budget
        self._available = available
        self._weights = model.weights_memory() + adapter_bytes
        self._process = _PROCESS + model.n_vocab * _BYTES_PER_VOCABULARY_ENTRY
        self._simulate = functools.cache(self._simulate_once)

    def plan(self, n_ctx: int, max_sequences: int, kv: KVOptions | None = None) -> MemoryPlan:
        """A plan with these sizes, even if it exceeds memory."""
        options = replace(self._options, n_ctx=n_ctx, max_sequences=max_sequences, kv=kv or self._options.kv)
        n_ctx, kv_bytes, compute = self._measure(options)
        plan = MemoryPlan(
            n_ctx=n_ctx,
            max_sequences=max_sequences,
            kv_options=options.kv,
            weights=self._weights,
            kv=kv_bytes,
            compute=compute,
            process=self._process,
            state_copy=transient_bytes(kv_bytes, n_ctx, max_sequences),
            prefix_budget=self._prefix_budget or 0,
            available=self._available,
        )
        if self._prefix_budget is not None:
            return plan
        rest = max(0, plan.available - plan.total)
        return replace(plan, prefix_budget=min(rest // _PREFIX_SHARE, _MAX_PREFIX_BYTES))

    def _measure(self, options: EngineOptions) -> tuple[int, int, int]:
        """Cells, and bytes of the KV cache and of the buffers.

        Two cases are extrapolated from a smaller simulation: recurrent states that exceed memory, and
        contexts of many millions of tokens. Their simulation would need too much memory.
        """
        n_sequences, n_ctx = options.max_sequences, options.n_ctx
        if self._model.is_recurrent and n_sequences > 1:
            one = self._simulate(replace(options, n_ctx=_GRAIN, max_sequences=1))
            if self._weights + one[1] * n_sequences > self._available:
                n_sequences = 1
        n_ctx = min(n_ctx * n_sequences // options.max_sequences, _MAX_SIMULATED)
        cells, kv, compute = self._simulate(replace(options, n_ctx=n_ctx, max_sequences=n_sequences))
        scale = options.n_ctx / n_ctx
        return round(cells * scale), round(kv * scale), round(compute * scale)

    def _simulate_once(self, options: EngineOptions) -> tuple[int, int, int]:
        memory = self._model.context_memory(
            n_ctx=options.n_ctx,
            n_sequences=options.max_sequences,
            n_batch=options.n_batch,
            n_outputs=options.n_outputs,
            kv=options.kv,
        )
        return memory.n_ctx, memory.kv, memory.buffers

    # --- sizes that are not configured

    def choose_lengths(self, max_sequences: int | None) -> MemoryPlan:
        """Choose sizes within the limits above. Long sequences have priority over many sequences."""
        longest = min(_MAX_SEQUENCE_TOKENS, _round_up(self._model.n_ctx_train or _MAX_SEQUENCE_TOKENS))
        shortest = min(_MIN_SEQUENCE_TOKENS, longest)
        least = max_sequences or 1
        counts = range(least, (max_sequences or _MAX_SEQUENCES) + 1)
        n_sequences = _largest(counts, lambda n: self._excess_share(n, shortest))
        if n_sequences is not None:
            lengths = range(shortest, longest + 1, _GRAIN)
            n_tokens = _largest(lengths, lambda n: self._excess_share(n_sequences, n))
            return self.plan((n_tokens or shortest) * n_sequences, n_sequences)
        # Nothing fits: exceed the KV cache's share rather than reject the model.
        plan = self.plan(shortest * least, least)
        return plan if plan.fits else self.plan(_GRAIN * least, least)

    def choose_sequences(self, n_ctx: int) -> MemoryPlan:
        """Choose the maximum number of sequences in ``n_ctx`` cells that are not too short."""
        n_sequences = max(1, min(_MAX_SEQUENCES, n_ctx // _MIN_SEQUENCE_TOKENS))
        plan = self.plan(n_ctx, n_sequences)
        while not plan.fits and n_sequences > 1:
            n_sequences -= 1
            plan = self.plan(n_ctx, n_sequences)
        return plan

    def _excess(self, n_sequences: int, n_tokens: int) -> int:
        """Bytes beyond the available memory; negative if memory is left."""
        plan = self.plan(n_tokens * n_sequences, n_sequences)
        derived = plan.prefix_budget if self._prefix_budget is None else 0
        return plan.total - derived - plan.available

    def _excess_share(self, n_sequences: int, n_tokens: int) -> int:
        """Maximum of `_excess` and the bytes beyond the KV cache's share."""
        plan = self.plan(n_tokens * n_sequences, n_sequences)
        free = plan.available - plan.weights - plan.process
        return max(self._excess(n_sequences, n_tokens), plan.kv * _KV_SHARE - free)

    # --- the error message when nothing fits

    def refusal(self, plan: MemoryPlan) -> str:
        """Error message: the figures of a plan that does not fit, and settings that fit."""
        remedies = list(self._remedies(plan))
        without_settings = copy.copy(self)
        without_settings._prefix_budget = None
        least = without_settings.choose_lengths(None)
        if not remedies and least.fits:
            remedies = [
                f"N_CTX={least.n_ctx} with MAX_SEQUENCES={least.max_sequences} and "
                f"PREFIX_CACHE_MB={least.prefix_budget // _MIB}"
            ]
        if remedies:
            advice = f"settings that fit: {', or '.join(remedies)}"
        else:
            room = _size(max(0, least.available - least.total + least.weights))
            advice = f"choose a smaller model or a smaller quantization, with weights of at most {room}"
        return f"not enough {plan}; {advice}; or give the process more memory"

    def _remedies(self, plan: MemoryPlan) -> Iterator[str]:
        """Single settings that make the plan fit, each lowered as little as possible."""
        excess = plan.total - plan.available
        if excess <= plan.prefix_budget:
            yield f"PREFIX_CACHE_MB={(plan.prefix_budget - excess) // _MIB}"
        n_sequences = plan.max_sequences
        per_sequence = plan.n_ctx // n_sequences

        n_tokens = _largest(range(_GRAIN, per_sequence, _GRAIN), lambda n: self._excess(n_sequences, n))
        if n_tokens is not None:
            yield f"N_CTX={n_tokens * n_sequences}"
        fewer = _largest(range(1, n_sequences), lambda n: self._excess(n, per_sequence))
        if fewer is not None:
            yield f"MAX_SEQUENCES={fewer} with N_CTX={fewer * per_sequence}"
        kv = plan.kv_options
        if kv.type in ("f32", "f16", "bf16"):
            # A quantized KV cache requires flash attention and head sizes that are multiples of its blocks.
            with contextlib.suppress(ModelLoadError):
                if self.plan(plan.n_ctx, n_sequences, replace(kv, type="q8_0")).fits:
                    yield "KV_TYPE=q8_0"


def _largest(values: range, excess: Callable[[int], int]) -> int | None:
    """The largest of ascending values without excess, or None.

    Memory grows almost linearly, except for rounding and sliding windows. Interpolation needs about four
    simulations; the last ones verify the result.
    """
    low, high = 0, len(values) - 1
    if high < 0 or (below := excess(values[low])) > 0:
        return None
    if (above := excess(values[high])) <= 0:
        return values[high]
    while high - low > 1:
        guess = low + (high - low) * below // (below - above)
        guess = min(max(guess, low + 1), high - 1)
        found = excess(values[guess])
        if found > 0:
            high, above = guess, found
        else:
            low, below = guess, found
    return values[low]


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // _GRAIN) * _GRAIN


def _size(n_bytes: int) -> str:
    mib = n_bytes / _MIB
    return f"{mib:.0f} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB"
