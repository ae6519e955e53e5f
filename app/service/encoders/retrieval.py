"""The embedding model and the knowledge base."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.config.settings import Settings, SettingsError
from app.engine.embedder import Embedder, EmbeddingError
from app.engine.fair_lock import FairLock
from app.engine.llama import ModelLoadError
from app.engine.reranker import Reranker
from app.knowledge.chunk import Passage
from app.knowledge.chunking import embedded_text
from app.knowledge.errors import StoreError
from app.machine.cores import physical_cores
from app.machine.folders import cache_folder
from app.machine.installation import install_with
from app.service.encoders.rerank import rank
from app.service.errors import BadRequest, GenerationFailed, KnowledgeFailed, NotOffered
from app.service.preparing.prompts import ChatPrompt
from app.telemetry.metrics import Metrics
from app.weights.errors import ModelError

if TYPE_CHECKING:  # its packages are installed only for KNOWLEDGE=on
    from app.knowledge.knowledge import DocumentState, Knowledge, KnowledgeOptions

# Passages that a reranker sorts, per passage in the prompt.
_CANDIDATES = 4
# Maximum seconds of indexing before the server is ready. Large folders are indexed while serving.
_START_WITHIN = 5.0
_PACKAGES = ("mammoth", "markdown_it", "pypdfium2", "selectolax", "simsimd", "snowballstemmer", "watchfiles")


class Retrieval:
    """The embedding model, and the knowledge base if it is on."""

    def __init__(
        self,
        settings: Settings,
        embedding_model: Path,
        metrics: Metrics,
        lock: FairLock,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Load the embedding model and open the index; blocking. ``on_failure``: see ``Embedder``.

        Raises:
            ModelError: The embedding model cannot be loaded.
            SettingsError: Passages exceed the embedding model's input, or the index cannot be opened.
        """
        n_threads = settings.model_threads or physical_cores()
        try:
            self.embedder = Embedder(
                embedding_model,
                n_threads=n_threads,
                pooling=settings.embedding_pooling,
                lock=lock,
                on_failure=on_failure,
            )
        except ModelLoadError as error:
            raise ModelError(f"EMBEDDING_MODEL={embedding_model}: {error}") from error
        self.knowledge: Knowledge | None = None
        if settings.knowledge == "on":
            try:
                self.knowledge = _open(settings, self.embedder, metrics)
            except BaseException:
                self.embedder.close()
                raise

    async def index(self) -> None:
        """Start indexing; return when it is complete, or after a few seconds."""
        if self.knowledge is not None:
            self.knowledge.start()
            await self.knowledge.wait_until_indexed(_START_WITHIN)

    def close(self) -> None:
        """Close the index and free the embedding model; blocking."""
        if self.knowledge is not None:
            self.knowledge.close()
        self.embedder.close()


def check(settings: Settings) -> None:
    """Check that the folder and packages of a configured knowledge base exist.

    Raises:
        SettingsError: The folder or a package is missing. The message has a remedy.
    """
    if settings.knowledge == "off":
        return
    if not settings.data_path.is_dir():
        raise SettingsError(
            f"DATA_PATH={settings.data_path}: no such folder; create it, or set DATA_PATH to the folder of "
            "your documents"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"KNOWLEDGE=on: required packages are not installed ({', '.join(missing)}); run "
            f"`{install_with('KNOWLEDGE', 'on')}`"
        )


def knowledge_options(settings: Settings) -> KnowledgeOptions:
    """Options of the knowledge base from the settings."""
    from app.knowledge.knowledge import KnowledgeOptions

    folder = settings.data_path.resolve()
    name = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    return KnowledgeOptions(
        folder=folder,
        index=settings.knowledge_index or cache_folder() / "knowledge" / name,
        top_k=settings.knowledge_top_k,
        threshold=settings.knowledge_threshold,
        chunk_tokens=settings.knowledge_chunk_tokens,
        chunk_overlap=settings.knowledge_chunk_overlap,
        query_prefix=settings.embedding_query_prefix,
        passage_prefix=settings.embedding_passage_prefix,
        file_seconds=settings.knowledge_file_seconds,
        follow_links=settings.knowledge_follow_links == "on",
    )


def _open(settings: Settings, embedder: Embedder, metrics: Metrics) -> Knowledge:
    from app.knowledge.knowledge import Knowledge

    longest = len(embedder.tokenize(settings.embedding_passage_prefix)) + settings.knowledge_chunk_tokens
    if longest > embedder.max_tokens:
        raise SettingsError(
            f"KNOWLEDGE_CHUNK_TOKENS={settings.knowledge_chunk_tokens}: the maximum of {embedder.name} is "
            f"{embedder.max_tokens} tokens, including prefix and control tokens"
        )
    if settings.knowledge_chunk_overlap >= settings.knowledge_chunk_tokens:
        raise SettingsError(
            f"KNOWLEDGE_CHUNK_OVERLAP={settings.knowledge_chunk_overlap}: should be below "
            f"KNOWLEDGE_CHUNK_TOKENS={settings.knowledge_chunk_tokens}"
        )
    try:
        return Knowledge(knowledge_options(settings), embedder, metrics)
    except StoreError as error:
        raise SettingsError(str(error)) from error


async def with_found(
    prompt: ChatPrompt, knowledge: Knowledge | None, reranker: Reranker | None, *, by_default: bool
) -> ChatPrompt:
    """Add passages on the last question of a conversation.

    A question such as "and when does it close?" depends on the question before it. So a second search uses
    both. A reranker sorts more candidates by their relevance to the last question.

    Returns:
        The prompt with passages, best first. It is unchanged if the request or its context searches no
        documents.

    Raises:
        NotOffered: The request requires the knowledge base, which is off.
        BadRequest: The request names an unknown document.
        KnowledgeFailed: The index cannot be read.
        GenerationFailed: The question cannot be embedded.
    """
    use = prompt.knowledge
    if knowledge is None and not use.wanted:
        return prompt
    knowledge = required_knowledge(knowledge, field="knowledge")
    wanted = by_default if use.wanted is None else use.wanted
    questions = [message.content for message in prompt.messages if message.role == "user"]
    if not wanted or not questions:
        return prompt
    await asyncio.to_thread(check_files, knowledge, use.files, "knowledge.files")
    queries = [questions[-1], "\n".join(questions[-2:])] if len(questions) > 1 else questions
    n_waiting, top_k = knowledge.n_waiting(use.files), knowledge.options.top_k
    n_wanted = top_k if reranker is None else _CANDIDATES * top_k
    with _service_errors():
        found = await asyncio.gather(
            *(knowledge.search(query, files=use.files, top_k=n_wanted) for query in queries)
        )
    best: dict[tuple[str, int], Passage] = {}
    for passage in sorted((p for passages in found for p in passages), key=lambda p: -p.score):
        best.setdefault((passage.chunk.file, passage.chunk.position), passage)
    passages = [*best.values()][:n_wanted]
    if reranker is not None and passages:
        texts = [embedded_text(passage.chunk) for passage in passages]
        ranking = await rank(reranker, questions[-1], texts)
        scored = zip(passages, ranking.scores, strict=True)
        passages = sorted(
            (replace(passage, score=score) for passage, score in scored), key=lambda p: -p.score
        )
    return replace(prompt, passages=tuple(passages[:top_k]), n_waiting=n_waiting)


def required_knowledge(knowledge: Knowledge | None, *, field: str | None = None) -> Knowledge:
    """The knowledge base of a request that needs it.

    Raises:
        NotOffered: The knowledge base is off.
    """
    if knowledge is None:
        raise NotOffered("the knowledge base is off; start the server with KNOWLEDGE=on", field=field)
    return knowledge


async def search_documents(
    knowledge: Knowledge,
    query: str,
    *,
    files: Sequence[str] | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
) -> Sequence[Passage]:
    """Call :meth:`Knowledge.search` and convert its errors to those of the service.

    Raises:
        BadRequest: A file does not exist.
        KnowledgeFailed: The index cannot be read.
        GenerationFailed: The query cannot be embedded.
    """
    await asyncio.to_thread(check_files, knowledge, files, "files")
    with _service_errors():
        return await knowledge.search(query, files=files, top_k=top_k, threshold=threshold)


def list_documents(knowledge: Knowledge) -> Sequence[DocumentState]:
    """The documents and their state; blocking.

    Raises:
        KnowledgeFailed: The index cannot be read.
    """
    with _service_errors():
        return knowledge.documents()


def check_files(knowledge: Knowledge, files: Sequence[str] | None, field: str) -> None:
    """Check the documents that a request names.

    Raises:
        BadRequest: A document is not indexed.
        KnowledgeFailed: The index cannot be read.
    """
    if files is None:
        return
    known = {document.name for document in list_documents(knowledge)}
    for name in files:
        if name not in known:
            raise BadRequest(
                f"document {name[:100]!r} does not exist; GET /v1/knowledge lists all documents", field=field
            )


@contextlib.contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except EmbeddingError as error:
        raise GenerationFailed(str(error)) from error
    except StoreError as error:
        raise KnowledgeFailed(str(error)) from error
