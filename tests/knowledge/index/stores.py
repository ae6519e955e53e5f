"""Vectors, files and a store for tests of the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.knowledge.chunk import Chunk
from app.knowledge.index import tables
from app.knowledge.index.store import IndexedFile, Store

DIMENSIONS = 48
Vectors = NDArray[np.float32]


def unit(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def some_vectors(n: int, seed: int = 0, dimensions: int = DIMENSIONS) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((n, dimensions)))


def open_store(folder: Path, identity: str = "a") -> Store:
    return Store(folder, dimensions=DIMENSIONS, identity=identity)


def put(store: Store, name: str, texts: list[str], vectors: Vectors | None = None, mark: str = "1") -> None:
    chunks = [Chunk(name, n, "Heading", None, text) for n, text in enumerate(texts)]
    vectors = some_vectors(len(texts), len(name)) if vectors is None else vectors
    store.replace(IndexedFile(name, mark, 10, len(texts), None), chunks, vectors)


def search_words(store: Store, text: str, *, top_k: int = 5, files: list[str] | None = None) -> list[str]:
    """Search by words only."""
    with store._reading() as (db, _):
        numbers = list(
            tables.ranked_by_words(db, text, top_k, None if files is None else tables.file_ids(db, files))
        )
        chunks = tables.read_chunks(db, numbers)
    return [chunks[number].text for number in numbers]
