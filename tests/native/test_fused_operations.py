"""Operations that are computed together give the same bytes as one by one, without results between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.engine.llama import attention_calls
from tests.native.matmul_operation import Floats, Graph, Tensor, graph
from tests.quantized_weights import FORMATS, Bytes

OF = FORMATS[1]
SIZE, INNER = 8 * OF.block, 10 * OF.block
HEADS, HEAD_SIZE, KEYS = 4, 64, 300

FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
pytestmark = [
    pytest.mark.skipif("avx2" not in FLAGS, reason="our matrix kernels need AVX2"),
    pytest.mark.skipif(attention_calls() is None, reason="the library in use has ggml's attention only"),
]

each_size = pytest.mark.parametrize(("rows", "n_threads"), [(1, 2), (9, 1), (20, 3), (150, 2), (300, 3)])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, np.float32)


def run(g: Graph, between: list[Tensor], result: list[Tensor], n_threads: int, *, fused: bool) -> list[bytes]:
    """Bytes of the results. With ``fused``, no memory of the tensors between is written."""
    for tensor in between:
        g.write(tensor, np.full(tensor.shape, np.nan, np.float32))
        if not fused:
            g.keep(tensor)
    g.run(n_threads)
    assert all(np.isnan(g.read(tensor)).all() == fused for tensor in between)
    return [g.read(tensor).tobytes() for tensor in result]


@each_size
def test_a_feed_forward_network(rng: np.random.Generator, rows: int, n_threads: int) -> None:
    """Sum, norm, gate and up, SiLU(gate)*up, down."""
    x, y, scales = normal(rng, rows, SIZE), normal(rng, rows, SIZE), normal(rng, SIZE)
    matrices = [OF.random_bytes(rng, *shape) for shape in ((INNER, SIZE), (INNER, SIZE), (SIZE, INNER))]
    found = []
    for fused in (True, False):
        with graph() as g:
            wide, narrow = (1, 1, rows, INNER), (1, 1, rows, SIZE)
            total = g.result_of("ggml_add", narrow, g.input(x), g.input(y))
            norm = g.result_of("ggml_rms_norm", narrow, total, 1e-5)
            scaled = g.result_of("ggml_mul", narrow, norm, g.input(scales))
            gate, up = (g.product(g.weights(OF, blocks), scaled) for blocks in matrices[:2])
            gated = g.result_of("ggml_swiglu_split", wide, gate, up)
            down = g.product(g.weights(OF, matrices[2]), gated)
            found.append(run(g, [norm, scaled, gate, up, gated], [total, down], n_threads, fused=fused))
    assert found[0] == found[1]


def attention(g: Graph, inputs: list[Tensor], rows: int, weights: Bytes) -> tuple[Tensor, Tensor]:
    """Attention, and a product that reads it."""
    plain = (1.0, 0.0, 0.0)  # scale, no ALiBi, no cap
    result = g.result_of("ggml_flash_attn_ext", (1, rows, HEADS, HEAD_SIZE), *inputs, None, *plain)
    joined = g.reshaped(result, (1, 1, rows, HEADS * HEAD_SIZE))
    return result, g.product(g.weights(OF, weights), joined)


@each_size
def test_attention(rng: np.random.Generator, rows: int, n_threads: int) -> None:
    """Threads divide the keys of few rows, and merge the parts."""
    q = normal(rng, HEADS, rows, HEAD_SIZE)
    k, v = (normal(rng, HEADS // 2, KEYS, HEAD_SIZE).astype(np.float16) for _ in range(2))
    weights = OF.random_bytes(rng, 70, HEADS * HEAD_SIZE)
    found = []
    for fused in (True, False):
        with graph() as g:
            result, product = attention(g, [g.input(x) for x in (q, k, v)], rows, weights)
            found.append(run(g, [result], [product], n_threads, fused=fused))
    assert found[0] == found[1]


def test_a_norm_with_another_reader_is_stored(rng: np.random.Generator) -> None:
    """The result is that of ggml's norm, with the product beside it."""
    x, scales = normal(rng, 50, SIZE), normal(rng, SIZE)
    with graph() as g:
        norm = g.result_of("ggml_rms_norm", (1, 1, 50, SIZE), g.input(x), 1e-5)
        scaled = g.result_of("ggml_mul", norm.shape, norm, g.input(scales))
        g.product(g.weights(OF, OF.random_bytes(rng, 70, SIZE)), scaled)
        doubled = g.result_of("ggml_add", norm.shape, scaled, scaled)
        g.run(2)
        expected = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * scales
        np.testing.assert_allclose(g.read(scaled)[0, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(g.read(doubled)[0, 0], 2 * expected, rtol=1e-5)
