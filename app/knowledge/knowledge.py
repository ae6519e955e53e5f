"""The knowledge base: documents in a folder, and the passages of them that answer a question."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from app.engine.embedder import Embedder, normalized
from app.knowledge import indexer
from app.knowledge.chunk import Passage
from app.knowledge.index.store import Store

_SEARCHING_THREADS = 2
# What decides which chunks a file has: our own modules, and packages by their versions.
_READING = ("chunking.py", "sentences.py", "reading/*.py")
_PACKAGES = ("mammoth", "markdown-it-py", "pypdfium2", "selectolax")


@dataclass(frozen=True, slots=True)
class KnowledgeOptions:
    """How a knowledge base is set up.

    Attributes:
        folder: The documents.
        index: Where the index is kept.
        top_k: The most passages of a search that does not say.
        threshold: The least cosine of question and passage, of a search that does not say.
        chunk_tokens: The longest passage.
        chunk_overlap: What a passage repeats of the one before it, in tokens.
        query_prefix: Put before questions where they are embedded.
        passage_prefix: Put before passages where they are embedded.
    """

    folder: Path
    index: Path
    top_k: int
    threshold: float
    chunk_tokens: int
    chunk_overlap: int
    query_prefix: str = ""
    passage_prefix: str = ""


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A file of the folder, and what became of it; ``problem`` is why it is skipped."""

    name: str
    state: Literal["indexed", "waiting", "skipped"]
    n_chunks: int
    n_bytes: int
    problem: str | None = None


class Observer(indexer.Observer, Protocol):
    """Who is told what was indexed and looked up."""

    def on_lookup(self, seconds: float) -> None:
        """A question was embedded and looked up."""


class Knowledge:
    """Documents that are indexed while they change, and searched by vectors and words."""

    def __init__(self, options: KnowledgeOptions, embedder: Embedder, observer: Observer) -> None:
        """Open the index; blocking.

        Raises:
            StoreError: It cannot be opened; the message says what to do.
        """
        self.options = options
        self._embedder = embedder
        self._observer = observer
        self._store = Store(
            options.index, dimensions=embedder.dimensions, identity=_identity(options, embedder)
        )
        how = indexer.Chunking(options.chunk_tokens, options.chunk_overlap, options.passage_prefix)
        self._indexer = indexer.Indexer(options.folder, self._store, embedder, how, observer)
        self._threads = ThreadPoolExecutor(_SEARCHING_THREADS, thread_name_prefix="search")

    def start(self) -> None:
        """Begin to index the documents, and go on while they change."""
        self._indexer.start()

    async def wait_until_indexed(self, seconds: float) -> bool:
        """Wait until the folder was looked through once, but no longer than that; whether it was."""
        return await asyncio.to_thread(self._indexer.has_looked.wait, seconds)

    @property
    def is_indexing(self) -> bool:
        """Whether there are documents that are not indexed yet."""
        if self.problem is not None:
            return False
        return bool(self._indexer.waiting) or not self._indexer.has_looked.is_set()

    @property
    def problem(self) -> str | None:
        """What keeps documents from being indexed, where something does."""
        return self._indexer.problem

    async def search(
        self,
        query: str,
        *,
        files: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[Passage]:
        """The passages that most likely answer a question, best first.

        Args:
            query: The question; of a very long one the end counts.
            files: The documents that are searched; None is all.
            top_k: The most passages.
            threshold: The least cosine of question and passage.

        Raises:
            EmbeddingError: The question cannot be embedded.
            StoreError: The index cannot be read.
        """
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        # Of a text a token has some 4 characters; beyond what the model reads there is nothing to tokenize.
        text = query[-self._embedder.max_tokens * 16 :]
        tokens = self._embedder.fit(self.options.query_prefix + text, keep="end")
        vectors = await asyncio.wrap_future(self._embedder.submit([tokens]))

        def look_up() -> list[Passage]:
            return self._store.search(
                normalized(vectors)[0],
                text,
                top_k=self.options.top_k if top_k is None else top_k,
                threshold=self.options.threshold if threshold is None else threshold,
                files=files,
            )

        passages = await loop.run_in_executor(self._threads, look_up)
        self._observer.on_lookup(time.perf_counter() - started)
        return passages

    def documents(self) -> list[DocumentState]:
        """The documents and their state, by name."""
        states = {name: DocumentState(name, "waiting", 0, n) for name, n in [*self._indexer.waiting.items()]}
        for file in self._store.files().values():
            state: Literal["indexed", "skipped"] = "skipped" if file.problem else "indexed"
            states[file.name] = DocumentState(file.name, state, file.n_chunks, file.n_bytes, file.problem)
        return [states[name] for name in sorted(states)]

    def close(self) -> None:
        """Stop indexing and close the index; blocking. The embedder is closed after it."""
        self._indexer.close()
        self._threads.shutdown()
        self._store.close()


def _identity(options: KnowledgeOptions, embedder: Embedder) -> str:
    """Everything that decides which chunks a document has, and which vectors they have."""
    code = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(path for pattern in _READING for path in here.glob(pattern)):
        code.update(path.read_bytes())
    facts = {
        "model": embedder.identity,
        "pooling": embedder.pooling,
        "prefix": options.passage_prefix,
        "chunks": [options.chunk_tokens, options.chunk_overlap],
        "code": code.hexdigest(),
        "readers": [importlib.metadata.version(name) for name in _PACKAGES],
    }
    return json.dumps(facts)
