"""Flash attention of our own against llama.cpp's plain attention, which computes the same another way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, KVOptions, Model, native_function
from tests.engine.conftest import TinyModel

Array = NDArray[np.float32]


@contextmanager
def context_of(model: Model, layout: str, *, flash: bool, n_threads: int) -> Iterator[Context]:
    kv = KVOptions(layout, flash)  # type: ignore[arg-type]
    context = Context(model, n_ctx=4096, n_sequences=4, n_batch=600, n_outputs=64, n_threads=n_threads, kv=kv)
    yield context
    context.close()


def logits_of(context: Context) -> list[Array]:
    """Prefills long and short, alone and together, and decodes: all shapes that a batch may have."""
    rng = random.Random(1)
    texts = [[rng.randrange(100, 40_000) for _ in range(800)] for _ in range(3)]
    lengths = [0, 0, 0]
    results = []
    batch = Batch(600)
    steps = [300, 0, 0], [40, 7, 0], [1, 0, 0], [1, 1, 0], [0, 1, 90], [1, 1, 1], [257, 0, 0], [1, 17, 5]
    for step in steps:
        batch.clear()
        for sequence, n in enumerate(step):
            if n:
                begin = lengths[sequence]
                batch.add(texts[sequence][begin : begin + n], begin, sequence, n_outputs=1)
                lengths[sequence] += n
        context.decode(batch)
        results.append(context.logits.copy())
    return results


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["split", "shared"])
@pytest.mark.parametrize("kind", ["default", "sliding-window", "hybrid"])
def test_it_computes_what_plain_attention_computes(
    model: Model, tiny_model: TinyModel, kind: str, layout: str, n_threads: int
) -> None:
    tested = model if kind == "default" else Model(tiny_model(kind))  # type: ignore[arg-type]
    with context_of(tested, layout, flash=True, n_threads=n_threads) as context:
        flash = logits_of(context)
    with context_of(tested, layout, flash=False, n_threads=n_threads) as context:
        plain = logits_of(context)
    for ours, theirs in zip(flash, plain, strict=True):
        assert np.isfinite(ours).all()
        # With quantized weights what they are multiplied with is rounded, too: last digits grow.
        least = 0.99 if kind == "default" else 0.9999
        assert all(np.corrcoef(a, b)[0, 1] > least for a, b in zip(ours, theirs, strict=True))
    if tested is not model:
        tested.close()


def test_it_is_part_of_the_library() -> None:
    assert native_function("tokenstream_flash_attn_ext", None)
