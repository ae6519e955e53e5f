"""A context that computes one vector per text."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from app.engine.llama.batch import Batch
from app.engine.llama.context import ThreadPool
from app.engine.llama.model import Model
from app.engine.llama.native import DecodeError, ModelLoadError, last_error

# Reduction of a text's token vectors to one vector; values of llama.cpp's llama_pooling_type.
POOLING = {"mean": 1, "cls": 2, "last": 3}
_RANK = 4  # the outputs of a classifier, in the place of a vector


class EmbeddingContext:
    """Encodes batches of complete texts, one sequence per text.

    Encoders have no KV cache. Causal models (pooling ``last``) have one, cleared before every batch.
    """

    def __init__(
        self, model: Model, *, n_batch: int, n_sequences: int, n_threads: int, pooling: str | None = None
    ) -> None:
        """Allocate the compute buffers.

        Args:
            model: Close it after the context.
            n_batch: Maximum tokens per batch, and so per text.
            n_sequences: Maximum texts per batch.
            n_threads: Compute threads.
            pooling: A key of POOLING, or ``rank``, which the model's file must have. None: the default of
                the file.

        Raises:
            ModelLoadError: llama.cpp cannot create the context, or the model is not an embedding model, or
                with pooling ``rank`` not a reranker.
        """
        # A multiple of n_sequences: otherwise llama.cpp's graph for mean pooling aborts the process.
        n_batch = -(-n_batch // n_sequences) * n_sequences
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = n_batch
        params.n_seq_max, params.kv_unified = n_sequences, True
        params.embeddings = True
        # Another file with pooling "rank" would have no classifier.
        params.pooling_type = -1 if pooling in (None, "rank") else POOLING[pooling]
        params.n_threads = params.n_threads_batch = n_threads
        params.no_perf = True
        self._handle = lib.llama_init_from_model(model._handle, params)
        if not self._handle:
            reason = last_error("no reason given")
            raise ModelLoadError(f"cannot allocate compute buffers for {n_batch} tokens: {reason}")
        number = lib.llama_pooling_type(self._handle)
        known = {number: name for name, number in POOLING.items()}
        if pooling == "rank":
            known = {_RANK: "rank"}
        if number not in known:
            self._free()
            if pooling == "rank":
                raise ModelLoadError("the file is not a reranker: its pooling type is not `rank`")
            raise ModelLoadError(
                "the file has no pooling type, so it may not be an embedding model; "
                f"if it is one, set EMBEDDING_POOLING to one of {', '.join(POOLING)}"
            )
        self.pooling = known[number]
        n_outputs = lib.llama_model_n_cls_out if number == _RANK else lib.llama_model_n_embd_out
        self.dimensions: int = n_outputs(model._handle)
        self._memory = lib.llama_get_memory(self._handle)
        # Texts arrive in bursts, while another context decodes: idle threads must not spin.
        self._threads = ThreadPool(n_threads, poll=0)
        self._threads.attach(self._handle)

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        """The vectors of the batch's sequences, shape (sequences, dimensions). Sequence ids start at 0.

        Raises:
            DecodeError: llama.cpp failed.
        """
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        batch.native.n_tokens = batch.n_tokens
        code = lib.llama_decode(self._handle, batch.native)  # calls llama_encode for an encoder
        if code != 0:
            raise DecodeError(code)
        n_sequences = int(batch._sequence[batch.n_tokens - 1]) + 1
        vectors: NDArray[np.float32] = np.empty((n_sequences, self.dimensions), np.float32)
        for sequence in range(n_sequences):
            vectors[sequence] = _row(lib.llama_get_embeddings_seq(self._handle, sequence), self.dimensions)
        return vectors

    def close(self) -> None:
        if self._handle:
            self._free()
            self._threads.close()

    def _free(self) -> None:
        lib.llama_free(self._handle)
        self._handle = None


def _row(pointer: Any, n: int) -> NDArray[np.float32]:
    if not pointer:
        raise DecodeError(-1)
    return np.frombuffer(ctypes.string_at(pointer, n * 4), np.float32)
