"""The knowledge base: documents in a folder, and search over their passages."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from app.engine.embedder import Embedder, normalized
from app.knowledge import indexer
from app.knowledge.chunk import Passage
from app.knowledge.folder import Folder
from app.knowledge.index.store import Store
from app.knowledge.lane import Chunking
from app.knowledge.reading.reader import TIME_LIMIT
from app.machine.threads import full_pool

_SEARCHING_THREADS = 2
# Code that determines the chunks of a file: modules by content, packages by version.
_READING = ("chunking.py", "sentences.py", "reading/*.py")
_PACKAGES = ("mammoth", "markdown-it-py", "pypdfium2", "selectolax")


@dataclass(frozen=True, slots=True)
class KnowledgeOptions:
    """Options of a knowledge base.

    Attributes:
        folder: Folder of the documents.
        index: Folder of the index.
        top_k: Default for the maximum number of passages.
        threshold: Default for the minimum cosine of query and passage.
        chunk_tokens: Maximum tokens per passage.
        chunk_overlap: Maximum tokens repeated from the previous passage.
        query_prefix: Prepended to queries before embedding.
        passage_prefix: Prepended to passages before embedding.
        file_seconds: CPU time limit for reading a file.
        follow_links: Whether links that lead out of the folder are followed.
    """

    folder: Path
    index: Path
    top_k: int
    threshold: float
    chunk_tokens: int
    chunk_overlap: int
    query_prefix: str = ""
    passage_prefix: str = ""
    file_seconds: float = TIME_LIMIT
    follow_links: bool = False


@dataclass(frozen=True, slots=True)
class DocumentState:
    """Indexing state of a file.

    Attributes:
        name: Its path in the folder.
        state: A changed file waits, while its old version is searchable.
        n_chunks: Number of searchable passages.
        n_bytes: Its present size.
        problem: Reason why it is skipped.
        waiting_since: Time of its first change that is not indexed, in seconds since 1970.
    """

    name: str
    state: Literal["indexed", "waiting", "skipped"]
    n_chunks: int
    n_bytes: int
    problem: str | None = None
    waiting_since: float | None = None


class Observer(indexer.Observer, Protocol):
    """Receives events of indexing and search."""

    def on_lookup(self, seconds: float) -> None:
        """A search has finished; ``seconds`` includes embedding."""


class Knowledge:
    """Documents, indexed as they change and searched by vectors and words."""

    def __init__(self, options: KnowledgeOptions, embedder: Embedder, observer: Observer) -> None:
        """Open the index; blocking.

        Raises:
            StoreError: The index cannot be opened.
        """
        self.options = options
        self._embedder = embedder
        self._observer = observer
        identity = _identity(options, embedder)
        self._threads = full_pool(_SEARCHING_THREADS, "search")
        with ExitStack() as opened:
            self._store = Store(options.index, dimensions=embedder.dimensions, identity=identity)
            opened.callback(self._store.close)
            self._indexer = indexer.Indexer(
                Folder(options.folder, follow_links=options.follow_links),
                self._store,
                embedder,
                Chunking(options.chunk_tokens, options.chunk_overlap, options.passage_prefix),
                observer,
                file_seconds=options.file_seconds,
            )
            opened.pop_all()

    def start(self) -> None:
        """Start indexing in the background."""
        self._indexer.start()

    async def wait_until_indexed(self, seconds: float) -> bool:
        """Wait until no document waits. Returns False on timeout."""
        return await asyncio.to_thread(self._indexer.wait_until_indexed, seconds)

    @property
    def is_indexing(self) -> bool:
        """Whether documents wait to be indexed."""
        if self.problem is not None:
            return False
        return self._indexer.n_waiting > 0 or not self._indexer.has_scanned

    @property
    def problem(self) -> str | None:
        """Reason why documents are not indexed, or None."""
        return self._indexer.problem

    async def search(
        self,
        query: str,
        *,
        files: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[Passage]:
        """The passages most relevant to a query, best first.

        Args:
            query: The query. If it exceeds the model's context, only its end is used.
            files: Names of the documents to search. None: all.
            top_k: Maximum number of passages.
            threshold: Minimum cosine of query and passage.

        Raises:
            EmbeddingError: The query cannot be embedded.
            StoreError: The index cannot be read.
        """
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        # A token has about 4 characters: text far beyond the model's context is not tokenized.
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
        """The documents and their states, sorted by name.

        Raises:
            StoreError: The index cannot be read.
        """
        waiting = self._indexer.waiting()  # first: a file that is indexed meanwhile counts as waiting
        states: dict[str, DocumentState] = {}
        for file in self._store.files().values():
            state: Literal["indexed", "skipped"] = "skipped" if file.problem else "indexed"
            states[file.name] = DocumentState(file.name, state, file.n_chunks, file.n_bytes, file.problem)
        for name, one in waiting.items():
            n_chunks = states[name].n_chunks if name in states else 0
            states[name] = DocumentState(name, "waiting", n_chunks, one.file.n_bytes, None, one.since)
        return [states[name] for name in sorted(states)]

    def n_waiting(self, files: Collection[str] | None = None) -> int:
        """Number of new and changed documents that are not indexed. ``files``: count only these."""
        return self._indexer.n_waiting if files is None else self._indexer.count_waiting(files)

    def close(self) -> None:
        """Stop indexing and close the index; blocking. Close the embedder afterwards."""
        self._indexer.close()
        self._threads.shutdown()
        self._store.close()


def _identity(options: KnowledgeOptions, embedder: Embedder) -> str:
    """All inputs that determine the chunks of a document and their vectors."""
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
