"""The converted all-MiniLM-L6-v2 has the tokens and vectors of sentence-transformers.

minilm_reference.json lists the versions that computed it. Its vectors have length 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.config.settings import load
from app.engine.embedder import Embedder, normalized
from app.weights.embedding import resolve_embedding_model

REFERENCE = json.loads((Path(__file__).parent / "minilm_reference.json").read_text(encoding="utf-8"))
TEXTS: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in REFERENCE["texts"]}

# Texts that llama.cpp's tokenizer for BERT tokenizes differently.
DIFFERENT = {
    # It keeps the first code point of a decomposition: one letter of a Korean syllable.
    "korean",
    # It drops all combining marks, including spacing ones such as vowels of Hindi.
    "hindi",
    # It has no maximum word length; sentence-transformers maps words above 100 characters to [UNK].
    "a very long word",
}


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    embedder = Embedder(resolve_embedding_model(load(None)), n_threads=1)
    yield embedder
    embedder.close()


def truncated(tokens: list[int]) -> list[int]:
    """Truncate like sentence-transformers, which keeps the last token."""
    limit = REFERENCE["max_tokens"]
    return tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]


def test_the_metadata_are_those_of_the_model(embedder: Embedder) -> None:
    assert embedder.name == "all-MiniLM-L6-v2"
    assert embedder.dimensions == 384
    assert embedder.max_tokens == 512
    assert embedder.pooling == "mean"


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in DIFFERENT])
def test_tokens_and_vectors_equal_the_reference(embedder: Embedder, name: str) -> None:
    tokens = truncated(embedder.tokenize(TEXTS[name]["text"]))
    assert tokens == TEXTS[name]["tokens"]
    [vector] = normalized(embedder.submit([tokens]).result(60))
    assert vector @ np.array(TEXTS[name]["vector"]) >= 0.999


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_vectors_of_reference_tokens_equal_the_reference_where_the_tokenizer_differs(
    embedder: Embedder, name: str
) -> None:
    assert embedder.tokenize(TEXTS[name]["text"]) != TEXTS[name]["tokens"], (
        "the tokens are equal: remove the text from DIFFERENT"
    )
    [vector] = normalized(embedder.submit([TEXTS[name]["tokens"]]).result(60))
    assert vector @ np.array(TEXTS[name]["vector"]) >= 0.999


def test_texts_of_one_batch_do_not_affect_each_other(embedder: Embedder) -> None:
    entries = [TEXTS[name] for name in TEXTS]
    vectors = normalized(embedder.submit([entry["tokens"] for entry in entries]).result(60))
    cosines = np.sum(vectors * np.array([entry["vector"] for entry in entries]), axis=1)
    assert cosines.min() >= 0.999


def test_names_of_control_tokens_are_plain_text(embedder: Embedder) -> None:
    begin, *middle, end = embedder.tokenize("[SEP] [CLS] [PAD]")
    assert (begin, end) == (101, 102)
    assert not {0, 100, 101, 102, 103} & set(middle)


def test_related_texts_are_nearer(embedder: Embedder) -> None:
    texts = ["When does the bridge open?", "The bridge opens at six.", "Mix flour and butter."]
    question, passage, other = normalized(embedder.submit([embedder.tokenize(t) for t in texts]).result(60))
    assert question @ passage > question @ other + 0.3
