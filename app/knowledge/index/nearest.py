"""The vectors of all chunks in memory, a byte a component: the nearest are found by a look at every one.

At 384 dimensions 100,000 chunks take 38 MB, and a look at all of them 7 ms of a core.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simsimd

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_CAPACITY = 1024
_NONE = np.empty(0, np.int64)
_DELETED = -1  # in the place of a file's number


def pack(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Vectors (n, dimensions) with their largest component as 127: directions are what counts."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
    packed: NDArray[np.int8] = np.round(vectors * (127 / largest)).astype(np.int8)
    return packed


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """The packed vectors of all chunks. Never changed: another takes its place.

    That other may share the rows: it writes behind the last one in use here. Of two that were made of the
    same index, only the later may be used.

    Attributes:
        rows: (capacity, dimensions).
        chunks: The number of each row's chunk, (capacity,).
        files: The number of each row's file, (rows in use,).
    """

    rows: NDArray[np.int8]
    chunks: NDArray[np.int64]
    files: NDArray[np.int64]

    @classmethod
    def of_files(cls, dimensions: int, files: Iterable[tuple[int, int, int, bytes]]) -> VectorIndex:
        """Of (file, first chunk, number of chunks, their packed vectors).

        Raises:
            ValueError: A file's vectors have another size than its chunks.
        """
        rows, chunks, owners = [np.empty((0, dimensions), np.int8)], [_NONE], [_NONE]
        for file, first, n_chunks, packed in files:
            rows.append(np.frombuffer(packed, np.int8).reshape(n_chunks, dimensions))
            chunks.append(np.arange(first, first + n_chunks))
            owners.append(np.full(n_chunks, file))
        return cls(np.concatenate(rows), np.concatenate(chunks), np.concatenate(owners))

    def __len__(self) -> int:
        return int(np.count_nonzero(self.files != _DELETED))

    def with_file(self, file: int, first_chunk: int, packed: NDArray[np.int8]) -> VectorIndex:
        """This one and a file's chunks, numbered from ``first_chunk``."""
        index = self if len(self.files) + len(packed) <= len(self.rows) else self._with_room(len(packed))
        begin, end = len(index.files), len(index.files) + len(packed)
        index.rows[begin:end] = packed
        index.chunks[begin:end] = np.arange(first_chunk, first_chunk + len(packed))
        files = np.concatenate([index.files, np.full(len(packed), file)])
        return VectorIndex(index.rows, index.chunks, files)

    def without_file(self, file: int) -> VectorIndex:
        """This one less a file's chunks."""
        return VectorIndex(self.rows, self.chunks, np.where(self.files == file, _DELETED, self.files))

    def nearest(self, query: NDArray[np.float32], k: int, files: Collection[int] | None) -> list[int]:
        """The ``k`` chunks nearest to a query by packed vectors, in no order; fewer where there are fewer.

        Args:
            query: A vector, (dimensions,).
            k: How many.
            files: Only of these; None for all.
        """
        n = len(self.files)
        allowed = self.files != _DELETED if files is None else np.isin(self.files, list(files))
        k = min(k, int(np.count_nonzero(allowed)))
        if k == 0:
            return []
        distances = np.array(simsimd.cdist(pack(query[None]), self.rows[:n], "cosine")).reshape(n)
        distances[~allowed | np.isnan(distances)] = np.inf
        chunks: list[int] = self.chunks[np.argpartition(distances, k - 1)[:k]].tolist()
        return chunks

    def _with_room(self, n: int) -> VectorIndex:
        """The same without the rows of deleted chunks, with room for as many more, and for ``n``."""
        kept = np.flatnonzero(self.files != _DELETED)
        capacity = max(_LEAST_CAPACITY, 2 * len(kept) + n)
        rows = np.empty((capacity, self.rows.shape[1]), np.int8)
        chunks = np.empty(capacity, np.int64)
        rows[: len(kept)], chunks[: len(kept)] = self.rows[kept], self.chunks[kept]
        return VectorIndex(rows, chunks, self.files[kept])
