"""Losses and logits of a model for texts of the repository.

``start_matmul`` selects the kernels once in a process, so each selection has its own process.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine.llama import Batch, Context, Model, matmul_calls, start_matmul
from tests.conftest import ROOT
from tests.human_texts import HUMAN_TEXTS

_CHUNK = 512  # tokens, each with an empty KV cache
_LOGITS_STEP = 16  # logits of every 16th token are compared


@dataclass(frozen=True)
class Scores:
    """Results of one process."""

    losses: NDArray[np.float64]  # -log p of each token
    logits: NDArray[np.float32]
    calls: int  # matrix products of our kernels

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.losses.mean()))


def text() -> str:
    files = sorted(
        path for path in (ROOT / "tests/knowledge/corpus").rglob("*") if path.suffix in (".md", ".txt")
    )
    return "\n\n".join([*HUMAN_TEXTS, *(path.read_text() for path in (ROOT / "data/callowmere.md", *files))])


def score(model: Path, *, matmul: bool, n_tokens: int, folder: Path) -> Scores:
    """Score ``n_tokens`` tokens or a few more in a child process, with our kernels or with ggml's."""
    results = folder / f"{model.stem}-{matmul}.npz"
    command = [sys.executable, "-m", __name__, str(model), str(int(matmul)), str(n_tokens), str(results)]
    subprocess.run(command, cwd=ROOT, check=True)
    with np.load(results) as found:
        return Scores(found["losses"], found["logits"], int(found["calls"]))


def _main(path: str, matmul: str, n_tokens: str, results: str) -> None:
    start_matmul(enabled=matmul == "1")
    model = Model(Path(path))
    context = Context(model, n_ctx=_CHUNK, n_sequences=1, n_batch=_CHUNK, n_outputs=_CHUNK, n_threads=1)
    tokens = model.vocab.tokenize(text(), parse_special=False)
    losses, logits = [], []
    batch = Batch(_CHUNK)
    n_chunks = -(-int(n_tokens) // (_CHUNK - 1))  # the first token of a chunk has no loss
    for begin in range(0, n_chunks * _CHUNK, _CHUNK):
        chunk = tokens[begin : begin + _CHUNK]
        batch.clear()
        batch.add(chunk, 0, 0, n_outputs=_CHUNK)
        context.clear_sequence(0)
        context.decode(batch)
        rows = context.logits[:-1]
        highest = rows.max(axis=1)
        totals = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1, dtype=np.float64))
        losses.append(totals - rows[np.arange(len(rows)), chunk[1:]])
        logits.append(context.logits[::_LOGITS_STEP].copy())
    context.close()
    model.close()
    np.savez(results, losses=np.concatenate(losses), logits=np.concatenate(logits), calls=matmul_calls())


if __name__ == "__main__":
    _main(*sys.argv[1:])
