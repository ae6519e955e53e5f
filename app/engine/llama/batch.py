"""The input of one ``llama_decode``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray


class Batch:
    """Tokens of one ``llama_decode``, each with its position and its sequence.

    NumPy arrays are filled by slices, without a Python loop over tokens.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self.output_tokens: list[int] = []  # index of the token before each row of logits
        self._token: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._position: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._sequence: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._needs_logits: NDArray[np.int8] = np.zeros(capacity, np.int8)
        self._one_each: NDArray[np.int32] = np.ones(capacity, np.int32)
        # llama_batch.seq_id has a pointer to a list of sequence ids for each token. Each list here is one
        # element of _sequence.
        self._sequence_pointers: NDArray[np.uint64] = np.arange(capacity, dtype=np.uint64)
        self._sequence_pointers *= np.uint64(4)
        self._sequence_pointers += np.uint64(self._sequence.ctypes.data)

        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.native = lib.llama_batch(
            n_tokens=0,
            token=pointer(self._token, lib.llama_token),
            embd=None,
            pos=pointer(self._position, lib.llama_pos),
            n_seq_id=pointer(self._one_each, ctypes.c_int32),
            seq_id=pointer(self._sequence_pointers, ctypes.POINTER(lib.llama_seq_id)),
            logits=pointer(self._needs_logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.n_tokens = 0
        self.output_tokens.clear()

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, n_outputs: int) -> int:
        """Append consecutive ``tokens`` of a sequence and request logits for the last ``n_outputs``.

        Returns:
            The row of the first of these logits in ``Context.logits``. The others follow.
        """
        begin, end = self.n_tokens, self.n_tokens + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = range(position, position + len(tokens))
        self._sequence[begin:end] = sequence
        self._needs_logits[begin:end] = 0
        self._needs_logits[end - n_outputs : end] = 1
        self.n_tokens = end
        first_row = len(self.output_tokens)
        self.output_tokens += range(end - n_outputs, end)
        return first_row
