"""Random weights in the quantized formats of GGUF files, and their values as gguf-py reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """A format of gguf-py, and the offsets of the f16 scale and the f16 minimum in a block."""

    name: str
    scale_at: int = 0
    minimum_at: int | None = None

    @property
    def type(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.name]

    @property
    def block(self) -> int:
        """Number of weights in a block."""
        return GGML_QUANT_SIZES[self.type][0]

    def random_bytes(self, rng: np.random.Generator, columns: int, k: int) -> Bytes:
        """Any quants, and scales of both signs. Minimums are about as large as scaled quants."""
        size = GGML_QUANT_SIZES[self.type][1]
        blocks = rng.integers(0, 256, (columns, k // self.block, size), np.uint8)
        scales = rng.uniform(1e-4, 1e-2, blocks.shape[:2]) * rng.choice((-1, 1), blocks.shape[:2])
        self.set_scales(blocks, scales)
        if self.minimum_at is not None:
            put_halves(blocks, self.minimum_at, rng.uniform(-8, 8, scales.shape) * scales)
        return blocks

    def set_scales(self, blocks: Bytes, scales: Any) -> None:
        put_halves(blocks, self.scale_at, scales)

    def halves(self) -> list[int]:
        """Offsets of the bytes of f16 numbers in a block."""
        starts = [self.scale_at] + ([] if self.minimum_at is None else [self.minimum_at])
        return [at + i for at in starts for i in (0, 1)]

    def values(self, blocks: Bytes) -> NDArray[np.float64]:
        """The weights, with shape (columns, k)."""
        return np.asarray(dequantize(blocks.reshape(len(blocks), -1), self.type), np.float64)

    def magnitudes(self, blocks: Bytes) -> NDArray[np.float64]:
        """The sum of |scale * quant| and |minimum| of each weight. Errors by rounding grow with it."""
        values = self.values(blocks)
        if self.minimum_at is None:
            return np.abs(values)
        without = blocks.copy()
        put_halves(without, self.minimum_at, 0)
        products = self.values(without)
        return np.abs(products) + np.abs(values - products)


def put_halves(blocks: Bytes, at: int, values: Any) -> None:
    """Store an f16 in bytes ``at`` and ``at + 1`` of each block."""
    halves = np.broadcast_to(np.asarray(values, np.float16), blocks.shape[:2])
    blocks[..., at : at + 2] = np.ascontiguousarray(halves)[..., None].view(np.uint8)


FORMATS = (
    Format("Q4_0"),
    Format("Q4_1", minimum_at=2),
    Format("Q5_0"),
    Format("Q5_1", minimum_at=2),
    Format("Q8_0"),
    Format("IQ4_NL"),
    Format("Q4_K", minimum_at=2),
    Format("Q5_K", minimum_at=2),
    Format("Q6_K", scale_at=208),
    Format("IQ4_XS"),
)
