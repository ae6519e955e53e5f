"""Texts to vectors: a second, small context beside the engine, with a thread of its own."""

from __future__ import annotations

import functools
import hashlib
import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.engine.fair_lock import FairLock
from app.engine.llama import Batch, DecodeError, EmbeddingContext, Model

logger = logging.getLogger("tokenstream.embedder")

Vectors = NDArray[np.float32]

# Tokens of one batch, texts that are longer aside. All tokens of a batch attend to all (those of other texts
# masked), so larger ones are slower: 384 does 6,900 tokens/s in texts of 110, 512 6,100 and 768 5,200.
_BATCH = 384
# The same while an engine computes, whose streams wait for it: 20 ms. What is indexed then waits twice as
# long before its next batch.
_BATCH_BESIDE_OTHERS = 128
_TOKENS_A_SECOND = 5000.0  # roughly, on two cores
_MOST_TEXTS = 64  # of one batch
_LONGEST = 2048  # tokens of one text, where the model was trained for as many: buffers grow with it


class EmbeddingError(Exception):
    """Vectors could not be computed; the message says why."""


@dataclass(slots=True)
class _Job:
    """One call of submit: vectors that are there, and the texts that still wait."""

    vectors: Vectors
    waiting: deque[tuple[int, Sequence[int]]]
    n_missing: int
    due: float  # when it would be done if it were alone: by this jobs are ordered
    future: Future[Vectors] = field(default_factory=Future)

    def __lt__(self, other: _Job) -> bool:
        return self.due < other.due


class Embedder:
    """An embedding model. What is submitted together, or meanwhile by others, is computed in one batch."""

    def __init__(
        self, path: Path, *, n_threads: int, pooling: str | None = None, lock: FairLock | None = None
    ) -> None:
        """Load the model and start the thread.

        Args:
            path: A GGUF file.
            n_threads: Threads that compute.
            pooling: How the vectors of tokens become one (``POOLING``); None is what the file says.
            lock: Shared with an engine that computes on the same cores.

        Raises:
            ModelLoadError: llama.cpp refuses the file, or it is no embedding model.
        """
        self.name = path.stem
        self.created = int(path.stat().st_mtime)  # seconds since 1970
        self.identity = _identity(path)
        self._model = Model(path)
        self.max_tokens = min(self._model.n_ctx_train, _LONGEST)
        n_batch = max(_BATCH, self.max_tokens)
        try:
            self._context = EmbeddingContext(
                self._model, n_batch=n_batch, n_sequences=_MOST_TEXTS, n_threads=n_threads, pooling=pooling
            )
        except BaseException:
            self._model.close()
            raise
        self._batch = Batch(n_batch)
        self.pooling = self._context.pooling
        self.dimensions = self._context.dimensions
        self.n_vocab = self._model.vocab.n_tokens
        self._lock = lock or FairLock()
        self._urgent: list[_Job] = []  # heaps
        self._background: list[_Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, the model's own before and behind it included; not cut."""
        return self._model.vocab.tokenize(text, parse_special=False, add_special=True)

    def count(self, text: str) -> int:
        """How many tokens a text has, the model's own around it left out."""
        return len(self._model.vocab.tokenize(text, parse_special=False))

    def fit(self, text: str, *, keep: Literal["begin", "end"] = "begin") -> list[int]:
        """The tokens of a text, cut to the most that the model reads at the end that is not kept."""
        tokens = self.tokenize(text)
        if len(tokens) <= self.max_tokens:
            return tokens
        before, behind = self._around
        inner = tokens[before : len(tokens) - behind]
        room = self.max_tokens - before - behind
        inner = inner[:room] if keep == "begin" else inner[-room:]
        return [*tokens[:before], *inner, *tokens[len(tokens) - behind :]]

    def lacks_its_own(self, tokens: Sequence[int]) -> bool:
        """Whether tokens are without those that the model puts before and behind a text."""
        before, behind = self._around
        around = self.tokenize("")
        begin, end = around[:before], around[len(around) - behind :]
        return list(tokens[:before]) != begin or list(tokens[len(tokens) - behind :]) != end

    @functools.cached_property
    def _around(self) -> tuple[int, int]:
        """How many tokens of its own the model puts before and behind a text."""
        plain = self._model.vocab.tokenize("a", parse_special=False)
        around = self.tokenize("a")
        before = next(i for i in range(len(around)) if around[i : i + len(plain)] == plain)
        return before, len(around) - before - len(plain)

    def submit(self, sequences: Sequence[Sequence[int]], *, background: bool = False) -> Future[Vectors]:
        """Compute the vectors of tokenized texts, each of 1 to ``max_tokens`` tokens.

        Args:
            sequences: The tokens of each text.
            background: Whether all others go before it.

        Returns:
            (texts, dimensions), as the model pools them, not normalized; EmbeddingError where they cannot be
            computed. Cancel it to leave it.
        """
        assert all(0 < len(tokens) <= self.max_tokens for tokens in sequences)
        vectors: Vectors = np.empty((len(sequences), self.dimensions), np.float32)
        # A short job overtakes a long one, but not one that has waited as long as it would take itself.
        due = time.monotonic() + sum(map(len, sequences)) / _TOKENS_A_SECOND
        job = _Job(vectors, deque(enumerate(sequences)), len(sequences), due)
        if not sequences:
            job.future.set_result(vectors)
            return job.future
        with self._changed:
            if self._is_closed:
                raise EmbeddingError("the embedding model has been closed")
            heapq.heappush(self._background if background else self._urgent, job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """End the thread behind its current batch and free the model; what waits fails."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        for job in (*self._urgent, *self._background):
            _settle(job, EmbeddingError("the embedding model has been closed"))
        self._context.close()
        self._model.close()

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._urgent or self._background)
                if self._is_closed:
                    return
                is_background = not self._urgent
                is_beside_others = self._lock.is_taken
                taken = self._fill(
                    self._urgent or self._background, _BATCH_BESIDE_OTHERS if is_beside_others else _BATCH
                )
            if not taken:
                continue
            with self._lock:
                started = time.perf_counter()
                self._compute(taken)
                seconds = time.perf_counter() - started
            if is_background and is_beside_others:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._urgent, 2 * seconds)

    def _fill(self, jobs: list[_Job], most_tokens: int) -> list[tuple[_Job, int]]:
        """Fill the batch with the texts of the jobs that are due; tell whose they are, by sequence."""
        self._batch.clear()
        taken: list[tuple[_Job, int]] = []
        while jobs:
            job = jobs[0]
            while job.waiting and not job.future.done():
                index, tokens = job.waiting[0]
                n_tokens = self._batch.n_tokens + len(tokens)
                if taken and (n_tokens > most_tokens or len(taken) == _MOST_TEXTS):
                    return taken
                job.waiting.popleft()
                self._batch.add(tokens, 0, len(taken), n_outputs=len(tokens))
                taken.append((job, index))
            heapq.heappop(jobs)  # all of it is taken, or its caller has left
        return taken

    def _compute(self, taken: Sequence[tuple[_Job, int]]) -> None:
        try:
            vectors = self._context.encode(self._batch)
        except DecodeError as error:
            logger.error("a batch of %d texts could not be embedded: %s", len(taken), error)
            for job, _ in taken:
                _settle(job, EmbeddingError(f"the embedding model failed: {error}"))
            return
        for (job, index), vector in zip(taken, vectors, strict=True):
            job.vectors[index] = vector
            job.n_missing -= 1
            if job.n_missing == 0:
                _settle(job, None)


def _identity(path: Path) -> str:
    """Changes with the model's file: its size, and a megabyte at either end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        digest.update(file.read())
    return f"{size} {digest.hexdigest()}"


def _settle(job: _Job, error: EmbeddingError | None) -> None:
    # Only here does a future become one that cannot be cancelled.
    if job.future.done() or not job.future.set_running_or_notify_cancel():
        return
    if error is None:
        job.future.set_result(job.vectors)
    else:
        job.future.set_exception(error)


def normalized(vectors: Vectors) -> Vectors:
    """The vectors with length 1 each; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
