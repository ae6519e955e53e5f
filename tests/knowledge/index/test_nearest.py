"""Approximate nearest neighbours by packed vectors."""

from __future__ import annotations

import numpy as np
import pytest

from app.knowledge.index.nearest import VectorIndex, pack
from tests.knowledge.index.stores import (
    DIMENSIONS,
    some_vectors,
    unit,
)


@pytest.mark.parametrize("dimensions", [100, 384])
@pytest.mark.slow
def test_twice_as_many_packed_neighbours_contain_the_nearest(dimensions: int) -> None:
    spread = np.arange(1, dimensions + 1) ** -0.5  # the variance of embeddings differs between directions
    rng = np.random.default_rng(1)
    turned = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    vectors = unit((rng.standard_normal((12_000, dimensions)) * spread @ turned).astype(np.float32))
    queries = unit((rng.standard_normal((30, dimensions)) * spread @ turned).astype(np.float32))
    packed = pack(vectors)
    halves = [(1, 0, 5000, packed[:5000].tobytes()), (2, 5000, 7000, packed[5000:].tobytes())]
    index = VectorIndex.of_files(dimensions, halves)
    for query in queries:
        nearest = np.argsort(-(vectors @ query))
        found = index.nearest(query, 40, None)
        assert len({*found}) == 40
        assert {*nearest[:20].tolist()} <= {*found}
        of_second = [number for number in nearest.tolist() if number >= 5000]
        assert {*of_second[:20]} <= {*index.nearest(query, 40, [2])}


def test_rows_of_deleted_chunks_are_reused() -> None:
    vectors = some_vectors(3000)
    index = VectorIndex.of_files(DIMENSIONS, [])
    for turn in range(60):
        part = vectors[turn * 50 : turn * 50 + 50]
        before, number = index, turn * 50
        index = (index if turn < 2 else index.without_file(turn - 2)).with_file(turn, number, pack(part))
        assert len(index) == min(turn + 1, 2) * 50
        assert index.nearest(part[7], 1, None) == [number + 7]
        if turn:
            assert before.nearest(vectors[number - 50 + 7], 1, None) == [number - 50 + 7], (
                "a previous index is unchanged"
            )
    assert len(index.rows) <= 1024
    assert index.nearest(vectors[0], 5000, [0]) == []
