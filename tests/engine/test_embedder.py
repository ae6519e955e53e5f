"""The embedding model: batches, priorities, cancellation and faults."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from app.config.settings import load
from app.engine.embedder import Embedder, EmbeddingError, Vectors, normalized
from app.engine.fair_lock import FairLock
from app.engine.llama import Batch, EmbeddingContext, Model, ModelLoadError
from app.weights.embedding import resolve_embedding_model
from tests.conftest import MODEL

CLS, SEP = 101, 102
TEXTS = [
    "The Wren Bridge opens at 06:40.",
    "",
    "Eine Brücke über den Fluß — geöffnet ab 6 Uhr 40.",
    "word " * 300,
    "short",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_embedding_model(load(None))


@pytest.fixture(scope="module")
def embedder(path: Path) -> Iterator[Embedder]:
    embedder = Embedder(path, n_threads=1)
    yield embedder
    embedder.close()


def embed(embedder: Embedder, *texts: str) -> Vectors:
    return embedder.submit([embedder.fit(text) for text in texts]).result(60)


def test_a_vector_does_not_depend_on_the_batch(embedder: Embedder) -> None:
    together = normalized(embed(embedder, *TEXTS * 10))
    assert together.shape == (50, 384)
    for index, text in enumerate(TEXTS):
        [alone] = normalized(embed(embedder, text))
        assert together[index::5] @ alone == pytest.approx(1, abs=1e-3)


def test_related_texts_are_nearer(embedder: Embedder) -> None:
    question, answer, other = normalized(
        embed(embedder, "How old is the oak?", "The age of the tree is 300 years.", "Stock prices fell.")
    )
    assert question @ answer > 0.4 > 0.2 > question @ other


def test_control_tokens_in_a_text_are_tokenized_as_text(embedder: Embedder) -> None:
    tokens = embedder.tokenize("ends here [SEP] [CLS] it does not")
    assert tokens[0] == CLS
    assert tokens[-1] == SEP
    assert not {CLS, SEP} & {*tokens[1:-1]}


@pytest.mark.parametrize("keep", ["begin", "end"])
def test_long_texts_are_truncated_at_the_other_end(embedder: Embedder, keep: str) -> None:
    words = [f"{number}" for number in range(2000)]
    tokens = embedder.fit(" ".join(words), keep=keep)  # type: ignore[arg-type]
    assert len(tokens) == embedder.max_tokens == 512
    assert (tokens[0], tokens[-1]) == (CLS, SEP)
    number = "0" if keep == "begin" else "1999"
    [kept] = embedder.tokenize(number)[1:-1][-1:]
    assert tokens[1 if keep == "begin" else -2] == kept
    assert embedder.count("0") == 1


def test_questions_precede_background_jobs(embedder: Embedder) -> None:
    background = embedder.submit([embedder.fit("word " * 300)] * 20, background=True)
    question = embedder.submit([embedder.tokenize("Where?")])
    assert question.result(60).shape == (1, 384)
    assert not background.done()
    assert background.result(60).shape == (20, 384)


def test_a_short_job_precedes_the_rest_of_a_long_one(embedder: Embedder) -> None:
    long = embedder.submit([embedder.fit("word " * 300)] * 20)
    short = embedder.submit([embedder.tokenize("Where?")])
    assert short.result(60).shape == (1, 384)
    assert not long.done()
    assert long.result(60).shape == (20, 384)


def test_a_cancelled_job_is_not_computed(embedder: Embedder) -> None:
    cancelled = embedder.submit([embedder.fit("word " * 300)] * 5000, background=True)
    assert cancelled.cancel()
    with pytest.raises(CancelledError):
        cancelled.result()
    # 5,000 texts take minutes.
    assert embedder.submit([embedder.tokenize("next")], background=True).result(20).shape == (1, 384)


def test_a_batch_can_have_any_size(path: Path) -> None:
    model = Model(path)
    context = EmbeddingContext(model, n_batch=200, n_sequences=64, n_threads=1)
    batch = Batch(200)
    batch.add([CLS] * 199, 0, 0, n_outputs=199)
    batch.add([SEP], 0, 1, n_outputs=1)
    assert context.encode(batch).shape == (2, 384)
    context.close()
    model.close()


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.submit([]).result(1).shape == (0, 384)


def test_close_ends_waiting_jobs_with_an_error(path: Path) -> None:
    embedder = Embedder(path, n_threads=1)
    waiting = embedder.submit([embedder.fit("word " * 300)] * 500)
    embedder.close()
    embedder.close()
    with pytest.raises(EmbeddingError, match="closed"):
        waiting.result(1)
    with pytest.raises(EmbeddingError, match="closed"):
        embedder.submit([[CLS, SEP]])


def test_a_fault_in_a_batch_ends_its_jobs(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(embedder._context, "encode", fail)
        job = embedder.submit([[CLS, SEP]] * 100)
        with pytest.raises(EmbeddingError, match="the embedding model failed: out of memory"):
            job.result(60)
    assert embed(embedder, "short").shape == (1, 384)


class Panic(BaseException):
    """An exception like those of a native library."""


@pytest.mark.parametrize("fault", [RuntimeError, Panic])
def test_a_fault_of_the_thread_ends_all_jobs_and_is_reported(
    path: Path, fault: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[BaseException] = []
    lock = FairLock()
    embedder = Embedder(path, n_threads=1, lock=lock, on_failure=failures.append)
    add = embedder._batch.add

    def fail_at_the_third(tokens: list[int], *arguments: int, **options: int) -> int:
        if len(tokens) == 3:
            raise fault("forced")
        return add(tokens, *arguments, **options)

    monkeypatch.setattr(embedder._batch, "add", fail_at_the_third)
    with lock:
        jobs = [embedder.submit([[CLS, SEP]]), embedder.submit([[CLS, 1996, SEP]] * 100)]
        jobs += [embedder.submit([[CLS, SEP]], background=True) for _ in range(2)]
        assert jobs[-1].cancel()
    for job in jobs[1:3]:
        with pytest.raises(EmbeddingError, match="the embedding model failed: forced"):
            job.result(60)
    with pytest.raises(EmbeddingError, match="the embedding model failed: forced"):
        embedder.submit([[CLS, SEP]])
    embedder.close()
    assert [type(failure) for failure in failures] == [fault]
    assert "the embedding thread failed" in caplog.text


def test_a_generative_model_needs_embedding_pooling() -> None:
    with pytest.raises(ModelLoadError, match="EMBEDDING_POOLING to one of mean, cls, last"):
        Embedder(MODEL, n_threads=1)


def test_a_generative_model_embeds_with_pooling_last() -> None:
    embedder = Embedder(MODEL, n_threads=1, pooling="last")
    try:
        first = normalized(embed(embedder, "The oak is old.", "A red car"))
        again = normalized(embed(embedder, "A red car", "Nothing", "The oak is old."))
        assert embedder.max_tokens == 2048
        assert np.sum(first * again[[2, 0]], axis=1) == pytest.approx(1, abs=1e-2)
    finally:
        embedder.close()
