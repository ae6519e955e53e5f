"""Rerankers read a query and a document together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.config.settings import load
from app.engine.embedder import Embedder
from app.engine.llama import ModelLoadError, Vocab
from app.engine.reranker import Reranker
from app.weights.embedding import resolve_embedding_model
from tests.conftest import MODEL
from tests.reranker_model import CLASSIFIER, write_reranker

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reranker]:
    path = write_reranker(tmp_path_factory.mktemp("reranker") / "reranker.gguf")
    reranker = Reranker(path, n_threads=2)
    yield reranker
    reranker.close()


def test_an_output_is_the_classifier_of_the_first_token(reranker: Reranker) -> None:
    pairs = [pair for pair, _ in reranker.pairs("When does it open?", ["At six.", "[SEP] words " * 30])]
    assert pairs[0].count(CLS) == 1
    assert pairs[1].count(SEP) == 2, "text of a document never becomes a control token"
    assert (pairs[0][0], pairs[0][-1]) == (CLS, SEP)
    outputs = reranker.submit(pairs).result(60)
    assert outputs.shape == (2, 1)
    assert reranker.has_logits
    embedder = Embedder(resolve_embedding_model(load(None)), n_threads=2, pooling="cls")
    try:
        states = embedder.submit(pairs).result(60)
    finally:
        embedder.close()
    assert outputs[:, 0] == pytest.approx(states @ CLASSIFIER, abs=1e-2)
    assert abs(np.ptp(outputs)) > 0.1


def test_long_pairs_are_truncated(reranker: Reranker) -> None:
    (short, is_truncated), (long, is_cut) = reranker.pairs("open", ["six", "six " * 1000])
    assert (len(short), is_truncated) == (5, False)
    assert (len(long), is_cut) == (reranker.max_tokens, True)
    assert long[:3] == short[:3]
    (both, is_truncated), (asked, _) = reranker.pairs("open " * 1000, ["six " * 1000, "six"])
    assert (len(both), is_truncated) == (reranker.max_tokens, True)
    assert abs(both.count(short[1]) - both.count(short[3])) <= 1, "half of the room each"
    assert asked.count(short[3]) == 1, "a short document is kept"


def test_a_query_is_tokenized_once(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []
    tokenize = Vocab.tokenize

    def noted(self: Vocab, text: str, *, parse_special: bool) -> list[int]:
        tokenized.append(text)
        return tokenize(self, text, parse_special=parse_special)

    monkeypatch.setattr(Vocab, "tokenize", noted)
    assert len(list(reranker.pairs("When?", ["At six.", "At ten."]))) == 2
    assert tokenized == ["When?", "At six.", "At ten."]


def test_other_models_are_rejected() -> None:
    for path in (MODEL, resolve_embedding_model(load(None))):
        with pytest.raises(ModelLoadError, match="not a reranker: its pooling type is not `rank`"):
            Reranker(Path(path), n_threads=1)


def test_a_reranker_is_no_embedding_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="may not be an embedding model"):
        Embedder(write_reranker(tmp_path / "a.gguf"), n_threads=1)
