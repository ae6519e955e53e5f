"""The attention of the installed library equals f64 arithmetic and ggml's reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import attention_calls
from tests.native.attention_operation import (
    Operation,
    causal_mask,
    compute,
    expected,
    make_operation,
    packed,
)

SIZES = (64, 80, 96, 128, 256)

# Inputs are normal, so results are below 4. f32 sums of up to 2,000 products err by some 1e-6.
TOLERANCE = 3e-5
# The reference stores its sums of V in f16.
REFERENCE_TOLERANCE = 0.02
PACKED_REFERENCE_TOLERANCE = 0.1  # the reference rounds queries to 8 bits too


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def check(operation: Operation, n_threads: int = 1) -> None:
    before = attention_calls()
    found = compute(operation, n_threads)
    if before is None:  # the library lacks native/flash_attention.cpp, so ggml computed it
        np.testing.assert_allclose(found, expected(operation), atol=REFERENCE_TOLERANCE, rtol=0)
    else:
        assert attention_calls() == before + 1
        np.testing.assert_allclose(found, expected(operation), atol=TOLERANCE, rtol=0)
    reference = compute(operation, n_threads, reference=True)
    tolerance = PACKED_REFERENCE_TOLERANCE if operation.is_packed else REFERENCE_TOLERANCE
    np.testing.assert_allclose(found, reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 63, 64])
def test_any_number_of_rows_is_exact(rng: np.random.Generator, size: int, rows: int) -> None:
    check(make_operation(rng, size=size, rows=rows, keys=150, mask=causal_mask(rows, 150)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8])
def test_any_number_of_heads_per_kv_head_is_exact(rng: np.random.Generator, size: int, group: int) -> None:
    for rows in (1, 3):
        check(make_operation(rng, size=size, rows=rows, keys=70, group=group, mask=causal_mask(rows, 70)))


@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_keys_is_exact(rng: np.random.Generator, size: int) -> None:
    for keys in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 65, 100):
        check(make_operation(rng, size=size, rows=1, keys=keys, group=3))
        check(
            make_operation(rng, size=size, rows=min(keys, 5), keys=keys, mask=causal_mask(min(keys, 5), keys))
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [1, 8, 20, 64])
def test_sliding_windows_are_exact(rng: np.random.Generator, size: int, window: int) -> None:
    """Blocks of keys before the window are hidden from all rows."""
    check(make_operation(rng, size=size, rows=9, keys=333, group=2, mask=causal_mask(9, 333, window=window)))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.slow
def test_soft_caps_slopes_and_sinks_are_exact(
    rng: np.random.Generator, size: int, rows: int, n_threads: int
) -> None:
    """As in Gemma 2, MPT and gpt-oss. Two threads divide the keys of one row, and merge them."""
    keys, heads = 600, 6
    distance = np.arange(keys)[None] - np.arange(keys - rows, keys)[:, None]
    mask = np.where(distance > 0, -np.inf, distance).astype(np.float16)[None]
    plain = make_operation(rng, size=size, rows=rows, keys=keys, group=3, mask=causal_mask(rows, keys))
    sinks = np.array([-9, -1, 0, 1, 3, 20], np.float32)
    for operation in (
        replace(plain, cap=1.5),
        replace(plain, max_bias=8.0, mask=mask),
        replace(plain, sinks=sinks),
        replace(plain, cap=30.0, max_bias=8.0, mask=mask, sinks=sinks),
    ):
        assert operation.q.shape[1] == heads
        check(operation, n_threads)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.slow
def test_packed_keys_and_values_are_exact(rng: np.random.Generator, size: int, n_threads: int) -> None:
    for rows, keys, group in ((1, 1, 1), (1, 77, 3), (4, 300, 2), (7, 513, 1), (40, 600, 3)):
        mask = causal_mask(rows, keys, window=400) if rows <= keys else None
        operation = make_operation(rng, size=size, rows=rows, keys=keys, group=group, mask=mask, streams=1)
        check(packed(operation), n_threads)


@pytest.mark.parametrize("size", SIZES)
def test_streams_have_their_own_masks(rng: np.random.Generator, size: int) -> None:
    mask = rng.standard_normal((3, 6, 90), np.float32).astype(np.float16)
    mask[rng.random(mask.shape) < 0.7] = -np.inf
    mask[1, 2] = -np.inf  # a row without a visible key: its result is zero
    operation = make_operation(rng, size=size, rows=6, keys=90, group=3, streams=3, mask=mask)
    check(operation)
    assert not compute(operation, 1)[1, 2].any()


@pytest.mark.parametrize("size", SIZES)
def test_contents_of_hidden_keys_have_no_effect(rng: np.random.Generator, size: int) -> None:
    """Unused cells of a KV cache can hold NaN."""
    keys = 100
    visible: NDArray[np.bool_] = rng.random(keys) < 0.5
    mask = np.where(visible, 0, -np.inf).astype(np.float16)[None, None].repeat(4, axis=1)
    operation = make_operation(rng, size=size, rows=4, keys=keys, group=2, mask=mask)
    clean = compute(operation, 1)
    operation.k[:, :, ~visible] = np.nan
    operation.v[:, :, ~visible] = np.nan
    np.testing.assert_array_equal(compute(operation, 1), clean)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_threads", [2, 4])
def test_keys_divided_among_threads_are_exact(rng: np.random.Generator, size: int, n_threads: int) -> None:
    """With one row and many keys, each thread computes a part of the keys."""
    check(make_operation(rng, size=size, rows=1, keys=2000, group=4), n_threads)
    mask = causal_mask(1, 2000, window=300)  # most parts have no visible key
    check(make_operation(rng, size=size, rows=1, keys=2000, group=3, mask=mask), n_threads)


def test_large_scores_are_exact(rng: np.random.Generator) -> None:
    """Scores reach several hundred, and their maximum increases from block to block."""
    operation = make_operation(rng, size=64, rows=3, keys=200, group=2)
    operation.k[:] *= np.linspace(0, 100, 200, dtype=np.float16)[None, None, :, None]
    found = compute(operation, 1)
    np.testing.assert_allclose(found, expected(operation), atol=2e-3, rtol=0)
