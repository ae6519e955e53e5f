"""A reranker: all-MiniLM-L6-v2 with a classifier of fixed random weights."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from app.weights import embedding, minilm

# A logit is the product of these and the last state of the first token. The standard deviation of logits is 1
# or 2.
CLASSIFIER: NDArray[np.float32] = np.random.default_rng(7).standard_normal(384, np.float32) / 5


def write_reranker(path: Path) -> Path:
    """Write the model to ``path``."""
    source, _ = embedding._package()
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "bert")
    minilm._add_description(writer, config)
    writer.kv_data[0]["bert.pooling_type"].value = gguf.PoolingType.RANK
    minilm._add_vocabulary(writer, json.loads((source / "tokenizer.json").read_text()))
    minilm._add_tensors(writer, source / "model.safetensors", config["num_hidden_layers"])
    writer.add_tensor("cls.output.weight", CLASSIFIER[None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
