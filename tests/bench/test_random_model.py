"""A small random model loads, and its answers vary and depend on the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.engine.llama import Batch, Context, Model
from bench import random_model
from bench.client import BenchError
from bench.random_model import write
from tests.bench.conftest import SMALL
from tests.conftest import MODEL


def answer(model: Model, prompt: list[int], n_tokens: int) -> list[int]:
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=128, n_threads=1)
    batch, tokens = Batch(128), list(prompt)
    batch.add(prompt, 0, 0, n_outputs=1)
    for position in range(len(prompt), len(prompt) + n_tokens):
        context.decode(batch)
        assert np.isfinite(context.logits).all()
        tokens.append(int(context.logits[0].argmax()))
        batch.clear()
        batch.add(tokens[-1:], position, 0, n_outputs=1)
    context.close()
    return tokens[len(prompt) :]


def test_a_random_model_is_q4_k_m_with_the_tokenizer_of_the_default_model(small_model: Path) -> None:
    model, other = Model(small_model), Model(MODEL, vocab_only=True)
    assert "Q4_K - Medium" in model.description
    assert model.chat_template == other.chat_template
    text = "<|im_start|>user\nGeese?"
    assert model.vocab.tokenize(text, parse_special=True) == other.vocab.tokenize(text, parse_special=True)
    model.close()
    other.close()


def test_answers_vary_and_depend_on_the_prompt(small_model: Path) -> None:
    model = Model(small_model)
    prompt = list(range(1000, 1064))
    first, other = answer(model, prompt, 64), answer(model, [999, *prompt[1:]], 64)
    model.close()
    assert len(set(first)) > 32
    assert first != other


def test_a_failed_quantization_leaves_no_file(
    tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(random_model, "_write_f16", lambda path, *_: path.write_bytes(b"no GGUF"))
    with pytest.raises(BenchError, match="cannot be quantized"):
        write(folder / "model.gguf", SMALL, small_file)
    assert list(folder.iterdir()) == []
