"""Text embeddings with a second model, on a dedicated thread."""

from __future__ import annotations

import functools
import hashlib
import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.engine.fair_lock import FairLock
from app.engine.llama import Batch, EmbeddingContext, Model

logger = logging.getLogger("tokenstream.embedder")

Vectors = NDArray[np.float32]

# Tokens per batch, unless one text is longer. Attention is quadratic in the batch and includes masked tokens,
# so larger batches are slower. Texts of 110 tokens: 6,900 tokens/s with 384, 6,100 with 512, 5,200 with 768.
_BATCH = 384
# Tokens per batch while an engine computes. Its streams wait 20 ms per batch. After each batch, a background
# job pauses twice as long.
_BATCH_BESIDE_OTHERS = 128
_TOKENS_PER_SECOND = 5000.0  # estimate for two cores
_MAX_TEXTS = 64  # per batch
_MAX_TOKENS = 2048  # per text, or the model's context if shorter; buffers grow with it


class EmbeddingError(Exception):
    """Vectors cannot be computed."""


@dataclass(slots=True)
class _Job:
    """One call of ``submit``: the computed vectors and the waiting texts."""

    vectors: Vectors
    waiting: deque[tuple[int, Sequence[int]]]
    n_missing: int
    due: float  # expected end if it ran alone; jobs are sorted by it
    future: Future[Vectors] = field(default_factory=Future)

    def __lt__(self, other: _Job) -> bool:
        return self.due < other.due


class Embedder:
    """An embedding model. Texts of all waiting jobs share batches."""

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int,
        pooling: str | None = None,
        lock: FairLock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Load the model and start the thread.

        Args:
            path: A GGUF file.
            n_threads: Compute threads.
            pooling: Pooling type, a key of ``POOLING``. None: the type named in the file. ``rank``: the file
                is a reranker.
            lock: Shared with an engine on the same cores.
            on_failure: Called once, on the embedder's thread, if an exception ends that thread.

        Raises:
            ModelLoadError: llama.cpp rejects the file, or it is not an embedding model.
        """
        self.name = path.stem
        self.created = int(path.stat().st_mtime)  # seconds since 1970
        self.identity = _identity(path)
        self._model = Model(path)
        self.description = self._model.description
        self.n_bytes = self._model.n_bytes
        self.max_tokens = min(self._model.n_ctx_train, _MAX_TOKENS)
        n_batch = max(_BATCH, self.max_tokens)
        try:
            self._context = EmbeddingContext(
                self._model, n_batch=n_batch, n_sequences=_MAX_TEXTS, n_threads=n_threads, pooling=pooling
            )
        except BaseException:
            self._model.close()
            raise
        self._batch = Batch(n_batch)
        self.pooling = self._context.pooling
        self.dimensions = self._context.dimensions
        self.vocab = self._model.vocab
        self.n_vocab = self.vocab.n_tokens
        self.rerank_template = self._model.rerank_template
        self._lock = lock or FairLock()
        self._on_failure = on_failure
        self._urgent: list[_Job] = []  # heaps
        self._background: list[_Job] = []
        self._changed = threading.Condition()
        self._error: EmbeddingError | None = None  # why no job is accepted
        self._taken: list[tuple[_Job, int]] = []  # job and text index of each sequence in the batch
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text with the special tokens around it, not truncated."""
        return self._model.vocab.tokenize(text, parse_special=False, add_special=True)

    def count(self, text: str) -> int:
        """Number of tokens of a text without the special tokens around it."""
        return len(self._model.vocab.tokenize(text, parse_special=False))

    def fit(self, text: str, *, keep: Literal["begin", "end"] = "begin") -> list[int]:
        """The tokens of a text, truncated to ``max_tokens``. ``keep``: the side that remains."""
        tokens = self.tokenize(text)
        if len(tokens) <= self.max_tokens:
            return tokens
        before, behind = self._around
        inner = tokens[before : len(tokens) - behind]
        room = self.max_tokens - before - behind
        inner = inner[:room] if keep == "begin" else inner[-room:]
        return [*tokens[:before], *inner, *tokens[len(tokens) - behind :]]

    def lacks_special_tokens(self, tokens: Sequence[int]) -> bool:
        """Whether the special tokens around a text are missing."""
        before, behind = self._around
        around = self.tokenize("")
        begin, end = around[:before], around[len(around) - behind :]
        return list(tokens[:before]) != begin or list(tokens[len(tokens) - behind :]) != end

    @functools.cached_property
    def _around(self) -> tuple[int, int]:
        """Number of special tokens before and after a text."""
        plain = self._model.vocab.tokenize("a", parse_special=False)
        around = self.tokenize("a")
        before = next(i for i in range(len(around)) if around[i : i + len(plain)] == plain)
        return before, len(around) - before - len(plain)

    def submit(self, sequences: Sequence[Sequence[int]], *, background: bool = False) -> Future[Vectors]:
        """Compute the vectors of tokenized texts, each of 1 to ``max_tokens`` tokens.

        Args:
            sequences: The tokens of each text.
            background: Run after all other jobs.

        Returns:
            Pooled vectors, not normalized, shape (texts, dimensions). The future may fail with
            EmbeddingError.

        Raises:
            EmbeddingError: The model is closed or has failed.
        """
        assert all(0 < len(tokens) <= self.max_tokens for tokens in sequences)
        vectors: Vectors = np.empty((len(sequences), self.dimensions), np.float32)
        # A short job overtakes a long one that has waited less than its compute time.
        due = time.monotonic() + sum(map(len, sequences)) / _TOKENS_PER_SECOND
        job = _Job(vectors, deque(enumerate(sequences)), len(sequences), due)
        if not sequences:
            job.future.set_result(vectors)
            return job.future
        with self._changed:
            if self._error is not None:
                raise self._error
            heapq.heappush(self._background if background else self._urgent, job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """End the thread after its current batch, fail waiting jobs and free the model."""
        self._end(EmbeddingError("the embedding model has been closed"))
        self._thread.join()
        self._context.close()
        self._model.close()

    def _end(self, error: EmbeddingError) -> None:
        """Accept no more jobs."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify()

    # --- the thread

    def _run(self) -> None:
        try:
            while self._compute_next():
                pass
        except BaseException as error:
            self._end(EmbeddingError(f"the embedding model failed: {error}"))
            logger.critical("the embedding thread failed; all its requests end", exc_info=error)
            if self._on_failure is not None:
                self._on_failure(error)
        assert self._error is not None
        for job in (*(job for job, _ in self._taken), *self._urgent, *self._background):
            _settle(job, self._error)

    def _compute_next(self) -> bool:
        """Wait for a job and compute one batch. False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._urgent or self._background)
            if self._error is not None:
                return False
            is_background = not self._urgent
            is_beside_others = self._lock.is_taken
            self._fill(self._urgent or self._background, _BATCH_BESIDE_OTHERS if is_beside_others else _BATCH)
        if not self._taken:
            return True
        with self._lock:
            started = time.perf_counter()
            self._compute()
            seconds = time.perf_counter() - started
        if is_background and is_beside_others:
            with self._changed:
                self._changed.wait_for(lambda: self._error or self._urgent, 2 * seconds)
        return True

    def _fill(self, jobs: list[_Job], max_tokens: int) -> None:
        """Fill the batch with texts of the first jobs."""
        self._batch.clear()
        self._taken = []
        while jobs:
            job = jobs[0]
            while job.waiting and not job.future.done():
                index, tokens = job.waiting[0]
                n_tokens = self._batch.n_tokens + len(tokens)
                if self._taken and (n_tokens > max_tokens or len(self._taken) == _MAX_TEXTS):
                    return
                job.waiting.popleft()
                self._batch.add(tokens, 0, len(self._taken), n_outputs=len(tokens))
                self._taken.append((job, index))
            heapq.heappop(jobs)  # completely taken, or cancelled

    def _compute(self) -> None:
        try:
            vectors = self._context.encode(self._batch)
        except Exception as error:
            logger.error("embedding a batch of %d texts failed", len(self._taken), exc_info=error)
            for job, _ in self._taken:
                _settle(job, EmbeddingError(f"the embedding model failed: {error}"))
            return
        for (job, index), vector in zip(self._taken, vectors, strict=True):
            job.vectors[index] = vector
            job.n_missing -= 1
            if job.n_missing == 0:
                _settle(job, None)


def _identity(path: Path) -> str:
    """Identifies a model file by its size and the first and last MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        digest.update(file.read())
    return f"{size} {digest.hexdigest()}"


def _settle(job: _Job, error: EmbeddingError | None) -> None:
    # From here on the future cannot be cancelled.
    if job.future.done() or not job.future.set_running_or_notify_cancel():
        return
    if error is None:
        job.future.set_result(job.vectors)
    else:
        job.future.set_exception(error)


def normalized(vectors: Vectors) -> Vectors:
    """Vectors scaled to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
