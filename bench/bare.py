"""Decoding and prefill without a server: a loop of ``llama_decode``, and a greedy sampler for decoding.

python -m bench.bare decode MODEL THREADS     prints tokens/s of 1 and of 8 sequences as JSON
python -m bench.bare prefill MODEL THREADS N  prints tokens/s of a prompt of N tokens, in batches of 512
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from app.engine.llama import Batch, Context, KVOptions, Model
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler

N_PROMPT = 135  # tokens
_N_BATCH = 512
_N_PROMPTS = 3


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


def prefill_rate(model: Model, n_tokens: int, n_threads: int, kv: KVOptions) -> float:
    """Tokens per second of random prompts. Batches have at most 512 tokens."""
    context = Context(model, n_ctx=n_tokens, n_sequences=1, n_batch=_N_BATCH, n_threads=n_threads, kv=kv)
    batch = Batch(_N_BATCH)
    seconds = []
    for _ in range(1 + _N_PROMPTS):
        context.clear_sequence(0)
        prompt = [random.randrange(1000, model.vocab.n_tokens) for _ in range(n_tokens)]
        started = time.perf_counter()
        for begin in range(0, n_tokens, _N_BATCH):
            batch.clear()
            batch.add(prompt[begin : begin + _N_BATCH], begin, 0, n_outputs=1)
            context.decode(batch)
        seconds.append(time.perf_counter() - started)
    context.close()
    return n_tokens / median(seconds[1:])


def main(what: str, model_path: Path, n_threads: int, n_tokens: int = 0) -> None:
    """Print the rates."""
    model = Model(model_path)
    kv = KVOptions()
    if what == "prefill":
        rates = {"prefill": prefill_rate(model, n_tokens, n_threads, kv)}
    else:
        rates = {f"rate_of_{n}": decode_rate(model, n, n_threads, 64, kv) for n in (1, 8)}
    model.close()
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
