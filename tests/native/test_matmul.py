"""The matrix products of the installed library equal f64 arithmetic and ggml's kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from app.engine.llama import ThreadPool, matmul_calls
from tests.native.ggml import F16
from tests.native.matmul_operation import Floats, graph, is_supported, product
from tests.quantized_weights import FORMATS, Bytes, Format

COLUMNS = 70
ROWS = (1, 2, 3, 5, 7, 8, 12, 13, 16, 17, 33, 64, 97, 128, 250, 600)

# Limits of relative errors (RMS). native/matmul.cpp and ggml round activations to 8 bits.
EXACT_TOLERANCE = 0.01
GGML_TOLERANCE = 0.02

FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
pytestmark = pytest.mark.skipif("avx2" not in FLAGS, reason="our matrix kernels need AVX2")

each_format = pytest.mark.parametrize("of", FORMATS, ids=lambda of: of.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def length(of: Format) -> int:
    """Weights of a row: several blocks, an odd number of them where the format permits it."""
    return 2 * of.block if of.block == 256 else 7 * of.block


def activations(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, np.float32)


def error(found: Floats, expected: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same(found: Floats, expected: Floats) -> None:
    """Compare all bits."""
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@each_format
@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.slow
def test_a_product_equals_f64_arithmetic_and_ggml(
    rng: np.random.Generator, of: Format, n_threads: int
) -> None:
    blocks = of.random_bytes(rng, COLUMNS, length(of))
    for rows in ROWS:
        x = activations(rng, rows, length(of))
        before = matmul_calls()
        found = product(of, blocks, x, n_threads=n_threads)
        assert matmul_calls() == before + 1
        assert error(found, x @ of.values(blocks).T) < EXACT_TOLERANCE
        assert error(found, product(of, blocks, x, n_threads=n_threads, ours=False)) < GGML_TOLERANCE
        assert matmul_calls() == before + 1


@each_format
def test_results_do_not_depend_on_the_number_of_rows_or_threads(rng: np.random.Generator, of: Format) -> None:
    blocks = of.random_bytes(rng, COLUMNS, length(of))
    x = activations(rng, max(ROWS), length(of))
    whole = product(of, blocks, x)
    for n_threads in (2, 3, 7):
        assert_same(product(of, blocks, x, n_threads=n_threads), whole)
    for rows in ROWS:
        first = int(rng.integers(0, max(ROWS) - rows + 1))
        some = slice(first, first + rows)
        for n_threads in (1, 2, 3):
            assert_same(product(of, blocks, x[some], n_threads=n_threads), whole[some])


def test_any_number_of_rows_gives_the_same_results(rng: np.random.Generator) -> None:
    of = FORMATS[1]
    blocks = of.random_bytes(rng, COLUMNS, length(of))
    x = activations(rng, 600, length(of))
    whole = product(of, blocks, x)
    for rows in (*range(1, 70), *range(70, 600, 11)):
        assert_same(product(of, blocks, x[:rows], n_threads=2), whole[:rows])


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 33, 1000])
def test_any_number_of_columns_is_computed_exactly(rng: np.random.Generator, columns: int) -> None:
    """Some threads get no columns, or each thread gets several chunks."""
    for of in FORMATS:
        blocks = of.random_bytes(rng, columns, length(of))
        for rows in (1, 4, 100):
            x = activations(rng, rows, length(of))
            found = product(of, blocks, x, n_threads=3)
            # An average of few results varies more.
            assert error(found, x @ of.values(blocks).T) < 2 * EXACT_TOLERANCE
            assert_same(product(of, blocks, x), found)


def test_a_pool_smaller_than_n_threads_gives_the_same_results(rng: np.random.Generator) -> None:
    """ggml then computes with the threads of the pool."""
    of = FORMATS[1]
    blocks = of.random_bytes(rng, 1000, length(of))
    for rows in (1, 100):
        x = activations(rng, rows, length(of))
        pool = ThreadPool(2)
        found = product(of, blocks, x, n_threads=5, pool=pool.handle)
        pool.close()
        assert_same(found, product(of, blocks, x))


@each_format
def test_batches_views_and_swapped_axes_give_the_same_results(rng: np.random.Generator, of: Format) -> None:
    """src1 has ne2 and ne3 above 1, rows that are not adjacent, and swapped axes."""
    k, blocks = length(of), of.random_bytes(rng, COLUMNS, length(of))
    wide = activations(rng, 2, 3, 5, k + 40)
    x = wide[..., :k]
    whole = product(of, blocks, x.reshape(30, k)).reshape(2, 3, 5, COLUMNS)
    for n_threads in (1, 3):
        with graph() as g:
            weights, source = g.weights(of, blocks), g.input(wide)
            plain = g.product(weights, g.input(x))
            view = g.product(weights, g.first_values(source, k))
            swapped = g.product(weights, g.swapped(g.first_values(source, k)))
            g.run(n_threads)
            assert_same(g.read(plain), whole)
            assert_same(g.read(view), whole)
            assert_same(g.read(swapped), np.ascontiguousarray(whole.swapaxes(1, 2)))


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 9, 100])
def test_several_matrices_multiply_the_same_rows(rng: np.random.Generator, rows: int, n_threads: int) -> None:
    """Query, key and value matrices have one format or several. The rows may change between two products."""
    for formats in ([FORMATS[1]] * 3, FORMATS[:3], FORMATS[-3:]):
        k = 256
        matrices = [
            of.random_bytes(rng, columns, k) for of, columns in zip(formats, (48, 16, 70), strict=True)
        ]
        x = activations(rng, rows, k)
        for changed_before in (None, 1, 2):
            with graph() as g:
                source, results = g.input(x), []
                for i, (of, blocks) in enumerate(zip(formats, matrices, strict=True)):
                    if i == changed_before:
                        g.scale_in_place(source, 3.0)
                    results.append(g.product(g.weights(of, blocks), source))
                g.run(n_threads)
                for i, (of, blocks) in enumerate(zip(formats, matrices, strict=True)):
                    factor = 1 if changed_before is None or i < changed_before else 3
                    assert_same(g.read(results[i])[0, 0], product(of, blocks, x * np.float32(factor)))


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 9, 100])
def test_a_graph_computed_again_reads_its_inputs_again(
    rng: np.random.Generator, rows: int, n_threads: int
) -> None:
    of = FORMATS[1]
    matrices = [of.random_bytes(rng, columns, length(of)) for columns in (48, 16, 70)]
    inputs = [activations(rng, rows, length(of)) for _ in range(3)]
    expected = [[product(of, blocks, x) for blocks in matrices] for x in inputs]
    with graph() as g:
        source = g.input(inputs[0])
        results = [g.product(g.weights(of, blocks), source) for blocks in matrices]
        for x, products in zip(inputs, expected, strict=True):
            g.write(source, x)
            g.run(n_threads)
            for found, right in zip(results, products, strict=True):
                assert_same(g.read(found)[0, 0], right)


# --- experts

EXPERTS = 5
# Chosen experts of each token. In any order, expert 3 is never chosen.
CHOICES = {
    "any order": [[4, 0], [0, 4], [2, 1], [1, 2], [0, 1], [4, 2], [2, 0], [1, 4], [0, 2]],
    "one for all tokens": [[3, 3]] * 9,
    "one token": [[2, 0]],
    "one for each token": [[1], [1], [4]],
}


@each_format
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_a_product_with_experts_equals_separate_products(
    rng: np.random.Generator, of: Format, choices: list[list[int]]
) -> None:
    """src1 has one row for each token, or one for each chosen expert of a token."""
    k, blocks = length(of), of.random_bytes(rng, EXPERTS * COLUMNS, length(of))
    ids = np.array(choices, np.int32)
    tokens, n_chosen = ids.shape
    for rows in {1, n_chosen}:
        x = activations(rng, tokens, rows, k)
        expected = np.empty((tokens, n_chosen, COLUMNS), np.float32)
        for token, chosen in np.ndindex(tokens, n_chosen):
            expert = blocks[ids[token, chosen] * COLUMNS :][:COLUMNS]
            expected[token, chosen] = product(of, expert, x[token, chosen % rows][None])[0]
        for n_threads in (1, 2, 3):
            before = matmul_calls()
            found = expert_product(of, blocks, x, ids, n_threads=n_threads)
            assert matmul_calls() == before + 1
            assert_same(found, expected)
        by_ggml = expert_product(of, blocks, x, ids, n_threads=1, ours=False)
        assert error(found, by_ggml) < GGML_TOLERANCE


def test_many_tokens_with_experts_equal_ggml_and_fewer_tokens(rng: np.random.Generator) -> None:
    of, tokens = FORMATS[6], 300
    blocks = of.random_bytes(rng, EXPERTS * COLUMNS, length(of))
    ids = rng.integers(0, EXPERTS, (tokens, 2)).astype(np.int32)
    x = activations(rng, tokens, 1, length(of))
    whole = expert_product(of, blocks, x, ids, n_threads=3)
    by_ggml = expert_product(of, blocks, x, ids, n_threads=3, ours=False)
    assert error(whole, by_ggml) < GGML_TOLERANCE
    for some in (slice(0, 1), slice(7, 20), slice(100, 230)):
        assert_same(expert_product(of, blocks, x[some], ids[some], n_threads=2), whole[some])


def expert_product(
    of: Format, blocks: Bytes, x: Floats, ids: NDArray[np.int32], *, n_threads: int, ours: bool = True
) -> Floats:
    with graph(ours=ours) as g:
        result = g.expert_product(g.weights(of, blocks, EXPERTS), g.input(x), g.input(ids))
        g.run(n_threads)
        return g.read(result)


# --- operations that ggml computes


@each_format
def test_f16_rows_are_left_to_ggml(of: Format) -> None:
    assert is_supported(of.type)
    assert not is_supported(of.type, F16)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q2_K", "Q3_K", "IQ2_XS", "IQ3_S", "MXFP4", "TQ1_0"])
def test_other_formats_are_left_to_ggml(kind: str) -> None:
    assert not is_supported(GGMLQuantizationType[kind])
