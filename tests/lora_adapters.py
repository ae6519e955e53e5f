"""LoRA adapters of the default model, made with gguf-py: random ones, and one without effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

RANK = 4
# Shape of SmolLM2-135M.
_N_LAYERS, _N_EMBD, _N_KV, _N_FF = 30, 576, 192, 1536
_SHAPES = {
    "attn_q": (_N_EMBD, _N_EMBD),
    "attn_v": (_N_EMBD, _N_KV),
    "ffn_down": (_N_FF, _N_EMBD),
}


def write_adapter(
    path: Path,
    *,
    seed: int = 1,
    strength: float = 0.2,
    n_layers: int = _N_LAYERS,
    architecture: str = "llama",
    kind: str = "lora",
    is_f16: bool = True,
    n_missing: int = 0,
) -> Path:
    """Write an adapter of rank RANK.

    Args:
        path: Destination.
        seed: Of the random values.
        strength: Size of the additions relative to typical weights. 0: B is zero, so nothing is added.
        n_layers: Number of layers with additions. More than the model has: it does not fit the model.
        architecture: Its general.architecture.
        kind: Its adapter.type.
        is_f16: Number format: F16, otherwise F32.
        n_missing: Number of values by which the rows of A are too short.
    """
    kind_of_number = np.float16 if is_f16 else np.float32
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(n_layers):
        for name, (n_in, n_out) in _SHAPES.items():
            a = random.normal(0, n_in**-0.5, (RANK, n_in - n_missing))
            b = random.normal(0, strength, (n_out, RANK)) if strength else np.zeros((n_out, RANK))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a.astype(kind_of_number))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b.astype(kind_of_number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
