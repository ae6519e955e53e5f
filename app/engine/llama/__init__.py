"""Typed wrappers of llama.cpp's objects: model, vocabulary, context with its KV cache, batch, sampler.

The only package that imports llama_cpp. Each class owns one native object. Scheduling is in ``app.engine``.
Source of every call: llama.cpp's ``include/llama.h`` and ``ggml-cpu.h``.
"""

from __future__ import annotations

from pathlib import Path

from app.engine.llama.batch import Batch
from app.engine.llama.context import KV_TYPES, Context, KVOptions, ThreadPool, context_params
from app.engine.llama.embedding import POOLING, EmbeddingContext
from app.engine.llama.model import Model, Vocab
from app.engine.llama.native import (
    DecodeAborted,
    DecodeError,
    ModelLoadError,
    UnsupportedLibraryError,
    attention_calls,
    last_error,
    matmul_calls,
    native_function,
    start_backend,
    start_matmul,
    supports_gpu,
)
from app.engine.llama.sampler import Logits, NoTokenError, Sampler, mask_logits, top_tokens

__all__ = [
    "KV_TYPES",
    "POOLING",
    "Batch",
    "Context",
    "DecodeAborted",
    "DecodeError",
    "EmbeddingContext",
    "KVOptions",
    "Logits",
    "Model",
    "ModelLoadError",
    "NoTokenError",
    "Sampler",
    "ThreadPool",
    "UnsupportedLibraryError",
    "Vocab",
    "attention_calls",
    "context_params",
    "last_error",
    "mask_logits",
    "matmul_calls",
    "native_function",
    "smoke_decode",
    "start_backend",
    "start_matmul",
    "supports_gpu",
    "top_tokens",
]


def smoke_decode(path: Path, *, n_threads: int, gpu_layers: int, main_gpu: int = 0) -> int:
    """Load the model and decode one small batch, to show that the native library runs on this CPU.

    Returns:
        The sampled token.
    """
    model = Model(path, gpu_layers=gpu_layers, main_gpu=main_gpu)
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=n_threads)
    batch, sampler = Batch(64), Sampler(temperature=0)
    # 32 tokens also test the matrix-matrix kernels, such as AMX.
    batch.add([model.vocab.bos if model.vocab.bos >= 0 else 0] * 32, 0, 0, n_outputs=1)
    context.decode(batch)
    token = sampler.sample(context.logits[0], 0)
    sampler.close()
    context.close()
    model.close()
    return token
