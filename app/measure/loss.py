"""Loss of a model for a bundled text: the logarithm of its perplexity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, Model

# Beginnings of works in the public domain: Lincoln 1863, Austen 1813, Melville 1851, Carroll 1865,
# Darwin 1859, the Declaration of Independence 1776, Conan Doyle 1891, Dickens 1859.
TEXT = Path(__file__).parent / "text.txt"

_CHUNK = 256  # tokens, each chunk with an empty KV cache
_ROWS = 32  # of logits at once: a row has a float for each token of the vocabulary


def mean_loss(model: Model, n_threads: int, n_tokens: int | None = None) -> float:
    """Mean of ``-log p`` of the tokens of the text.

    Args:
        model: The weights.
        n_threads: Compute threads.
        n_tokens: Number of tokens, rounded up to a whole chunk; None: the whole text.
    """
    tokens = model.vocab.tokenize(TEXT.read_text(encoding="utf-8"), parse_special=False)[:n_tokens]
    context = Context(
        model, n_ctx=_CHUNK, n_sequences=1, n_batch=_CHUNK, n_outputs=_CHUNK, n_threads=n_threads
    )
    losses = []
    try:
        batch = Batch(_CHUNK)
        for begin in range(0, len(tokens), _CHUNK):
            chunk = tokens[begin : begin + _CHUNK]
            batch.clear()
            batch.add(chunk, 0, 0, n_outputs=len(chunk))
            context.clear_sequence(0)
            context.decode(batch)
            losses.append(_losses(context.logits[:-1], chunk[1:]))
    finally:
        context.close()
    return float(np.concatenate(losses).mean())


def _losses(logits: NDArray[np.float32], tokens: list[int]) -> NDArray[np.float64]:
    losses = np.empty(len(tokens))
    for begin in range(0, len(tokens), _ROWS):
        rows = logits[begin : begin + _ROWS].astype(np.float64)
        highest = rows.max(axis=1)
        totals = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
        chosen = rows[np.arange(len(rows)), tokens[begin : begin + _ROWS]]
        losses[begin : begin + _ROWS] = totals - chosen
    return losses
