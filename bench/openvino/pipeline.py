"""OpenVINO GenAI's continuous batching with a GGUF file."""

from __future__ import annotations

import openvino_genai as ov

# Prefixes are stored in the KV cache only, so it is larger than those of the other servers.
_KV_GB = 1
_N_BATCH = 512  # tokens


def load(
    model: str, *, n_threads: int, n_sequences: int, keep_prefixes: bool
) -> ov.ContinuousBatchingPipeline:
    """Compile the model for the CPU."""
    scheduler = ov.SchedulerConfig()
    scheduler.cache_size = _KV_GB
    scheduler.max_num_seqs = n_sequences
    scheduler.max_num_batched_tokens = _N_BATCH
    scheduler.enable_prefix_caching = keep_prefixes
    return ov.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": n_threads})


def greedy(n_tokens: int) -> ov.GenerationConfig:
    """Parameters of a greedy answer of exactly ``n_tokens``."""
    config = ov.GenerationConfig()
    config.do_sample = False
    config.ignore_eos = True
    config.max_new_tokens = n_tokens
    return config
