"""KV memory and the threads that compute on it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from app.engine.llama.batch import Batch
from app.engine.llama.model import Model
from app.engine.llama.native import (
    DecodeAborted,
    DecodeError,
    ModelLoadError,
    last_complaint,
    native_function,
)

# How long ggml's threads spin for the next piece of work before they sleep, in ggml's own measure
# (0 never, 100 always): 50 bridges the gaps between decode steps and still sleeps when idle.
_POLL = 50
_ABORTED = 2  # of llama_decode: its abort callback returned true


class _ThreadPoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """Threads of ggml that stay between decodes; without a pool ggml starts new ones for every decode."""

    def __init__(self, n_threads: int, *, poll: int = _POLL) -> None:
        defaults = native_function("ggml_threadpool_params_default", _ThreadPoolParams, ctypes.c_int)
        create = native_function("ggml_threadpool_new", ctypes.c_void_p, ctypes.POINTER(_ThreadPoolParams))
        params = defaults(n_threads)
        params.poll = poll
        self.handle = create(ctypes.byref(params))
        if not self.handle:
            raise ModelLoadError(f"a pool of {n_threads} threads cannot be started; lower MODEL_THREADS")

    def attach(self, context: Any) -> None:
        """Let llama.cpp's ``context`` compute with these threads."""
        function = native_function(
            "llama_attach_threadpool", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
        )
        function(context, self.handle, self.handle)

    def close(self) -> None:
        """Stop the threads; the context they were attached to must be gone."""
        if self.handle:
            native_function("ggml_threadpool_free", None, ctypes.c_void_p)(self.handle)
            self.handle = None


# Names of llama.cpp's ggml_type for K and V.
KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}


@dataclass(frozen=True, slots=True)
class KVOptions:
    """How keys and values are kept and attended to.

    Attributes:
        layout: ``split`` gives each sequence cells of its own; in ``shared`` all take from one pool, a
            prefix can belong to many, and every query walks over all cells in use.
        flash_attention: Whether attention is computed in one fused pass; None leaves it to llama.cpp.
        type: The number format, a key of KV_TYPES.
    """

    layout: Literal["split", "shared"] = "split"
    flash_attention: bool | None = None
    type: str = "f16"


class Context:
    """KV memory for ``n_sequences`` sequences and the threads that compute on it.

    In the split layout each sequence has ``n_ctx_sequence`` cells of its own, and a decode is one pass
    over the weights for sequences whose ids follow one another without a gap and that have equally many
    tokens in the batch; a gap or an overhang costs another pass (``llama_batch_allocr::split_equal``).
    In the shared layout a sequence may take all ``n_ctx`` cells, and any batch is one pass.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_sequences: int,
        n_batch: int,
        n_threads: int,
        n_outputs: int | None = None,
        kv: KVOptions = KVOptions(),
    ) -> None:
        """Reserve KV memory and compute buffers.

        Args:
            model: The weights; to be closed after the context.
            n_ctx: Cells of KV memory in all.
            n_sequences: How many sequences there may be.
            n_batch: Most tokens of one decode.
            n_threads: Threads that compute.
            n_outputs: Most logits of one decode; one a sequence unless more are asked for.
            kv: Layout, attention and number format.

        Raises:
            ModelLoadError: llama.cpp cannot make the context, most likely for want of memory.
        """
        params = context_params(
            n_ctx=n_ctx, n_sequences=n_sequences, n_batch=n_batch, n_outputs=n_outputs or n_sequences, kv=kv
        )
        params.n_threads = params.n_threads_batch = n_threads
        self._handle = lib.llama_init_from_model(model._handle, params)
        if not self._handle:
            reason = last_complaint("llama.cpp gave no reason")
            raise ModelLoadError(f"no KV memory for N_CTX={n_ctx} tokens: {reason}; lower N_CTX")
        self.n_sequences = n_sequences
        self.n_batch = n_batch
        self.kv = kv
        self.n_ctx_sequence: int = lib.llama_n_ctx_seq(self._handle)
        self._n_vocab = model.vocab.n_tokens
        self._n_window = model.n_window
        self._memory = lib.llama_get_memory(self._handle)
        self.output_tokens: list[int] = []  # by row of the logits: which token of the batch they follow
        self._logits: NDArray[np.float32] = np.empty((0, self._n_vocab), np.float32)
        self._threads = ThreadPool(n_threads)
        self._threads.attach(self._handle)
        # ggml calls the callback before every operation of a pass. A Python function would take the GIL each
        # time. strlen of this buffer returns 0 (continue) until abort() writes a byte, then 1 (stop).
        self._abort_flag = ctypes.create_string_buffer(2)
        callback = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
        lib.llama_set_abort_callback(self._handle, callback, ctypes.addressof(self._abort_flag))

    # --- computing

    def decode(self, batch: Batch) -> None:
        """Compute the batch: its tokens enter KV memory, ``logits`` has what was asked for.

        Raises:
            DecodeAborted: ``abort`` was called.
            DecodeError: llama.cpp could not.
        """
        batch.native.n_tokens = batch.n_tokens
        code = lib.llama_decode(self._handle, batch.native)
        if code == _ABORTED:
            raise DecodeAborted(code)
        if code != 0:
            raise DecodeError(code)
        self.output_tokens = batch.output_tokens.copy()
        n_rows = len(self.output_tokens)
        if n_rows:
            # llama_get_logits waits until all is computed and brings the rows into the order of the batch.
            pointer = lib.llama_get_logits(self._handle)
            address = ctypes.cast(pointer, ctypes.c_void_p).value
            if self._logits.shape[0] != n_rows or self._logits.ctypes.data != address:
                self._logits = np.ctypeslib.as_array(pointer, (n_rows, self._n_vocab))

    def abort(self) -> None:
        """Make the running decode and all later ones raise DecodeAborted. Callable from any thread."""
        self._abort_flag[0] = b"\x01"

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits of the last decode, (rows, vocabulary); valid until the next one."""
        return self._logits

    # --- KV memory

    def clear_sequence(self, sequence: int) -> None:
        """Free the KV memory of a sequence."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def can_truncate(self, sequence: int, n_tokens: int) -> bool:
        """Whether what is left of a sequence after its first ``n_tokens`` is exactly what made them.

        Plain attention keeps all. Of a sliding window the tokens may be gone that the cut would bring back
        into it (llama.cpp cuts there without complaint), and a recurrent state knows its end alone.
        """
        if n_tokens == self.sequence_length(sequence):
            return True
        first = int(lib.llama_memory_seq_pos_min(self._memory, sequence))
        return first == 0 or (self._n_window > 0 and n_tokens >= first + self._n_window - 1)

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None:
        """Keep the first ``n_tokens`` of a sequence.

        Raises:
            ValueError: The memory of this architecture cannot be cut there.
        """
        if not self.can_truncate(sequence, n_tokens) or not lib.llama_memory_seq_rm(
            self._memory, sequence, n_tokens, -1
        ):
            raise ValueError(f"sequence {sequence} cannot be cut to {n_tokens} tokens")

    def share_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Let the empty ``target`` have the first ``n_tokens`` of ``source``, in the same cells.

        Only in the shared layout: in the split one llama.cpp copies all cells, used or not.
        """
        assert self.kv.layout == "shared"
        lib.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def sequence_bytes(self, sequence: int) -> int:
        """Size of the state that ``save_sequence`` returns, in bytes. Nothing is copied."""
        return int(lib.llama_state_seq_get_size(self._handle, sequence))

    def save_sequence(self, sequence: int) -> NDArray[np.uint8]:
        """All that KV memory holds of a sequence, to be restored by ``restore_sequence``."""
        size = self.sequence_bytes(sequence)
        state: NDArray[np.uint8] = np.empty(size, np.uint8)
        written = lib.llama_state_seq_get_data(self._handle, _bytes_of(state), size, sequence)
        if written != size:
            raise RuntimeError(f"the state of sequence {sequence} has {written} instead of {size} bytes")
        return state

    def restore_sequence(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Replace what KV memory holds of a sequence; False, and an empty sequence, if it does not fit."""
        return bool(lib.llama_state_seq_set_data(self._handle, _bytes_of(state), len(state), sequence))

    def sequence_length(self, sequence: int) -> int:
        """How many tokens of a sequence are in KV memory."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        """Free KV memory, buffers and threads."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None
            self._threads.close()


def context_params(*, n_ctx: int, n_sequences: int, n_batch: int, n_outputs: int, kv: KVOptions) -> Any:
    """llama.cpp's parameters of a context, threads aside."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = n_ctx, n_sequences
    params.n_batch, params.n_ubatch = n_batch, min(n_batch, 512)
    params.n_outputs_max = n_outputs
    params.kv_unified = kv.layout == "shared"
    # LLAMA_FLASH_ATTN_TYPE_AUTO is -1, DISABLED 0, ENABLED 1.
    params.flash_attn_type = -1 if kv.flash_attention is None else int(kv.flash_attention)
    params.type_k = params.type_v = KV_TYPES[kv.type]
    params.no_perf = True
    return params


def _bytes_of(state: NDArray[np.uint8]) -> Any:
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
