"""A row of the attention operation has the same bytes whatever is computed beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import attention_calls
from tests.native.attention_operation import Operation, causal_mask, compute, make_operation

ROWS, KEYS = 64, 700

pytestmark = pytest.mark.skipif(
    attention_calls() is None, reason="the library in use has ggml's attention only"
)


@pytest.fixture(scope="module", params=[(64, 3), (64, 1), (80, 4), (128, 7)], ids=str)
def operation(request: pytest.FixtureRequest) -> Operation:
    size, group = request.param
    rng = np.random.default_rng(1)
    mask = causal_mask(ROWS, KEYS)
    return make_operation(rng, size=size, rows=ROWS, keys=KEYS, group=group, kv_heads=3, mask=mask)


@pytest.fixture(scope="module")
def whole(operation: Operation) -> NDArray[np.float32]:
    return compute(operation, 1)


def rows_of(operation: Operation, begin: int, end: int) -> Operation:
    assert operation.mask is not None
    return replace(operation, q=operation.q[:, :, begin:end], mask=operation.mask[:, begin:end])


def padded(operation: Operation, n_keys: int) -> Operation:
    """More hidden cells, with contents that would be visible in any result."""
    assert operation.mask is not None
    more = n_keys - operation.k.shape[2]
    fill = ((0, 0), (0, 0), (0, more), (0, 0))
    mask = np.pad(operation.mask, ((0, 0), (0, 0), (0, more)), constant_values=-np.inf)
    k, v = (np.pad(x, fill, constant_values=np.nan) for x in (operation.k, operation.v))
    return replace(operation, k=k, v=v, mask=mask)


def assert_same_bytes(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4])
@pytest.mark.slow
def test_any_number_of_rows(operation: Operation, whole: NDArray[np.float32], n_threads: int) -> None:
    for n in range(1, ROWS + 1):
        assert_same_bytes(compute(rows_of(operation, 0, n), n_threads), whole[:, :n])


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4])
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 13, 32])
@pytest.mark.slow
def test_any_chunks(operation: Operation, whole: NDArray[np.float32], n_threads: int, chunk: int) -> None:
    for begin in range(0, ROWS, chunk):
        part = compute(rows_of(operation, begin, begin + chunk), n_threads)
        assert_same_bytes(part, whole[:, begin : begin + chunk])


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("n_keys", [701, 704, 768, 1024, 2048])
def test_hidden_cells(operation: Operation, whole: NDArray[np.float32], n_threads: int, n_keys: int) -> None:
    for begin, end in ((0, ROWS), (ROWS - 1, ROWS), (10, 15)):
        found = compute(padded(rows_of(operation, begin, end), n_keys), n_threads)
        assert_same_bytes(found, whole[:, begin:end])


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_other_sequences_beside(operation: Operation, whole: NDArray[np.float32], n_threads: int) -> None:
    others = make_operation(
        np.random.default_rng(2),
        size=operation.q.shape[3],
        rows=ROWS,
        keys=KEYS,
        group=operation.q.shape[1] // operation.k.shape[1],
        kv_heads=operation.k.shape[1],
        streams=5,
        mask=causal_mask(ROWS, KEYS, streams=5),
    )
    for place in (0, 3):
        for x, one in zip(
            (others.q, others.k, others.v), (operation.q, operation.k, operation.v), strict=True
        ):
            x[place] = one[0]
        for begin, end in ((0, ROWS), (20, 21), (40, 44)):
            found = compute(rows_of(others, begin, end), n_threads)
            assert_same_bytes(found[place], whole[0, begin:end])


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("window", [5, 40, 300])
def test_windows(operation: Operation, n_threads: int, window: int) -> None:
    """Blocks before a window are left out: which ones depends on the rows beside."""
    windowed = replace(operation, mask=causal_mask(ROWS, KEYS, window=window))
    whole = compute(windowed, 1)
    for begin, end in ((0, 1), (3, 10), (0, 40), (63, 64)):
        assert_same_bytes(compute(rows_of(windowed, begin, end), n_threads), whole[:, begin:end])
