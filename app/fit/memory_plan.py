"""Whether model, KV memory, buffers and saved prefixes fit into memory, and how large KV memory should be.

All is known before anything large is allocated: ``app.engine.llama.simulation`` tells the sizes.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.engine.engine import EngineOptions
from app.engine.llama import KVOptions, ModelLoadError
from app.engine.llama.simulation import SimulatedModel
from app.machine.memory import available_memory

_MIB = 1 << 20

# Python, its packages and llama.cpp's library, the process that renders chat templates, and the engine's
# own records: 32 MiB of anonymous and 28 MiB of file memory, and 14 MiB in the other process, were
# resident with the default model beside its weights, vocabulary, KV memory and buffers. The rest is for
# requests on their way.
_PROCESS = 96 * _MIB
# One entry of a vocabulary takes 350 bytes in llama.cpp; its text may be kept in Python, too.
_BYTES_PER_VOCABULARY_ENTRY = 512

_GRAIN = 256  # tokens; llama.cpp rounds what a sequence gets up to a multiple of it
_LONGEST = 4096  # tokens a sequence unless more are asked for: room for a long prompt and its answer
_SHORTEST = 512  # fewer sequences rather than shorter ones
_MOST_SEQUENCES = 8  # more hardly raise the throughput of a few cores
_KV_SHARE = 4  # KV memory may take a quarter of what the weights leave: other programs live here, too
_PREFIX_SHARE = 10
_MOST_FOR_PREFIXES = 2048 * _MIB
_MOST_SIMULATED = 1 << 20  # cells; llama.cpp keeps some 50 bytes of records a cell even in a simulation


class MemoryPlanError(Exception):
    """What is asked for does not fit into memory; the message has the numbers and says what to lower."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much memory goes where, in bytes.

    Attributes:
        n_ctx: Cells of KV memory, for all sequences.
        max_sequences: Sequences that are decoded at once.
        kv_options: Layout, attention and number format of KV memory.
        weights: The weights, in the form that is computed with.
        kv: KV memory.
        compute: Intermediate results and logits of the largest batch.
        process: Python with all its packages, the vocabulary, helper processes.
        prefix_budget: What saved prefixes may grow to.
        available: What this process may have.
    """

    n_ctx: int
    max_sequences: int
    kv_options: KVOptions
    weights: int
    kv: int
    compute: int
    process: int
    prefix_budget: int
    available: int

    @property
    def total(self) -> int:
        """What is needed."""
        return self.weights + self.kv + self.compute + self.process + self.prefix_budget

    @property
    def fits(self) -> bool:
        """Whether what is needed is there."""
        return self.total <= self.available

    def __str__(self) -> str:
        if self.kv_options.layout == "shared":
            shape = f"{self.n_ctx} tokens for {self.max_sequences} sequences"
        else:
            shape = f"{self.max_sequences} x {self.n_ctx // self.max_sequences} tokens"
        return (
            f"memory: weights {_size(self.weights)} + KV {_size(self.kv)} ({shape}, {self.kv_options.type}) "
            f"+ buffers {_size(self.compute)} + process {_size(self.process)} "
            f"+ prefixes {_size(self.prefix_budget)} = {_size(self.total)} of {_size(self.available)}"
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
) -> MemoryPlan:
    """Plan the memory of an engine; what is None gets a value that fits.

    Args:
        path: A GGUF, of a split model its first part.
        n_ctx: Cells of KV memory, for all sequences.
        max_sequences: Sequences that are decoded at once.
        prefix_mb: MiB of RAM for saved prefixes.
        kv: Layout, attention and number format of KV memory.
        gpu_layers: Layers on the GPU; -1 is all. What lies there is not counted.
        n_threads: Threads that compute.
        main_gpu: The GPU that gets them.
        available: Bytes that this process may have; None asks ``available_memory``.

    Raises:
        MemoryPlanError: It does not fit.
        ModelLoadError: llama.cpp refuses the model, or such a context of it.
    """
    model = SimulatedModel(path, gpu_layers=gpu_layers, main_gpu=main_gpu)
    try:
        planner = _Planner(
            model,
            EngineOptions(n_ctx=_GRAIN, max_sequences=1, n_threads=n_threads, kv=kv),
            prefix_budget=None if prefix_mb is None else prefix_mb * _MIB,
            available=available_memory() if available is None else available,
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
    """Plans for one model and one machine."""

    def __init__(
        self, model: SimulatedModel, options: EngineOptions, *, prefix_budget: int | None, available: int
    ) -> None:
        self._model = model
        self._options = options
        self._prefix_budget = prefix_budget
        self._available = available
        self._weights = model.weights_memory()
        self._process = _PROCESS + model.n_vocab * _BYTES_PER_VOCABULARY_ENTRY

    def plan(self, n_ctx: int, max_sequences: int, kv: KVOptions | None = None) -> MemoryPlan:
        """The plan with these figures; whether it fits is another question."""
        options = replace(self._options, n_ctx=n_ctx, max_sequences=max_sequences, kv=kv or self._options.kv)
        n_ctx, kv_bytes, compute = self._measure(options)
        rest = self._available - self._weights - self._process - kv_bytes - compute
        prefix_budget = self._prefix_budget
        if prefix_budget is None:
            prefix_budget = min(max(0, rest) // _PREFIX_SHARE, _MOST_FOR_PREFIXES)
        return MemoryPlan(
            n_ctx=n_ctx,
            max_sequences=max_sequences,
            kv_options=options.kv,
            weights=self._weights,
            kv=kv_bytes,
            compute=compute,
            process=self._process,
            prefix_budget=prefix_budget,
            available=self._available,
        )

    def _measure(self, options: EngineOptions) -> tuple[int, int, int]:
        """Cells, and bytes of KV memory and of buffers.

        What a simulation itself cannot bear is scaled up from a smaller one: states of recurrent layers
        that alone exceed memory, and contexts of many millions of tokens.
        """
        n_sequences, n_ctx = options.max_sequences, options.n_ctx
        if self._model.is_recurrent and n_sequences > 1:
            one = self._simulate(replace(options, n_ctx=_GRAIN, max_sequences=1))
            if self._weights + one[1] * n_sequences > self._available:
                n_sequences = 1
        n_ctx = min(n_ctx * n_sequences // options.max_sequences, _MOST_SIMULATED)
        cells, kv, compute = self._simulate(replace(options, n_ctx=n_ctx, max_sequences=n_sequences))
        scale = options.n_ctx / n_ctx
        return round(cells * scale), round(kv * scale), round(compute * scale)

    def _simulate(self, options: EngineOptions) -> tuple[int, int, int]:
        memory = self._model.context_memory(
            n_ctx=options.n_ctx,
            n_sequences=options.max_sequences,
            n_batch=options.n_batch,
            n_outputs=options.n_outputs,
            kv=options.kv,
        )
        return memory.n_ctx, memory.kv, memory.buffers

    # --- figures that nobody has set

    def choose_lengths(self, max_sequences: int | None) -> MemoryPlan:
        """Long sequences rather than many, as far as enough is left free: see the constants above."""
        longest = min(_LONGEST, _round_up(self._model.n_ctx_train or _LONGEST))
        shortest = min(_SHORTEST, longest)
        least = 1 if max_sequences is None else max_sequences
        n_sequences = _largest(
            range(least, (max_sequences or _MOST_SEQUENCES) + 1), lambda n: self._is_modest(n, shortest)
        )
        if n_sequences is not None:
            lengths = range(shortest, longest + 1, _GRAIN)
            n_tokens = _largest(lengths, lambda n: self._is_modest(n_sequences, n)) or shortest
            return self.plan(n_tokens * n_sequences, n_sequences)
        # Rather little left free than no service.
        plan = self.plan(shortest * least, least)
        return plan if plan.fits else self.plan(_GRAIN * least, least)

    def _is_modest(self, n_sequences: int, n_tokens: int) -> bool:
        plan = self.plan(n_tokens * n_sequences, n_sequences)
        return plan.fits and plan.kv * _KV_SHARE <= self._available - self._weights - self._process

    def choose_sequences(self, n_ctx: int) -> MemoryPlan:
        """The most sequences that share ``n_ctx`` cells without being short."""
        n_sequences = max(1, min(_MOST_SEQUENCES, n_ctx // _SHORTEST))
        plan = self.plan(n_ctx, n_sequences)
        while not plan.fits and n_sequences > 1:
            n_sequences -= 1
            plan = self.plan(n_ctx, n_sequences)
        return plan

    # --- what to say when it does not fit

    def refusal(self, plan: MemoryPlan) -> str:
        """The numbers of a plan that does not fit, and what would."""
        remedies = list(self._remedies(plan))
        free_to_choose = copy.copy(self)
        free_to_choose._prefix_budget = None
        least = free_to_choose.choose_lengths(None)
        if not remedies and least.fits:
            remedies = [
                f"N_CTX={least.n_ctx} with MAX_SEQUENCES={least.max_sequences} and "
                f"PREFIX_CACHE_MB={least.prefix_budget // _MIB}"
            ]
        if remedies:
            advice = f"what would fit: {', or '.join(remedies)}"
        else:
            room = _size(max(0, least.available - least.total + least.weights))
            advice = f"choose a smaller model or a smaller quantization of this one; there is room for {room}"
        return f"not enough {plan}; {advice}; or give the process more memory"

    def _remedies(self, plan: MemoryPlan) -> Iterator[str]:
        """The single settings that, lowered as far as needed, make the plan fit."""
        too_much = plan.total - plan.available
        if too_much <= plan.prefix_budget:
            yield f"PREFIX_CACHE_MB={(plan.prefix_budget - too_much) // _MIB}"
        n_sequences = plan.max_sequences
        per_sequence = plan.n_ctx // n_sequences

        n_tokens = _largest(
            range(_GRAIN, per_sequence, _GRAIN), lambda n: self.plan(n * n_sequences, n_sequences).fits
        )
        if n_tokens is not None:
            yield f"N_CTX={n_tokens * n_sequences}"
        fewer = _largest(range(1, n_sequences), lambda n: self.plan(n * per_sequence, n).fits)
        if fewer is not None:
            yield f"MAX_SEQUENCES={fewer} with N_CTX={fewer * per_sequence}"
        kv = plan.kv_options
        if kv.type in ("f32", "f16", "bf16"):
            # Quantized KV memory needs flash attention, and heads whose size it divides.
            with contextlib.suppress(ModelLoadError):
                if self.plan(plan.n_ctx, n_sequences, replace(kv, type="q8_0")).fits:
                    yield "KV_TYPE=q8_0"


def _largest(values: range, fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending values that fits, where all below it do; None if none does."""
    if not values:
        return None
    if fits(values[-1]):  # the usual case costs one look
        return values[-1]
    n_fitting = bisect.bisect_left(values, True, hi=len(values) - 1, key=lambda value: not fits(value))
    return values[n_fitting - 1] if n_fitting else None


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // _GRAIN) * _GRAIN


def _size(n_bytes: int) -> str:
    mib = n_bytes / _MIB
    return f"{mib:.0f} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB"
