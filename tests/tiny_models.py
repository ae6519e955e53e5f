"""Small GGUFs of random weights with other kinds of memory than the default model.

gemma3 has sliding windows and some full attention, mamba a recurrent state, and lfm2 a recurrent state and
attention. Other hybrids: qwen35 (gated delta nets), granitehybrid (Mamba 2), and falcon-h1 (both in every
layer). Tokenizer and chat template are those of the default model. Names of keys and tensors are those of
llama.cpp's ``src/models/`` and ``src/llama-arch.cpp``.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from tests.conftest import MODEL

Hybrid = Literal["qwen35", "granitehybrid", "falcon-h1"]
Kind = Literal["sliding-window", "recurrent", "hybrid", Hybrid]
KINDS: tuple[Kind, ...] = ("sliding-window", "recurrent", "hybrid")
HYBRIDS: tuple[Hybrid, ...] = get_args(Hybrid)
TinyModel = Callable[[Kind], Path]

WINDOW = 32  # tokens of a sliding window, its own position included
N_CTX_TRAIN = 4096

_N_EMBD = 64
_N_HEAD = 2
_HEAD_DIM = _N_EMBD // _N_HEAD
_N_FF = 128
_EPSILON = 1e-6
_MAMBA2 = (4, 2 * _N_EMBD, 16, 4)  # kernel of the convolution, inner size, size of a state, heads

Array = NDArray[np.float32] | NDArray[np.float16]


def write_tiny_model(kind: Kind, path: Path) -> Path:
    """Write the model of a kind, about 15 MB, to ``path``. The file is always the same."""
    architecture, write = _ARCHITECTURES[kind]
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"tiny {kind} model of random weights")
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(_N_EMBD)
    writer.add_layer_norm_rms_eps(_EPSILON)
    tokenizer = _tokenizer()
    for key, (value, value_type, element_type) in tokenizer.items():
        writer.add_key_value(key, value, value_type, element_type)
    n_vocab = len(tokenizer["tokenizer.ggml.tokens"][0])
    weights = _Weights(writer)
    # With the embedding as output matrix, the likeliest token would repeat the last one. Logits have a
    # standard deviation of 4, so the two highest are rarely close.
    weights.random("token_embd", (n_vocab, _N_EMBD), gain=1.0, dtype=np.float16)
    weights.random("output", (n_vocab, _N_EMBD), gain=4.0, dtype=np.float16)
    write(writer, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    """Adds tensors. Random ones preserve the scale of activations."""

    def __init__(self, writer: GGUFWriter) -> None:
        self._writer = writer
        self._generator = np.random.default_rng(20240229)

    def random(
        self, name: str, shape: tuple[int, int], *, gain: float = 1.0, dtype: type = np.float32
    ) -> None:
        """A matrix of ``shape`` (outputs, inputs)."""
        values = self._generator.standard_normal(shape, np.float32) * (gain / np.sqrt(shape[1]))
        self.add(f"{name}.weight", values.astype(dtype))

    def ones(self, name: str, n: int, *, times: float = 1.0) -> None:
        """The weights of a norm."""
        self.add(f"{name}.weight", np.full(n, times, np.float32))

    def feed_forward(self, block: str, *, has_norm: bool = True) -> None:
        if has_norm:
            self.ones(f"{block}.ffn_norm", _N_EMBD)
        self.random(f"{block}.ffn_gate", (_N_FF, _N_EMBD))
        self.random(f"{block}.ffn_up", (_N_FF, _N_EMBD))
        self.random(f"{block}.ffn_down", (_N_EMBD, _N_FF), gain=2.0)

    def attention(self, block: str, *, gates: int = 0, key_gain: float = 1.0) -> None:
        """Attention with one KV head. ``gates``: outputs of the query projection besides queries."""
        self.random(f"{block}.attn_q", (_N_HEAD * _HEAD_DIM + gates, _N_EMBD))
        self.random(f"{block}.attn_k", (_HEAD_DIM, _N_EMBD), gain=key_gain)
        self.random(f"{block}.attn_v", (_HEAD_DIM, _N_EMBD))
        self.random(f"{block}.attn_output", (_N_EMBD, _N_HEAD * _HEAD_DIM), gain=2.0)

    def key_norms(self, block: str) -> None:
        """Norms that make attention sharp, so single tokens of a long prefix have an effect."""
        self.ones(f"{block}.attn_q_norm", _HEAD_DIM, times=2.0)
        self.ones(f"{block}.attn_k_norm", _HEAD_DIM)

    def mamba2(self, block: str) -> None:
        """Mamba 2 with one group."""
        d_conv, d_inner, d_state, n_heads = _MAMBA2
        n_mixed = d_inner + 2 * d_state
        self.random(f"{block}.ssm_in", (d_inner + n_mixed + n_heads, _N_EMBD), gain=2.0)
        self.random(f"{block}.ssm_conv1d", (n_mixed, d_conv), gain=2.0)
        self.add(f"{block}.ssm_conv1d.bias", np.zeros(n_mixed, np.float32))
        # As for Mamba: some states depend on a token hundreds of positions earlier.
        self.add(f"{block}.ssm_dt.bias", np.linspace(-6.2, -2.2, n_heads, dtype=np.float32))
        self.add(f"{block}.ssm_a", -np.ones((n_heads, 1), np.float32))
        self.add(f"{block}.ssm_d", np.ones((n_heads, 1), np.float32))
        self.add(f"{block}.ssm_norm.weight", np.ones((1, d_inner), np.float32))
        self.random(f"{block}.ssm_out", (_N_EMBD, d_inner), gain=2.0)

    def add(self, name: str, values: Array) -> None:
        self._writer.add_tensor(name, values)


def _gemma3(writer: GGUFWriter, weights: _Weights) -> None:
    """Two of three layers have a sliding window, and the third has full attention."""
    n_layers = 6
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD_DIM)
    writer.add_value_length(_HEAD_DIM)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(WINDOW)
    writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
    weights.ones("output_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        weights.attention(block)
        weights.key_norms(block)
        weights.ones(f"{block}.post_attention_norm", _N_EMBD)
        weights.feed_forward(block)
        weights.ones(f"{block}.post_ffw_norm", _N_EMBD)


def _mamba(writer: GGUFWriter, weights: _Weights) -> None:
    n_layers, d_inner, d_state, d_conv, dt_rank = 4, 2 * _N_EMBD, 16, 4, 8
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    weights.ones("output_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        weights.random(f"{block}.ssm_in", (2 * d_inner, _N_EMBD), gain=2.0)
        weights.random(f"{block}.ssm_conv1d", (d_inner, d_conv), gain=2.0)
        weights.add(f"{block}.ssm_conv1d.bias", np.zeros(d_inner, np.float32))
        weights.random(f"{block}.ssm_x", (dt_rank + 2 * d_state, d_inner))
        weights.random(f"{block}.ssm_dt", (d_inner, dt_rank), gain=0.1)
        # The time step is softplus of this: 0.002 to 0.1. A state decays by exp(-step × 1…16) per token,
        # so some states depend on a token hundreds of positions earlier.
        weights.add(f"{block}.ssm_dt.bias", np.linspace(-6.2, -2.2, d_inner, dtype=np.float32))
        decay = np.arange(1, d_state + 1, dtype=np.float32)
        weights.add(f"{block}.ssm_a", -np.tile(decay, (d_inner, 1)))
        weights.add(f"{block}.ssm_d", np.ones(d_inner, np.float32))
        weights.random(f"{block}.ssm_out", (_N_EMBD, d_inner), gain=2.0)


def _lfm2(writer: GGUFWriter, weights: _Weights) -> None:
    """Every second layer is attention. The others are short convolutions with their last inputs as state."""
    n_layers, d_conv = 4, 3
    kv_heads = [layer % 2 for layer in range(n_layers)]  # 0 marks a layer as recurrent
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_shortconv_l_cache(d_conv)
    weights.ones("token_embd_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        if kv_heads[layer]:
            weights.attention(block)
            weights.key_norms(block)
        else:
            weights.random(f"{block}.shortconv.in_proj", (3 * _N_EMBD, _N_EMBD))
            weights.random(f"{block}.shortconv.conv", (_N_EMBD, d_conv), gain=2.0)
            weights.random(f"{block}.shortconv.out_proj", (_N_EMBD, _N_EMBD))
        weights.feed_forward(block)


def _qwen35(writer: GGUFWriter, weights: _Weights) -> None:
    """Every second layer is attention with gates. The others are gated delta nets."""
    n_layers, d_conv, d_state, n_heads = 4, 4, 32, 2
    d_inner = d_state * n_heads
    _add_attention_keys(writer, n_layers, [1] * n_layers)
    writer.add_key_length(_HEAD_DIM)
    writer.add_value_length(_HEAD_DIM)
    writer.add_rope_dimension_sections([8, 4, 4, 0])
    _add_state_keys(writer, d_conv, d_inner, d_state, n_heads, n_groups=n_heads)
    writer.add_uint32("qwen35.full_attention_interval", 2)
    weights.ones("output_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        if layer % 2:
            weights.attention(block, gates=_N_HEAD * _HEAD_DIM)
            weights.key_norms(block)
        else:
            weights.random(f"{block}.attn_qkv", (3 * d_inner, _N_EMBD), gain=2.0)
            weights.random(f"{block}.attn_gate", (d_inner, _N_EMBD))
            weights.random(f"{block}.ssm_conv1d", (3 * d_inner, d_conv), gain=2.0)
            weights.random(f"{block}.ssm_beta", (n_heads, _N_EMBD))
            weights.random(f"{block}.ssm_alpha", (n_heads, _N_EMBD), gain=0.1)
            # Decay per token: exp(softplus(-4) × -1), so a token has an effect over hundreds of positions.
            weights.add(f"{block}.ssm_dt.bias", np.full(n_heads, -4.0, np.float32))
            weights.add(f"{block}.ssm_a", np.full(n_heads, -1.0, np.float32))
            weights.ones(f"{block}.ssm_norm", d_state)
            weights.random(f"{block}.ssm_out", (_N_EMBD, d_inner), gain=2.0)
        weights.ones(f"{block}.post_attention_norm", _N_EMBD)
        weights.feed_forward(block, has_norm=False)


def _granite_hybrid(writer: GGUFWriter, weights: _Weights) -> None:
    """Every second layer is attention. The others are Mamba 2."""
    n_layers = 4
    kv_heads = [layer % 2 for layer in range(n_layers)]  # 0 marks a layer as recurrent
    _add_attention_keys(writer, n_layers, kv_heads)
    _add_state_keys(writer, *_MAMBA2, n_groups=1)
    weights.ones("output_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        if kv_heads[layer]:
            weights.attention(block, key_gain=4.0)
        else:
            weights.mamba2(block)
        weights.feed_forward(block)


def _falcon_h1(writer: GGUFWriter, weights: _Weights) -> None:
    """Every layer is attention beside Mamba 2."""
    n_layers = 3
    _add_attention_keys(writer, n_layers, [1] * n_layers)
    _add_state_keys(writer, *_MAMBA2, n_groups=1)
    weights.ones("output_norm", _N_EMBD)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm", _N_EMBD)
        weights.attention(block, key_gain=4.0)
        weights.mamba2(block)
        weights.feed_forward(block, has_norm=False)
        weights.add(f"{block}.ffn_norm", np.ones(_N_EMBD, np.float32))


def _add_attention_keys(writer: GGUFWriter, n_layers: int, kv_heads: list[int]) -> None:
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(1_000_000.0)


def _add_state_keys(
    writer: GGUFWriter, d_conv: int, d_inner: int, d_state: int, n_heads: int, *, n_groups: int
) -> None:
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(n_heads)
    writer.add_ssm_group_count(n_groups)


_ARCHITECTURES: dict[Kind, tuple[str, Callable[[GGUFWriter, _Weights], None]]] = {
    "sliding-window": ("gemma3", _gemma3),
    "recurrent": ("mamba", _mamba),
    "hybrid": ("lfm2", _lfm2),
    "qwen35": ("qwen35", _qwen35),
    "granitehybrid": ("granitehybrid", _granite_hybrid),
    "falcon-h1": ("falcon-h1", _falcon_h1),
}


# --- the tokenizer of the default model (gguf.GGUFReader needs seconds for its 98,000 strings)

_SCALARS = {
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
}

TypedValue = tuple[Any, GGUFValueType, GGUFValueType | None]


@functools.cache
def _tokenizer() -> dict[str, TypedValue]:
    """Keys of the default model under ``tokenizer.``: value, type, and type of array elements."""
    with MODEL.open("rb") as file:
        _magic, _version, _n_tensors, n_keys = struct.unpack("<4sIQQ", file.read(24))
        return {key: value for key, value in key_values(file, n_keys) if key.startswith("tokenizer.")}


def key_values(file: BinaryIO, n_keys: int) -> Iterator[tuple[str, TypedValue]]:
    for _ in range(n_keys):
        key = value_of(file, GGUFValueType.STRING)
        value_type = GGUFValueType(value_of(file, GGUFValueType.UINT32))
        if value_type is GGUFValueType.ARRAY:
            element_type = GGUFValueType(value_of(file, GGUFValueType.UINT32))
            length = value_of(file, GGUFValueType.UINT64)
            yield key, ([value_of(file, element_type) for _ in range(length)], value_type, element_type)
        else:
            yield key, (value_of(file, value_type), value_type, None)


def value_of(file: BinaryIO, value_type: GGUFValueType) -> Any:
    if value_type is GGUFValueType.STRING:
        return file.read(value_of(file, GGUFValueType.UINT64)).decode()
    format_ = _SCALARS[value_type]
    return struct.unpack(format_, file.read(struct.calcsize(format_)))[0]
