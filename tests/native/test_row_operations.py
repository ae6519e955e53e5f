"""RMS norm and RoPE of native/row_operations.cpp equal f64 arithmetic and ggml. Rows are independent."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import start_backend
from tests.native import ggml
from tests.native.ggml import F32, I32, I64, P, call

Array = NDArray[np.float32]
EPSILON = 1e-5


class Graph:
    """Tensors of one operation in a context of their own."""

    def __init__(self) -> None:
        start_backend()
        self.context = ggml.new_context(1 << 24)

    def tensor(self, array: NDArray[np.float32] | NDArray[np.int32]) -> int:
        shape = [*array.shape[::-1], 1, 1, 1][:4]
        kind = F32 if array.dtype == np.float32 else I32
        sizes = [I64(n) for n in shape]
        tensor = int(call("ggml_new_tensor_4d", P, self.context, ctypes.c_int(kind), *sizes))
        data = np.ascontiguousarray(array)
        ctypes.memmove(call("ggml_get_data", P, tensor), data.ctypes.data, data.nbytes)
        return tensor

    def compute(self, result: int, shape: tuple[int, ...], n_threads: int, *, reference: bool) -> Array:
        graph = call("ggml_new_graph", P, self.context)
        call("ggml_build_forward_expand", None, graph, result)
        ggml.compute(graph, n_threads, reference=reference)
        pointer = ctypes.cast(call("ggml_get_data", P, result), ctypes.POINTER(ctypes.c_float))
        values = np.ctypeslib.as_array(pointer, (int(np.prod(shape)),)).reshape(shape).copy()
        call("ggml_free", None, self.context)
        return values


def norm(x: Array, weights: Array | None, n_threads: int) -> Array:
    graph = Graph()
    result = call("ggml_rms_norm", P, graph.context, graph.tensor(x), EPSILON)
    if weights is not None:
        result = call("ggml_mul", P, graph.context, result, graph.tensor(weights))
    return graph.compute(result, x.shape, n_threads, reference=False)


def rope(
    x: Array,
    positions: list[int],
    *,
    mode: int,
    n_dims: int,
    n_threads: int,
    factors: Array | None = None,
    yarn: bool = False,
    reference: bool = False,
) -> Array:
    """``x``: (positions, heads, head size)."""
    graph = Graph()
    numbers = (10_000.0, 0.25, 1.0, 1.1, 32.0, 1.0) if yarn else (10_000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
    result = call(
        "ggml_rope_ext",
        P,
        graph.context,
        graph.tensor(x),
        graph.tensor(np.array(positions, np.int32)),
        None if factors is None else graph.tensor(factors),
        *(ctypes.c_int(n) for n in (n_dims, mode, 512)),
        *numbers,
    )
    return graph.compute(result, x.shape, n_threads, reference=reference)


def values(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(1, 576), (7, 576), (33, 64), (5, 3, 100), (2, 3, 4, 7)], ids=str)
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_rms_norm(shape: tuple[int, ...], n_threads: int) -> None:
    x, weights = values(*shape), values(shape[-1])
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(norm(x, None, n_threads), expected, rtol=2e-6)
    np.testing.assert_allclose(norm(x, weights, n_threads), expected * weights, rtol=2e-6)


def test_a_norm_does_not_depend_on_other_rows() -> None:
    x, weights = values(9, 576), values(576)
    whole = norm(x, weights, 2)
    for row in range(9):
        assert norm(x[row : row + 1], weights, 1).tobytes() == whole[row].tobytes()


NORMAL, NEOX = 0, 2


@pytest.mark.parametrize("mode", [NORMAL, NEOX])
@pytest.mark.parametrize("n_dims", [64, 48, 10])
@pytest.mark.parametrize("options", [{}, {"yarn": True}, {"factors": True}], ids=str)
def test_rope_equals_that_of_ggml(mode: int, n_dims: int, options: dict[str, bool]) -> None:
    x, positions = values(11, 3, 64), [0, 1, 2, 3, 500, 9, 8, 100_000, 7, 7, 2]
    factors = 1 + np.abs(values(n_dims // 2)) if options.get("factors") else None

    def rotated(n_threads: int, *, reference: bool) -> Array:
        return rope(
            x,
            positions,
            mode=mode,
            n_dims=n_dims,
            n_threads=n_threads,
            factors=factors,
            yarn=options.get("yarn", False),
            reference=reference,
        )

    expected = rotated(1, reference=True)
    for n_threads in (1, 2, 4):
        np.testing.assert_allclose(rotated(n_threads, reference=False), expected, atol=3e-6)


def test_kept_rotations_fit_the_operation() -> None:
    """One thread rotates with other positions, sizes, modes and factors in turn."""
    few, many = values(2, 2, 64), values(40, 2, 64)
    factors = 1 + np.abs(values(32))
    operations: list[Callable[[bool], Array]] = [
        lambda r: rope(few, [5, 6], mode=NORMAL, n_dims=64, n_threads=1, reference=r),
        lambda r: rope(few, [6, 5], mode=NORMAL, n_dims=64, n_threads=1, reference=r),
        lambda r: rope(many, list(range(40)), mode=NORMAL, n_dims=64, n_threads=1, reference=r),
        lambda r: rope(few, [5, 6], mode=NEOX, n_dims=32, n_threads=1, reference=r),
        lambda r: rope(few, [5, 6], mode=NEOX, n_dims=64, n_threads=1, factors=factors, reference=r),
        lambda r: rope(few, [5, 6], mode=NEOX, n_dims=64, n_threads=1, factors=2 * factors, reference=r),
        lambda r: rope(few, [5, 6], mode=NEOX, n_dims=64, n_threads=1, reference=r),
    ]
    expected = [operation(True) for operation in operations]
    for _ in range(2):
        for operation, wanted in zip(operations, expected, strict=True):
            np.testing.assert_allclose(operation(False), wanted, atol=3e-6)
