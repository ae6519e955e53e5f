"""Logits of whole models are equal with flash attention and with llama.cpp's plain attention."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, KVOptions, Model, attention_calls
from tests.shallow_model import write_shallow_model
from tests.tiny_models import TinyModel

Array = NDArray[np.float32]


@contextmanager
def context_of(model: Model, *, flash: bool, n_threads: int) -> Iterator[Context]:
    kv = KVOptions(flash)
    context = Context(model, n_ctx=4096, n_sequences=4, n_batch=600, n_outputs=64, n_threads=n_threads, kv=kv)
    yield context
    context.close()


def logits_of(context: Context) -> list[Array]:
    """Logits of prefills and decodes, alone and together."""
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
@pytest.mark.parametrize("kind", ["default", "sliding-window", "hybrid"])
@pytest.mark.slow
def test_flash_and_plain_attention_have_equal_logits(
    model: Model, tiny_model: TinyModel, kind: str, n_threads: int, tmp_path: Path
) -> None:
    """Threads divide the work in each layer, so several threads compute four layers of the default model."""
    if kind != "default":
        tested = Model(tiny_model(kind))  # type: ignore[arg-type]
    elif n_threads == 1:
        tested = model
    else:
        tested = Model(write_shallow_model(tmp_path / "shallow.gguf", n_layers=4))
    with context_of(tested, flash=True, n_threads=n_threads) as context:
        flash = logits_of(context)
    with context_of(tested, flash=False, n_threads=n_threads) as context:
        plain = logits_of(context)
    for flash_logits, plain_logits in zip(flash, plain, strict=True):
        assert np.isfinite(flash_logits).all()
        # Quantized matrix products round their inputs, which increases small differences.
        min_correlation = 0.99 if kind == "default" else 0.9999
        assert all(
            np.corrcoef(a, b)[0, 1] > min_correlation for a, b in zip(flash_logits, plain_logits, strict=True)
        )
    if tested is not model:
        tested.close()


FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


@pytest.mark.skipif("avx2" not in FLAGS, reason="our attention needs AVX2")
def test_flash_attention_uses_our_kernel(model: Model) -> None:
    """Every layer of every decode with flash attention increases the counter."""
    batch = Batch(600)
    with context_of(model, flash=True, n_threads=2) as context:
        before = attention_calls()
        for tokens in ([1, 2, 3], [4]):
            batch.clear()
            batch.add(tokens, context.sequence_length(0), 0, n_outputs=1)
            context.decode(batch)
        after = attention_calls()
    assert before is not None
    assert after is not None
    assert after - before >= 2 * 30  # layers of the default model
    with context_of(model, flash=False, n_threads=2) as context:
        batch.clear()
        batch.add([1, 2, 3], 0, 0, n_outputs=1)
        context.decode(batch)
    assert attention_calls() == after
