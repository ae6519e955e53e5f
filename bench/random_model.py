"""Writes a model with random weights in the shape of Llama-3.2-1B, Q4_K_M, for measurements of speed.

``python -m bench.random_model`` prints its path, for commands such as ``tokenstream tune --model-path``.
Tokenizer and chat template are copied from the default model, so both models get the same prompts.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from app.machine.installation import bundled_model
from bench.quantize import MODELS, quantize

# Random query weights give almost uniform attention, so answers repeat a few tokens. This factor on the query
# weights makes attention selective.
_SHARPNESS = 4.0


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama model. Source of the defaults: config.json of Llama-3.2-1B."""

    n_layers: int = 16
    width: int = 2048
    n_heads: int = 32
    n_kv_heads: int = 8
    feed_forward: int = 8192
    rope_base: float = 500_000.0
    n_ctx: int = 131_072

    def matrices(self, n_vocab: int) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of every matrix. The output layer uses the embedding matrix."""
        kv_width = self.width * self.n_kv_heads // self.n_heads
        yield "token_embd.weight", n_vocab, self.width
        for layer in range(self.n_layers):
            yield f"blk.{layer}.attn_q.weight", self.width, self.width
            yield f"blk.{layer}.attn_k.weight", kv_width, self.width
            yield f"blk.{layer}.attn_v.weight", kv_width, self.width
            yield f"blk.{layer}.attn_output.weight", self.width, self.width
            yield f"blk.{layer}.ffn_gate.weight", self.feed_forward, self.width
            yield f"blk.{layer}.ffn_up.weight", self.feed_forward, self.width
            yield f"blk.{layer}.ffn_down.weight", self.width, self.feed_forward

    def norms(self) -> Iterator[str]:
        """Names of the normalization vectors, each of length ``width``."""
        yield "output_norm.weight"
        for layer in range(self.n_layers):
            yield f"blk.{layer}.attn_norm.weight"
            yield f"blk.{layer}.ffn_norm.weight"


def random_model(tokenizer_of: Path) -> Path:
    """Path of the model in the cache. Writes it if necessary: a few minutes, 3 GB of temporary disk space.

    Raises:
        BenchError: llama.cpp cannot quantize the model.
    """
    contents = f"{Shape()} {_SHARPNESS} {tokenizer_of.name} {tokenizer_of.stat().st_size}"
    key = hashlib.sha256(contents.encode()).hexdigest()[:16]
    path = MODELS / f"random-1b-{key}.Q4_K_M.gguf"
    if not path.exists():
        MODELS.mkdir(parents=True, exist_ok=True)
        print("Writing a random model of 1B parameters, usually about 3 min", file=sys.stderr, flush=True)
        write(path, Shape(), tokenizer_of)
    return path


def write(path: Path, shape: Shape, source: Path) -> None:
    """Write a model of ``shape`` with the tokenizer of ``source`` to ``path``, atomically.

    Raises:
        BenchError: llama.cpp cannot quantize the model.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        unquantized, finished = Path(folder, "f16.gguf"), Path(folder, path.name)
        _write_f16(unquantized, shape, gguf.GGUFReader(source))
        quantize(unquantized, finished, "Q4_K_M")
        finished.replace(path)


def _write_f16(path: Path, shape: Shape, source: gguf.GGUFReader) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.width // shape.n_heads)
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    matrices = list(shape.matrices(len(source.fields["tokenizer.ggml.tokens"].data)))
    for name, rows, columns in matrices:
        writer.add_tensor_info(name, (rows, columns), np.dtype(np.float16), rows * columns * 2)
    norms = list(shape.norms())
    for name in norms:
        writer.add_tensor_info(name, (shape.width,), np.dtype(np.float32), shape.width * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for name, rows, columns in matrices:
        writer.write_tensor_data(_weights(generator, name, rows, columns))
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.width, np.float32))
    writer.close()


def _weights(generator: np.random.Generator, name: str, rows: int, columns: int) -> NDArray[np.float16]:
    """Normal weights of variance 1 / columns, so that a product keeps the variance of its input."""
    weights = generator.standard_normal((rows, columns), np.float32)
    weights *= columns**-0.5 * (_SHARPNESS if "attn_q" in name else 1)
    return weights.astype(np.float16)


if __name__ == "__main__":
    if (default := bundled_model()) is None:
        sys.exit("error: the default model is missing: run `make install`")
    print(random_model(default))
