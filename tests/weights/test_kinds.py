"""Kinds of GGUF files that cannot be the model of a setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, PoolingType

from app.config import settings
from app.weights.embedding import resolve_embedding_model, resolve_rerank_model
from app.weights.model import ModelError, resolve_model

Write = Callable[[GGUFWriter], Any]


def write(path: Path, architecture: str, describe: Write, *, has_weights: bool = True) -> Path:
    writer = GGUFWriter(path, architecture)
    describe(writer)
    if has_weights:
        writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter(writer: GGUFWriter) -> None:
    writer.add_type("adapter")
    writer.add_string("general.base_model.0.name", "Qwen3 1.7B")


def part(writer: GGUFWriter) -> None:
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)


KINDS: list[tuple[str, Write, str]] = [
    (
        "llama",
        adapter,
        "it is a LoRA adapter of Qwen3 1.7B, so name its base model here, and set LORA=NAME=PATH to it",
    ),
    ("clip", lambda writer: None, "it is the projector of a vision model"),
    ("llama", lambda writer: writer.add_type("imatrix"), "it is an importance matrix"),
    (
        "llama",
        part,
        "it is part 2 of 3 of a split model, so end its name with -00002-of-00003.gguf, and name the first",
    ),
    ("bert", lambda writer: None, "it is an embedding model (bert), so set EMBEDDING_MODEL to it"),
    (
        "qwen3",
        lambda writer: writer.add_pooling_type(PoolingType.LAST),
        "it is an embedding model (qwen3), so set EMBEDDING_MODEL to it",
    ),
    (
        "qwen3",
        lambda writer: writer.add_pooling_type(PoolingType.RANK),
        "it is a reranker (qwen3), so set RERANK_MODEL to it",
    ),
    ("llada", lambda writer: writer.add_causal_attention(False), "does not generate text from left to right"),
]


@pytest.mark.parametrize(("architecture", "describe", "reason"), KINDS)
def test_the_kind_is_recognized_by_the_header(
    architecture: str, describe: Write, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.gguf", architecture, describe)
    with pytest.raises(ModelError) as error:
        resolve_model(settings.load(None, model_path=path))
    assert str(error.value).startswith(f"MODEL_PATH={path}: a.gguf cannot be used: ")
    assert reason in str(error.value)


def test_a_vocabulary_is_no_model_for_any_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "llama", lambda writer: None, has_weights=False)
    reason = "it has a vocabulary and no weights, so name the file with the weights"
    with pytest.raises(ModelError, match=reason):
        resolve_model(settings.load(None, model_path=path))
    with pytest.raises(ModelError, match=reason):
        resolve_embedding_model(settings.load(None, embedding_model=str(path)))


def test_embedding_models_and_rerankers_fit_their_settings(tmp_path: Path) -> None:
    embeds = write(tmp_path / "a.gguf", "bert", lambda writer: writer.add_pooling_type(PoolingType.MEAN))
    reranks = write(tmp_path / "b.gguf", "bert", lambda writer: writer.add_pooling_type(PoolingType.RANK))
    assert resolve_embedding_model(settings.load(None, embedding_model=str(embeds))) == embeds
    assert resolve_rerank_model(settings.load(None, rerank_model=str(reranks))) == reranks
    with pytest.raises(ModelError, match=r"EMBEDDING_MODEL=.*it is a reranker \(bert\)"):
        resolve_embedding_model(settings.load(None, embedding_model=str(reranks)))
