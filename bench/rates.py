"""Prefill and decode without a server, in the default KV layout, as one measurement of the kernels.

python -m bench.rates MODEL THREADS STEPS MATMUL     prints tokens/s as JSON; MATMUL as in the settings
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from app.engine.llama import Batch, Context, KVOptions, Model, matmul_calls, start_matmul
from bench.bare import decode_rate

_N_PREFILL = 512  # tokens
_N_REPEATS = 3
_KV = KVOptions(flash_attention=True)


def prefill_rate(model: Model, n_threads: int) -> float:
    """Tokens per second of the prefill of a random prompt."""
    context = Context(model, n_ctx=_N_PREFILL, n_sequences=1, n_batch=_N_PREFILL, n_threads=n_threads, kv=_KV)
    batch = Batch(_N_PREFILL)
    seconds = []
    for _ in range(1 + _N_REPEATS):
        context.clear_sequence(0)
        batch.clear()
        prompt = [random.randrange(1000, model.vocab.n_tokens) for _ in range(_N_PREFILL)]
        batch.add(prompt, 0, 0, n_outputs=1)
        started = time.perf_counter()
        context.decode(batch)
        seconds.append(time.perf_counter() - started)
    context.close()
    return _N_PREFILL / median(seconds[1:])


def main(model_path: Path, n_threads: int, n_steps: int, matmul: str) -> None:
    """Print the rates of prefill and of decoding 1 and 8 sequences."""
    start_matmul(enabled=matmul == "auto")
    model = Model(model_path)
    rates = {"prefill": prefill_rate(model, n_threads)}
    for n_sequences in (1, 8):
        rates[f"rate_of_{n_sequences}"] = decode_rate(model, n_sequences, n_threads, n_steps, _KV)
    model.close()
    if matmul == "ggml" and matmul_calls():
        sys.exit(f"error: {matmul_calls()} matrix products were not computed by ggml")
    print(json.dumps(rates))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
