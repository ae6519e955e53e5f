"""Logits of a sequence have the same bytes however it is divided into batches, and whatever runs beside it.

This holds for weights with our matrix kernels, with our attention. It holds for each layer, so a few suffice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, KVOptions, Model, attention_calls, matmul_calls
from tests.shallow_model import write_shallow_model

Array = NDArray[np.float32]

N_TOKENS = 290  # more than one part of the keys
N_SEQUENCES = 9
_rng = random.Random(7)
PROMPTS = [[_rng.randrange(100, 40_000) for _ in range(N_TOKENS)] for _ in range(8)]


def new_context(model: Model, n_threads: int, kv_type: str) -> Context:
    return Context(
        model,
        n_ctx=512 * N_SEQUENCES,
        n_sequences=N_SEQUENCES,
        n_batch=512,
        n_outputs=512,
        n_threads=n_threads,
        kv=KVOptions(True, kv_type),
    )


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(write_shallow_model(tmp_path_factory.mktemp("shallow") / "model.gguf", n_layers=4))
    yield model
    model.close()


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def kv_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(
    scope="module", params=[1, 2, pytest.param(3, marks=pytest.mark.slow)], ids=lambda n: f"{n} threads"
)
def context(request: pytest.FixtureRequest, shallow: Model, kv_type: str) -> Iterator[Context]:
    context = new_context(shallow, request.param, kv_type)
    yield context
    context.close()


@pytest.fixture(scope="module")
def expected(shallow: Model, kv_type: str) -> Array:
    """Logits of all positions of the first prompt, in one batch of one thread."""
    before = attention_calls(), matmul_calls()
    context = new_context(shallow, 1, kv_type)
    logits = decode(context, {0: N_TOKENS}, N_TOKENS)[0]
    context.close()
    if attention_calls() is None or before[0] == attention_calls() or before[1] == matmul_calls():
        pytest.skip("the library computes with ggml's kernels")
    return logits


@pytest.fixture(autouse=True)
def empty(context: Context) -> None:
    for sequence in range(N_SEQUENCES):
        context.clear_sequence(sequence)


def decode(context: Context, sizes: dict[int, int], n_outputs: int = 3) -> dict[int, Array]:
    """Decode the next ``sizes[sequence]`` tokens of each sequence in one batch.

    Returns the logits of the last ``n_outputs`` of them.
    """
    batch = Batch(512)
    rows = []
    for sequence, size in sizes.items():
        begin = context.sequence_length(sequence)
        tokens = PROMPTS[sequence % 8][begin : begin + size]
        rows.append(min(size, n_outputs))
        batch.add(tokens, begin, sequence, n_outputs=rows[-1])
    context.decode(batch)
    return dict(zip(sizes, np.split(context.logits.copy(), np.cumsum(rows)[:-1]), strict=True))


def check(context: Context, expected: Array, sequence: int, *batches: dict[int, int]) -> None:
    """The logits of ``sequence``, which has the first prompt, have the expected bytes after every batch."""
    for sizes in batches:
        found = decode(context, sizes)[sequence]
        end = context.sequence_length(sequence)
        assert found.tobytes() == expected[end - len(found) : end].tobytes(), f"near position {end}"


@pytest.mark.parametrize("size", [7, 32, 100, N_TOKENS])
@pytest.mark.slow
def test_chunks(context: Context, expected: Array, size: int) -> None:
    check(context, expected, 0, *({0: min(size, N_TOKENS - at)} for at in range(0, N_TOKENS, size)))


@pytest.mark.slow
def test_single_tokens(context: Context, expected: Array) -> None:
    check(context, expected, 0, *({0: n} for n in (254, 1, 1, 1, 1, 32)))


@pytest.mark.slow
def test_another_slot(context: Context, expected: Array) -> None:
    check(context, expected, 8, {8: N_TOKENS})


@pytest.mark.slow
def test_a_restored_state(context: Context, expected: Array) -> None:
    decode(context, {0: 200})
    assert context.restore_sequence(8, context.save_sequence(0))
    check(context, expected, 8, {8: N_TOKENS - 200})


@pytest.mark.slow
def test_a_truncated_sequence(context: Context, expected: Array) -> None:
    """A rejected draft leaves values in cells that are used again."""
    decode(context, {0: 100})
    batch = Batch(512)
    batch.add(PROMPTS[3][:20], 100, 0, n_outputs=1)
    context.decode(batch)
    context.truncate_sequence(0, 100)
    check(context, expected, 0, {0: 5}, {0: 185})


@pytest.mark.slow
def test_eight_sequences(context: Context, expected: Array) -> None:
    """Prefill and decode of eight equally long sequences."""
    check(context, expected, 0, *(dict.fromkeys(range(8), n) for n in (60, 60, 60, 60, 1, 1)))


@pytest.mark.slow
def test_sequences_of_other_lengths(context: Context, expected: Array) -> None:
    """llama.cpp divides these batches among several passes."""
    lengths = [64, 64, 64], [10, 50, 1, 1], [1, 1, 1, 1], [3, 1, 7, 20], [100, 1, 1], [30, 1, 30]
    check(context, expected, 0, *(dict(enumerate(sizes)) for sizes in lengths))
