"""Prefill and decode with OpenVINO GenAI, without a server: the counterpart of ``bench.rates``.

.venv/openvino/bin/python -m bench.openvino.rates MODEL THREADS STEPS     prints tokens/s as JSON
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from statistics import median

import numpy as np
import openvino
import openvino_genai as ov

from bench.openvino.pipeline import greedy, load

_N_PREFILL = 512  # tokens
_N_PROMPT = 135  # tokens, as in bench.bare
_N_REPEATS = 3
_TOKENS = range(1000, 30000)  # random prompts draw from these; every model measured has them

_ids = itertools.count()


def _add(
    pipeline: ov.ContinuousBatchingPipeline, n_prompt: int, n_tokens: int
) -> ov.py_openvino_genai.GenerationHandle:
    prompt = np.array([random.choices(_TOKENS, k=n_prompt)], np.int64)
    return pipeline.add_request(next(_ids), openvino.Tensor(prompt), greedy(n_tokens))


def _received(handle: ov.py_openvino_genai.GenerationHandle) -> int:
    """Number of tokens that are new since the last call."""
    n_tokens = 0
    while handle.can_read():
        n_tokens += sum(len(output.generated_ids) for output in handle.read().values())
    return n_tokens


def prefill_rate(pipeline: ov.ContinuousBatchingPipeline) -> float:
    """Tokens per second of the prefill of a random prompt, up to the first token of the answer."""
    seconds = []
    for _ in range(1 + _N_REPEATS):
        handle = _add(pipeline, _N_PREFILL, 1)
        started = time.perf_counter()
        pipeline.step()
        seconds.append(time.perf_counter() - started)
        _check(_received(handle), 1)
    return _N_PREFILL / median(seconds[1:])


def decode_rate(pipeline: ov.ContinuousBatchingPipeline, n_sequences: int, n_steps: int) -> float:
    """Tokens per second of ``n_steps`` steps in which all sequences decode."""
    # Prompts are prefilled over several steps, so the first sequences are some tokens ahead.
    handles = [_add(pipeline, _N_PROMPT, n_steps + n_sequences) for _ in range(n_sequences)]
    waiting = set(handles)
    while waiting:
        pipeline.step()
        waiting = {handle for handle in waiting if not _received(handle)}
    for handle in handles:
        _received(handle)
    started = time.perf_counter()
    for _ in range(n_steps):
        pipeline.step()
    seconds = time.perf_counter() - started
    n_tokens = sum(map(_received, handles))
    _check(n_tokens, n_steps * n_sequences)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return n_tokens / seconds


def _check(n_tokens: int, expected: int) -> None:
    if n_tokens != expected:
        sys.exit(f"error: OpenVINO generated {n_tokens} tokens instead of {expected}")


def main(model: str, n_threads: int, n_steps: int) -> None:
    """Print the rates of prefill and of decoding 1 and 8 sequences."""
    pipeline = load(model, n_threads=n_threads, n_sequences=8, keep_prefixes=False)
    rates = {"prefill": prefill_rate(pipeline)}
    for n_sequences in (1, 8):
        decode_rate(pipeline, n_sequences, 2)  # the first steps of a shape compile kernels
        rates[f"rate_of_{n_sequences}"] = decode_rate(pipeline, n_sequences, n_steps)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
