"""Decoding without a server: a loop of ``llama_decode`` and a greedy sampler.

python -m bench.bare MODEL THREADS     prints tokens/s of 1 and of 8 sequences as JSON
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from app.engine.llama import Batch, Context, KVOptions, Model
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler

N_PROMPT = 135  # tokens
_N_BATCH = 512


def decode_rate(model: Model, n_sequences: int, n_threads: int, n_tokens: int, kv: KVOptions) -> float:
    """Tokens per second of ``n_tokens`` decode steps of ``n_sequences`` with random prompts."""
    context = Context(
        model, n_ctx=2048 * n_sequences, n_sequences=n_sequences, n_batch=_N_BATCH, n_threads=n_threads, kv=kv
    )
    batch = Batch(_N_BATCH)
    sampler = make_sampler(SamplingParams(temperature=0, ignore_eos=True), model.vocab, ())
    last = []
    for sequence in range(n_sequences):
        batch.clear()
        prompt = [random.randrange(1000, model.vocab.n_tokens) for _ in range(N_PROMPT)]
        row = batch.add(prompt, 0, sequence, n_outputs=1)
        context.decode(batch)
        last.append(sampler.sample(context.logits[row]))
    started = time.perf_counter()
    for position in range(N_PROMPT, N_PROMPT + n_tokens):
        batch.clear()
        rows = [batch.add([token], position, sequence, n_outputs=1) for sequence, token in enumerate(last)]
        context.decode(batch)
        last = [sampler.sample(context.logits[row]) for row in rows]
    seconds = time.perf_counter() - started
    sampler.close()
    context.close()
    return n_tokens * n_sequences / seconds


def main(model_path: Path, n_threads: int) -> None:
    """Print the rates."""
    model = Model(model_path)
    rates = {f"rate_of_{n}": decode_rate(model, n, n_threads, 64, KVOptions()) for n in (1, 8)}
    model.close()
    print(json.dumps(rates))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
