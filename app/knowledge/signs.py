"""The signs of vectors' components: one bit each, and near vectors differ in few of them.

With b of d bits different, the angle between two vectors is about π·b/d (Charikar 2002, "Similarity
estimation techniques from rounding algorithms"). That picks candidates; their order is for the cosine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BY_SIGNS = 3000  # candidates by the signs of both vectors
_BY_QUERY = 400  # of these, candidates by the query itself and the signs of the chunk


def pack(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The signs of vectors (n, dimensions) as (n, words of 64 bits)."""
    packed = np.packbits(vectors > 0, axis=1)
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(padded).view("<u8")


@dataclass(frozen=True, slots=True)
class SignIndex:
    """The signs of all chunks. Never changed: another takes its place.

    Attributes:
        dimensions: Of the vectors.
        chunks: Their numbers, (n,).
        files: The number of each one's file, (n,).
        signs: (words of 64 bits, n): one word of all lies together.
    """

    dimensions: int
    chunks: NDArray[np.int64]
    files: NDArray[np.int64]
    signs: NDArray[np.uint64]

    @classmethod
    def of_files(cls, dimensions: int, rows: Iterable[tuple[int, int, int, bytes]]) -> SignIndex:
        """Of (file, first chunk, number of chunks, their packed signs).

        Raises:
            ValueError: A file's signs have another size than its chunks.
        """
        n_words = -(-dimensions // 64)
        numbers, files = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        packed = [np.empty((0, n_words), np.uint64)]
        for file, first, n_chunks, blob in rows:
            packed.append(np.frombuffer(blob, "<u8").reshape(n_chunks, n_words))
            numbers.append(np.arange(first, first + n_chunks))
            files.append(np.full(n_chunks, file))
        signs = np.ascontiguousarray(np.concatenate(packed).T)
        return cls(dimensions, np.concatenate(numbers), np.concatenate(files), signs)

    def __len__(self) -> int:
        return len(self.chunks)

    def with_file(self, file: int, first_chunk: int, packed: NDArray[np.uint64]) -> SignIndex:
        """This one and a file's chunks, numbered from ``first_chunk``."""
        numbers = np.arange(first_chunk, first_chunk + len(packed))
        return SignIndex(
            self.dimensions,
            np.concatenate([self.chunks, numbers]),
            np.concatenate([self.files, np.full(len(packed), file)]),
            np.concatenate([self.signs, packed.T], axis=1),
        )

    def without_file(self, file: int) -> SignIndex:
        """This one less a file's chunks."""
        return self._only(self.files != file)

    def nearest(self, query: NDArray[np.float32], files: Collection[int] | None) -> list[int]:
        """Chunks of which the nearest to a query are almost surely some; all where there are few.

        Args:
            query: A vector, (dimensions,).
            files: Only of these; None for all.
        """
        index = self if files is None else self._only(np.isin(self.files, list(files)))
        if len(index) > _BY_SIGNS:
            own = pack(query[None])[0]
            different = np.zeros(len(index), np.uint16)
            for of_query, of_chunks in zip(own, index.signs, strict=True):
                different += np.bitwise_count(of_chunks ^ of_query)
            # As many bits different as the last candidate has: counting is quicker than sorting.
            within = np.bincount(different, minlength=self.dimensions + 1).cumsum()
            index = index._only(different <= np.searchsorted(within, _BY_SIGNS))
        if len(index) > _BY_QUERY:
            near = _dot_with_bits(query, np.ascontiguousarray(index.signs.T).view(np.uint8))
            index = index._at(np.argpartition(-near, _BY_QUERY)[:_BY_QUERY])
        chunks: list[int] = index.chunks.tolist()
        return chunks

    def _only(self, chosen: NDArray[np.bool_]) -> SignIndex:
        return self._at(np.flatnonzero(chosen))

    def _at(self, places: NDArray[np.intp]) -> SignIndex:
        return SignIndex(self.dimensions, self.chunks[places], self.files[places], self.signs[:, places])


def _dot_with_bits(query: NDArray[np.float32], packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The sum of the query's components where a chunk's bit is set, of packed bits (n, bytes).

    Each byte picks one of the 256 sums that its eight components can have, an eighth of the additions.
    """
    n_bytes = packed.shape[1]
    components = np.zeros((n_bytes, 8), np.float32)
    components.flat[: len(query)] = query
    sums = components @ _BITS_OF_BYTES.T
    places = packed + np.arange(0, n_bytes * 256, 256)
    dots: NDArray[np.float32] = sums.ravel().take(places).sum(axis=1)
    return dots


_BITS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
