"""Graphs of GGML_OP_MUL_MAT and GGML_OP_MUL_MAT_ID on ggml's CPU backend, and the same products in f64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.llama import start_matmul
from tests.native import ggml
from tests.native.ggml import F16, F32, I32, I64, P, call
from tests.quantized_weights import Bytes, Format

Floats = NDArray[np.float32]

_MEMORY = 1 << 27  # bytes for inputs and results of a graph; untouched pages cost nothing


@dataclass(frozen=True)
class Tensor:
    """A ggml tensor. ``shape`` has numpy's order: values of the last axis are adjacent."""

    handle: int
    shape: tuple[int, ...]


def panels() -> int:
    """The buffer type of native/matmul.cpp. The CPU backend lists it first for weights."""
    start_matmul()
    registry = call("ggml_backend_cpu_reg", P)
    address = call("ggml_backend_reg_get_proc_address", P, registry, b"ggml_backend_dev_get_extra_bufts")
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(P), P)(address)(device())
    assert call("ggml_backend_buft_name", ctypes.c_char_p, listed[0]) == b"CPU_PANELS"
    return int(listed[0])


def device() -> int:
    return int(call("ggml_backend_reg_dev_get", P, call("ggml_backend_cpu_reg", P), ctypes.c_size_t(0)))


class Graph:
    """Operations on the CPU backend, computed in the order in which they are added."""

    def __init__(self, buffer_type: int) -> None:
        self._buffer_type = buffer_type
        self._context = ggml.new_context(_MEMORY)
        self._graph = call("ggml_new_graph", P, self._context)
        self._weights: list[tuple[int, int]] = []  # context and buffer of each

    def weights(self, of: Format, blocks: Bytes, experts: int = 1) -> Tensor:
        """A matrix, or one for each of ``experts``. ``blocks`` has the experts one after the other."""
        columns, k = len(blocks) // experts, blocks.shape[1] * of.block
        context = ggml.new_context(1 << 12, no_alloc=True)
        sizes = [I64(size) for size in (k, columns, experts)]
        handle = call("ggml_new_tensor_3d", P, context, ctypes.c_int(of.type), *sizes)
        buffer = call("ggml_backend_alloc_ctx_tensors_from_buft", P, context, self._buffer_type)
        size = ctypes.c_size_t(blocks.nbytes)
        data = np.ascontiguousarray(blocks).ctypes.data
        call("ggml_backend_tensor_set", None, handle, data, ctypes.c_size_t(0), size)
        self._weights.append((context, buffer))
        return Tensor(handle, (experts, columns, k))

    def input(self, values: NDArray[Any]) -> Tensor:
        kind = {"float32": F32, "float16": F16, "int32": I32}[values.dtype.name]
        shape = (1,) * (4 - values.ndim) + values.shape
        sizes = [I64(size) for size in shape[::-1]]
        tensor = Tensor(call("ggml_new_tensor_4d", P, self._context, ctypes.c_int(kind), *sizes), shape)
        self.write(tensor, values)
        return tensor

    def write(self, tensor: Tensor, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values)
        assert data.size == np.prod(tensor.shape)
        ctypes.memmove(call("ggml_get_data", P, tensor.handle), data.ctypes.data, data.nbytes)

    def first_values(self, tensor: Tensor, k: int) -> Tensor:
        """A view of the first ``k`` values of each row. Its rows are not adjacent."""
        strides = np.cumprod(tensor.shape[:0:-1]) * 4
        shape = (*tensor.shape[:-1], k)
        numbers = [*map(I64, shape[::-1]), *map(ctypes.c_size_t, strides), ctypes.c_size_t(0)]
        return Tensor(call("ggml_view_4d", P, self._context, tensor.handle, *numbers), shape)

    def swapped(self, tensor: Tensor) -> Tensor:
        """A view with axes 1 and 2 swapped, as llama.cpp swaps heads and positions."""
        axes = [ctypes.c_int(axis) for axis in (0, 2, 1, 3)]
        n3, n2, n1, k = tensor.shape
        return Tensor(call("ggml_permute", P, self._context, tensor.handle, *axes), (n3, n1, n2, k))

    def product(self, weights: Tensor, x: Tensor) -> Tensor:
        result = call("ggml_mul_mat", P, self._context, weights.handle, x.handle)
        self._add(result)
        return Tensor(result, (*x.shape[:-1], weights.shape[1]))

    def expert_product(self, weights: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """Shapes: ``x`` (tokens, rows, k), ``ids`` (tokens, choices), result (tokens, choices, columns)."""
        result = call("ggml_mul_mat_id", P, self._context, weights.handle, x.handle, ids.handle)
        self._add(result)
        return Tensor(result, (*ids.shape[-2:], weights.shape[1]))

    def result_of(self, function: str, shape: tuple[int, ...], *arguments: Tensor | float | None) -> Tensor:
        """The result of another operation, such as ``ggml_add``. ``shape`` is that of the result."""
        handles = [x.handle if isinstance(x, Tensor) else x for x in arguments]
        result = call(function, P, self._context, *handles)
        self._add(result)
        return Tensor(result, shape)

    def reshaped(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view of adjacent values in another shape."""
        sizes = [I64(size) for size in shape[::-1]]
        return Tensor(call("ggml_reshape_4d", P, self._context, tensor.handle, *sizes), shape)

    def keep(self, tensor: Tensor) -> None:
        """Mark a result as an output of the graph: it must be in memory after a run."""
        call("ggml_set_output", None, tensor.handle)

    def scale_in_place(self, x: Tensor, factor: float) -> None:
        """Overwrite ``x``. Operations that are added later read the new values."""
        self._add(call("ggml_scale_inplace", P, self._context, x.handle, factor))

    def _add(self, tensor: int) -> None:
        call("ggml_build_forward_expand", None, self._graph, tensor)

    def run(self, n_threads: int, *, pool: int | None = None) -> None:
        ggml.compute(self._graph, n_threads, pool=pool)

    def read(self, tensor: Tensor) -> Floats:
        data = ctypes.cast(call("ggml_get_data", P, tensor.handle), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, tensor.shape).copy()

    def close(self) -> None:
        for context, buffer in self._weights:
            call("ggml_backend_buffer_free", None, buffer)
            call("ggml_free", None, context)
        call("ggml_free", None, self._context)


@contextmanager
def graph(*, ours: bool = True) -> Iterator[Graph]:
    start_matmul()
    graph = Graph(panels() if ours else call("ggml_backend_cpu_buffer_type", P))
    yield graph
    graph.close()


def product(
    of: Format, blocks: Bytes, x: Floats, *, n_threads: int = 1, ours: bool = True, pool: int | None = None
) -> Floats:
    """The product of one matrix, computed by native/matmul.cpp or by ggml."""
    with graph(ours=ours) as g:
        result = g.product(g.weights(of, blocks), g.input(x))
        g.run(n_threads, pool=pool)
        return g.read(result).reshape(*x.shape[:-1], len(blocks))


def is_supported(kind: int, x_kind: int = F32, *, shape: tuple[int, int] = (256, 64)) -> bool:
    """Whether the CPU backend multiplies rows of ``x_kind`` with weights of ``kind`` in panels.

    llama.cpp checks this for each weight, with a buffer of no size.
    """
    context = ggml.new_context(1 << 14, no_alloc=True)
    k, columns = (I64(size) for size in shape)
    weights = call("ggml_new_tensor_2d", P, context, ctypes.c_int(kind), k, columns)
    x = call("ggml_new_tensor_2d", P, context, ctypes.c_int(x_kind), k, I64(512))
    operation = call("ggml_mul_mat", P, context, weights, x)
    buffer = call("ggml_backend_buft_alloc_buffer", P, panels(), ctypes.c_size_t(0))
    _Head.from_address(weights).buffer = buffer
    supported = bool(call("ggml_backend_dev_supports_op", ctypes.c_bool, device(), operation))
    call("ggml_backend_buffer_free", None, buffer)
    call("ggml_free", None, context)
    return supported


class _Head(ctypes.Structure):
    """The first fields of ``ggml_tensor``."""

    _fields_ = (("type", ctypes.c_int), ("buffer", P))
