"""A context of llama.cpp: KV cache, compute buffers and threads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from app.engine.llama.batch import Batch
from app.engine.llama.model import Adapter, Model
from app.engine.llama.native import (
    DecodeAborted,
    DecodeError,
    ModelLoadError,
    last_error,
    native_function,
)
from app.machine.memory import returnable_buffer

# Spinning of ggml's idle threads before they sleep, from 0 (none) to 100 (always). 50 covers the gaps between
# decode steps.
_POLL = 50
_ABORTED = 2  # return value of llama_decode after the abort callback returned true


class ThreadPool:
    """ggml's threads, kept between decodes. Without a pool ggml starts new threads for every decode."""

    def __init__(self, n_threads: int, *, poll: int = _POLL) -> None:
        create = native_function("tokenstream_threadpool_new", ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        self.handle: int | None = create(n_threads, poll)
        if not self.handle:
            raise ModelLoadError(f"cannot start {n_threads} threads; lower MODEL_THREADS")

    def attach(self, context: Any) -> None:
        """Make llama.cpp's ``context`` compute with these threads."""
        function = native_function(
            "llama_attach_threadpool", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
        )
        function(context, self.handle, self.handle)

    def close(self) -> None:
        """Stop the threads. Close the attached context first."""
        if self.handle:
            native_function("ggml_threadpool_free", None, ctypes.c_void_p)(self.handle)
            self.handle = None


# Values of llama.cpp's ggml_type for K and V.
KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}


@dataclass(frozen=True, slots=True)
class KVOptions:
    """Number format of the KV cache, and the kind of attention.

    Attributes:
        flash_attention: Whether attention is one fused operation. None: llama.cpp decides.
        type: Number format, a key of KV_TYPES.
    """

    flash_attention: bool | None = None
    type: str = "f16"


class Context:
    """KV cache for ``n_sequences`` sequences, compute buffers and threads.

    Each sequence has ``n_ctx_sequence`` cells of its own. A decode is one pass over the weights if its
    sequence ids are consecutive and all sequences have equally many tokens. Each gap and each longer sequence
    costs another pass (``llama_batch_allocr::split_equal``).
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
        """Allocate the KV cache and the compute buffers.

        Args:
            model: Close it after the context.
            n_ctx: Cells of the KV cache in total.
            n_sequences: Maximum sequences.
            n_batch: Maximum tokens per decode.
            n_threads: Compute threads.
            n_outputs: Maximum rows of logits per decode; by default one per sequence.
            kv: Attention and number format.

        Raises:
            ModelLoadError: llama.cpp cannot create the context, most likely for lack of memory.
        """
        params = context_params(
            n_ctx=n_ctx, n_sequences=n_sequences, n_batch=n_batch, n_outputs=n_outputs or n_sequences, kv=kv
        )
        params.n_threads = params.n_threads_batch = n_threads
        self._handle = lib.llama_init_from_model(model._handle, params)
        if not self._handle:
            reason = last_error("no reason given")
            raise ModelLoadError(f"cannot allocate a KV cache of N_CTX={n_ctx} tokens: {reason}; lower N_CTX")
        self.n_sequences = n_sequences
        self.n_batch = n_batch
        self.kv = kv
        self.n_ctx_sequence: int = lib.llama_n_ctx_seq(self._handle)
        self._n_vocab = model.vocab.n_tokens
        self._n_window = model.n_window
        self._memory = lib.llama_get_memory(self._handle)
        self.output_tokens: list[int] = []  # index of the token before each row of logits
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
        """Compute the batch: store its tokens in the KV cache and the requested rows in ``logits``.

        Raises:
            DecodeAborted: ``abort`` was called.
            DecodeError: llama.cpp failed.
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
            # llama_get_logits synchronizes and sorts the rows into the order of the batch.
            pointer = lib.llama_get_logits(self._handle)
            address = ctypes.cast(pointer, ctypes.c_void_p).value
            if self._logits.shape[0] != n_rows or self._logits.ctypes.data != address:
                self._logits = np.ctypeslib.as_array(pointer, (n_rows, self._n_vocab))

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Compute later decodes with an adapter, or with the model alone.

        A change takes some milliseconds: llama.cpp builds its graphs again.
        """
        handles, scales = (ctypes.c_void_p * 1)(), (ctypes.c_float * 1)()
        if adapter is not None:
            handles[0], scales[0] = adapter.handle, adapter.scale
        function = native_function(
            "llama_set_adapters_lora",
            ctypes.c_int32,
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
        )
        function(self._handle, handles, int(adapter is not None), scales)

    def abort(self) -> None:
        """Abort the running decode and all later ones with DecodeAborted. Callable from any thread."""
        self._abort_flag[0] = b"\x01"

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits of the last decode, shape (rows, vocabulary). Valid until the next decode."""
        return self._logits

    # --- KV cache

    def clear_sequence(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def can_truncate(self, sequence: int, n_tokens: int) -> bool:
        """Whether the KV cache still has the exact state after the first ``n_tokens`` of a sequence.

        Plain attention keeps every token. With sliding windows, tokens of the earlier window may be freed;
        llama.cpp then truncates without an error. A recurrent state exists only for the end of the sequence.
        """
        if n_tokens == self.sequence_length(sequence):
            return True
        first = int(lib.llama_memory_seq_pos_min(self._memory, sequence))
        return first == 0 or (self._n_window > 0 and n_tokens >= first + self._n_window - 1)

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None:
        """Keep the first ``n_tokens`` of a sequence.

        Raises:
            ValueError: The KV cache cannot be truncated there.
        """
        if not self.can_truncate(sequence, n_tokens) or not lib.llama_memory_seq_rm(
            self._memory, sequence, n_tokens, -1
        ):
            raise ValueError(f"sequence {sequence} cannot be truncated to {n_tokens} tokens")

    def sequence_bytes(self, sequence: int, *, partial: bool = False) -> int:
        """Size of a sequence's state in bytes, without copying it."""
        return int(lib.llama_state_seq_get_size_ext(self._handle, sequence, _flags(partial)))

    def save_sequence(self, sequence: int, *, partial: bool = False) -> NDArray[np.uint8]:
        """Copy a sequence's state, for ``restore_sequence``.

        Args:
            sequence: Its id.
            partial: Only what cannot be truncated: a recurrent state, or the last tokens of sliding windows.
        """
        size = self.sequence_bytes(sequence, partial=partial)
        state = returnable_buffer(size)
        written = lib.llama_state_seq_get_data_ext(
            self._handle, _bytes_of(state), size, sequence, _flags(partial)
        )
        if written != size:
            raise RuntimeError(f"the state of sequence {sequence} has {written} instead of {size} bytes")
        return state

    def restore_sequence(self, sequence: int, state: NDArray[np.uint8], *, partial: bool = False) -> bool:
        """Replace the state of a sequence. Returns False, with an empty sequence, if it does not fit.

        A partial state leaves keys and values of full attention as they are: truncate the sequence next.
        """
        restore = lib.llama_state_seq_set_data_ext
        return bool(restore(self._handle, _bytes_of(state), len(state), sequence, _flags(partial)))

    def sequence_length(self, sequence: int) -> int:
        """Tokens of a sequence in the KV cache."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        """Free KV cache, buffers and threads."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None
            self._threads.close()


def context_params(*, n_ctx: int, n_sequences: int, n_batch: int, n_outputs: int, kv: KVOptions) -> Any:
    """llama.cpp's parameters of a context, without threads."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = n_ctx, n_sequences
    params.n_batch, params.n_ubatch = n_batch, min(n_batch, 512)
    params.n_outputs_max = n_outputs
    params.kv_unified = False  # with one pool of cells, the order of a sequence's cells depends on the others
    # LLAMA_FLASH_ATTN_TYPE_AUTO is -1, DISABLED 0, ENABLED 1.
    params.flash_attn_type = -1 if kv.flash_attention is None else int(kv.flash_attention)
    params.type_k = params.type_v = KV_TYPES[kv.type]
    params.no_perf = True
    return params


def _flags(partial: bool) -> int:
    return int(lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else lib.LLAMA_STATE_SEQ_FLAGS_NONE)


def _bytes_of(state: NDArray[np.uint8]) -> Any:
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
