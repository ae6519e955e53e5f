"""Prefill and decode without a server, in the default KV layout, as one measurement of the kernels.

python -m bench.rates MODEL THREADS STEPS MATMUL     prints tokens/s as JSON; MATMUL as in the settings
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.engine.llama import KVOptions, Model, matmul_calls, start_matmul
from bench.bare import decode_rate, prefill_rate

_N_PREFILL = 512  # tokens
_KV = KVOptions(flash_attention=True)


def main(model_path: Path, n_threads: int, n_steps: int, matmul: str) -> None:
    """Print the rates of prefill and of decoding 1 and 8 sequences."""
    start_matmul(enabled=matmul == "auto")
    model = Model(model_path)
    rates = {"prefill": prefill_rate(model, _N_PREFILL, n_threads, _KV)}
    for n_sequences in (1, 8):
        rates[f"rate_of_{n_sequences}"] = decode_rate(model, n_sequences, n_threads, n_steps, _KV)
    model.close()
    if matmul == "ggml" and matmul_calls():
        sys.exit(f"error: {matmul_calls()} matrix products were not computed by ggml")
    print(json.dumps(rates))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
