"""GGML_OP_FLASH_ATTN_EXT computed by the installed library, by ggml's reference and by numpy in f64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.llama import start_backend
from tests.native import ggml
from tests.native.ggml import F16, F32, I64, Q8_0, P, call


@dataclass(frozen=True)
class Operation:
    """Inputs of an attention: q (streams, heads, rows, size), k and v (streams, KV heads, keys, size).

    ``mask`` (streams, rows, keys) is added to the scores of every head.
    """

    q: NDArray[np.float32]
    k: NDArray[np.float16]
    v: NDArray[np.float16]
    mask: NDArray[np.float16] | None
    scale: float
    max_bias: float = 0.0  # of ALiBi
    cap: float = 0.0
    sinks: NDArray[np.float32] | None = None  # one per head
    is_packed: bool = False  # k and v are values of Q8_0, rounded to f16; see packed()


def make_operation(
    rng: np.random.Generator,
    *,
    size: int,
    rows: int,
    keys: int,
    group: int = 1,
    kv_heads: int = 2,
    streams: int = 1,
    mask: NDArray[np.float16] | None = None,
) -> Operation:
    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    return Operation(
        q=normal(streams, kv_heads * group, rows, size),
        k=normal(streams, kv_heads, keys, size).astype(np.float16),
        v=normal(streams, kv_heads, keys, size).astype(np.float16),
        mask=mask,
        scale=float(2 / np.sqrt(size)),  # larger than usual, to reveal errors in the weights
    )


def packed(operation: Operation) -> Operation:
    """The operation with k and v in Q8_0."""
    return replace(operation, k=_unpacked(operation.k), v=_unpacked(operation.v), is_packed=True)


def _blocks(x: NDArray[np.float16]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales and bytes of Q8_0: one scale for 32 values."""
    values = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    scales = np.abs(values).max(axis=-1, keepdims=True) / 127
    factors = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return scales.astype(np.float16), np.rint(values * factors).astype(np.int8)


def _unpacked(x: NDArray[np.float16]) -> NDArray[np.float16]:
    scales, quants = _blocks(x)
    return (scales.astype(np.float32) * quants).astype(np.float16).reshape(x.shape)


def causal_mask(rows: int, keys: int, *, window: int | None = None, streams: int = 1) -> NDArray[np.float16]:
    """A mask whose rows are the last positions of ``keys``. With a window, older keys are hidden."""
    position = np.arange(keys - rows, keys)[:, None] - np.arange(keys)[None, :]
    hidden = position < 0 if window is None else (position < 0) | (position >= window)
    mask = np.where(hidden, -np.inf, 0).astype(np.float16)
    return np.repeat(mask[None], streams, axis=0)


def expected(operation: Operation) -> NDArray[np.float64]:
    """The result in f64: (streams, rows, heads, size). A row without visible keys is zero."""
    group = operation.q.shape[1] // operation.k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (operation.k, operation.v))
    scores = operation.scale * (operation.q.astype(np.float64) @ k.swapaxes(2, 3))
    if operation.cap:
        scores = operation.cap * np.tanh(scores / operation.cap)
    visible = np.ones_like(scores, bool)
    if operation.mask is not None:
        mask = operation.mask.astype(np.float64)[:, None] * slopes(operation)[:, None, None]
        visible = np.broadcast_to(mask > -np.inf, scores.shape)
        scores = np.where(visible, scores + np.where(mask > -np.inf, mask, 0), -np.inf)
    highest = np.max(scores, axis=-1, keepdims=True)
    weights = np.where(visible, np.exp(scores - np.where(np.isfinite(highest), highest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    if operation.sinks is not None:
        total += np.where(np.isfinite(highest), np.exp(operation.sinks[:, None, None] - highest), 0)
    # Values of hidden keys may be NaN.
    hidden_everywhere = ~visible.any(axis=2)
    result = weights / np.where(total == 0, 1, total) @ np.where(hidden_everywhere[..., None], 0, v)
    return np.asarray(result.transpose(0, 2, 1, 3))


def slopes(operation: Operation) -> NDArray[np.float64]:
    """Slope of each head's mask (ALiBi, arXiv:2108.12409)."""
    n = operation.q.shape[1]
    if operation.max_bias == 0:
        return np.ones(n)
    power = 1 << int(np.log2(n))
    steps = [h + 1 if h < power else h - power + 0.5 for h in range(n)]
    return np.asarray(2.0 ** (-operation.max_bias / power * np.array(steps)))


class Computation:
    """A graph of one operation on ggml's CPU backend, with its own copies of the inputs."""

    def __init__(self, operation: Operation) -> None:
        start_backend()
        streams, heads, rows, size = operation.q.shape
        inputs = sum(x.nbytes for x in (operation.q, operation.k, operation.v)) + operation.q.nbytes
        inputs += 0 if operation.mask is None else operation.mask.nbytes
        self._context = ggml.new_context(inputs + (1 << 20))
        # The layout of llama.cpp: the heads of a position are adjacent, and a permutation swaps the axes.
        q = self._tensor(F32, operation.q.transpose(0, 2, 1, 3))
        k, v = (self._keys(x.transpose(0, 2, 1, 3), operation.is_packed) for x in (operation.k, operation.v))
        mask = None if operation.mask is None else self._tensor(F16, operation.mask[:, None])
        numbers = (operation.scale, operation.max_bias, operation.cap)
        self._result = call(
            "ggml_flash_attn_ext", P, self._context, *map(self._permuted, (q, k, v)), mask, *numbers
        )
        if operation.sinks is not None:
            sinks = self._tensor(F32, operation.sinks[None, None, None])
            call("ggml_flash_attn_ext_add_sinks", None, self._result, sinks)
        self._graph = call("ggml_new_graph", P, self._context)
        call("ggml_build_forward_expand", None, self._graph, self._result)
        self._shape = (streams, rows, heads, size)

    def run(self, n_threads: int, *, reference: bool = False) -> NDArray[np.float32]:
        ggml.compute(self._graph, n_threads, reference=reference)
        data = call("ggml_get_data", P, self._result)
        count = int(np.prod(self._shape))
        values = np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (count,))
        return values.reshape(self._shape).copy()

    def close(self) -> None:
        call("ggml_free", None, self._context)

    def _tensor(self, kind: int, array: NDArray[Any], shape: tuple[int, ...] | None = None) -> int:
        sizes = [I64(n) for n in (shape or array.shape)[::-1]]
        tensor = call("ggml_new_tensor_4d", P, self._context, ctypes.c_int(kind), *sizes)
        data = np.ascontiguousarray(array)
        ctypes.memmove(call("ggml_get_data", P, tensor), data.ctypes.data, data.nbytes)
        return int(tensor)

    def _keys(self, array: NDArray[np.float16], is_packed: bool) -> int:
        if not is_packed:
            return self._tensor(F16, array)
        scales, quants = _blocks(array)
        data = np.concatenate([scales.view(np.int8), quants], axis=-1)
        return self._tensor(Q8_0, data.reshape(*array.shape[:-1], -1), array.shape)

    def _permuted(self, tensor: int) -> int:
        axes = [ctypes.c_int(axis) for axis in (0, 2, 1, 3)]
        return int(call("ggml_permute", P, self._context, tensor, *axes))


def compute(operation: Operation, n_threads: int, *, reference: bool = False) -> NDArray[np.float32]:
    computation = Computation(operation)
    try:
        return computation.run(n_threads, reference=reference)
    finally:
        computation.close()
