"""The low-level face of llama.cpp: model, vocabulary, context with its KV memory, batch, sampler chain.

The only package that imports llama_cpp. Everything in it is a thin, typed owner of one native
object; what to compute, and when, is decided in scheduler.py and engine.py.
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
    last_complaint,
    native_function,
    start_backend,
)
from app.engine.llama.sampler import Sampler

__all__ = [
    "KV_TYPES",
    "POOLING",
    "Batch",
    "Context",
    "DecodeAborted",
    "DecodeError",
    "EmbeddingContext",
    "KVOptions",
    "Model",
    "ModelLoadError",
    "Sampler",
    "ThreadPool",
    "Vocab",
    "context_params",
    "last_complaint",
    "native_function",
    "smoke_decode",
    "start_backend",
]


def smoke_decode(path: Path, *, n_threads: int, gpu_layers: int, main_gpu: int = 0) -> int:
    """Load the model, decode one small batch, and choose a token: proof that the native library runs here.

    Returns:
        The chosen token.
    """
    model = Model(path, gpu_layers=gpu_layers, main_gpu=main_gpu)
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=n_threads)
    batch, sampler = Batch(64), Sampler(model.vocab)
    sampler.greedy()
    # More than one token, so that the matrix-matrix kernels (AMX among them) run and not only the
    # matrix-vector ones.
    batch.add([model.vocab.bos if model.vocab.bos >= 0 else 0] * 32, 0, 0, n_outputs=1)
    context.decode(batch)
    token = sampler.sample(context, 0)
    sampler.close()
    context.close()
    model.close()
    return token
