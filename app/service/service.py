"""The operations of all dialects: generate, tokenize, embed, rerank."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.config.contexts import Context
from app.config.keys import Keys
from app.config.settings import Settings, SettingsError
from app.engine.client import LOCAL, Client
from app.engine.embedder import Embedder
from app.engine.fair_lock import FairLock
from app.engine.reranker import Reranker
from app.machine.cores import physical_cores
from app.machine.progress import Stage
from app.service.admission import Admission, Place
from app.service.choices import choose
from app.service.clients import TokenRates, check_model, check_prompt
from app.service.constraints import effective
from app.service.contexts import ContextsFile, LiveContexts
from app.service.embedding import Embeddings, embed
from app.service.errors import BadRequest, Loading, NotOffered
from app.service.generation import Generation
from app.service.model import Model
from app.service.prompts import ChatPrompt, Constraint, Prompt, TextPrompt
from app.service.rerank import Ranking, open_reranker, rank, rank_by_cosine
from app.service.retrieval import Retrieval, with_found
from app.service.threads import PreparingThreads
from app.telemetry.metrics import Metrics
from app.telemetry.request import RequestRecord, current
from app.weights.tokenizer import TokenizerRepo

if TYPE_CHECKING:
    from app.knowledge.knowledge import Knowledge


logger = logging.getLogger("tokenstream.service")


class Service:
    """A model, its contexts, and optionally an embedding model with a knowledge base.

    Attributes:
        keys: Keys of API_KEYS.
        rates: Tokens per minute of these keys.
        threads: Threads that prepare prompts.
        admission: Places of all requests except embedding requests.
        embedding_admission: Places of embedding requests.
        stage: Current part of the start, until the model is loaded.
        failure: Error message of the engine's or the embedding model's failed thread; None while both run.
    """

    def __init__(self, settings: Settings, contexts: Mapping[str, Context], metrics: Metrics) -> None:
        """Create a service without loading a model.

        Raises:
            SettingsError: CONTEXT_TYPE is not defined.
            KeysError: API_KEYS is invalid.
        """
        self.settings = settings
        self.contexts = LiveContexts(contexts)
        self._contexts_file = ContextsFile(settings, self.contexts)
        self.metrics = metrics
        if settings.context_type not in contexts:
            raise SettingsError(
                f"CONTEXT_TYPE={settings.context_type}: should be one of {', '.join(contexts)}"
                f" (defined in {settings.contexts_file})"
            )
        places = settings.max_concurrent_requests, settings.max_waiting_tokens
        self.admission, self.embedding_admission = Admission(*places), Admission(*places)
        self.keys = Keys(settings.api_keys.get_secret_value() if settings.api_keys else "", contexts)
        self.rates = TokenRates()
        self.failure: str | None = None
        self.stage = Stage("starting")
        self._on_failure: Callable[[str], None] | None = None
        self._model: Model | None = None
        self._retrieval: Retrieval | None = None
        self._reranker: Reranker | None = None
        self.threads = PreparingThreads()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded, and no thread has failed."""
        return self._model is not None and self.failure is None

    @property
    def model(self) -> Model:
        """The loaded model.

        Raises:
            Loading: The model is not loaded yet.
        """
        if self._model is None:
            raise Loading("the model is still loading; GET /ready responds 200 when it is loaded")
        return self._model

    @property
    def model_name(self) -> str:
        """The model's name; empty until it is loaded."""
        return self._model.name if self._model else ""

    @property
    def refused_contexts(self) -> Mapping[str, str]:
        """Contexts rejected by the chat template, with its error messages."""
        return self._model.refused if self._model else {}

    @property
    def n_unfinished(self) -> int:
        """Number of running and waiting requests."""
        return self._model.engine.n_unfinished if self._model else 0

    @property
    def knowledge(self) -> Knowledge | None:
        """The knowledge base; None if it is off or not loaded yet."""
        return self._retrieval.knowledge if self._retrieval else None

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model; None if it is off or not loaded yet."""
        return self._retrieval.embedder if self._retrieval else None

    @property
    def embedding_name(self) -> str | None:
        """The embedding model's name; None without one."""
        return self._retrieval.embedder.name if self._retrieval else None

    async def load(
        self,
        path: Path,
        tokenizer_repo: TokenizerRepo | None,
        embedding_model: Path | None = None,
        rerank_model: Path | None = None,
        *,
        warm: Collection[str] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Load the models, start the engine and prefill contexts.

        Args:
            path: A GGUF file; for a split model, its first part.
            tokenizer_repo: Replaces the chat template and special tokens of the GGUF file.
            embedding_model: A GGUF file.
            rerank_model: A GGUF file.
            warm: Names of the contexts to prefill; None: all.
            on_failure: Called once, on the event loop, with the error message that ``failure`` gets.

        Raises:
            ModelLoadError: llama.cpp cannot load a model, or memory is insufficient.
            UserError: The settings, the contexts or the tokenizer do not fit the model.
        """
        self._on_failure = on_failure
        lock = FairLock()
        # Before the model, whose memory plan counts the remaining memory.
        await self._load_embedder_and_reranker(embedding_model, rerank_model, lock)
        model = await Model.load(
            path,
            tokenizer_repo,
            self.settings,
            self.contexts,
            metrics=self.metrics,
            lock=lock if self._retrieval or self._reranker else None,
            on_failure=self._engine_failed,
            warmed=warm,
        )
        try:
            # After the model has measured its kernels, because indexing uses all cores.
            if self._retrieval is not None:
                await self._retrieval.index()
        except BaseException:
            await model.close()
            raise
        self._model = model
        self._contexts_file.loaded(model)

    def reload_contexts(self) -> None:
        """Read CONTEXTS_FILE again, in the background."""
        self._contexts_file.reload(self._model)

    async def compile_constraints(self) -> None:
        """Compile the constraints of the contexts. The first use of one would take a second more."""
        for name, context in list(self.contexts.items()):
            try:
                await self.threads.compile(self.model.preparation.constraints.compile, context)
            except BadRequest as error:
                logger.error("requests of context %r are rejected: %s", name, error)

    async def _load_embedder_and_reranker(
        self, embedding_model: Path | None, rerank_model: Path | None, lock: FairLock
    ) -> None:
        """Load the embedding model with its knowledge base, and the reranker, if they are on."""
        loop = asyncio.get_running_loop()

        def failed(model: str, error: BaseException) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(self._fail, f"the {model} failed: {error}")

        if embedding_model is not None:
            on_failure = partial(failed, "embedding model")
            self._retrieval = await asyncio.to_thread(
                Retrieval, self.settings, embedding_model, self.metrics, lock, on_failure
            )
        if rerank_model is not None:
            self._reranker = await asyncio.to_thread(
                open_reranker,
                rerank_model,
                n_threads=self.settings.model_threads or physical_cores(),
                lock=lock,
                on_failure=partial(failed, "reranker"),
            )

    def on_stage(self, stage: Stage) -> None:
        """Record the current part of the start."""
        self.stage = stage

    def _engine_failed(self, error: BaseException) -> None:
        self.metrics.engine.on_end()
        self._fail(f"the engine failed: {error}")

    def _fail(self, message: str) -> None:
        if self.failure is None:
            self.failure = message
            if self._on_failure is not None:
                self._on_failure(message)

    async def close(self) -> None:
        """Stop the engine and free the models. A part that fails does not keep the others open."""
        await self._contexts_file.close()
        model, self._model = self._model, None
        async with AsyncExitStack() as parts:
            for part in (self._reranker, self._retrieval):
                if part is not None:
                    parts.push_async_callback(asyncio.to_thread, part.close)
            if model is not None:
                parts.push_async_callback(model.close)
            parts.push_async_callback(self.threads.close)  # first: they read the models

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        field: str = "input",
        truncate: Literal["left", "right"] | None = None,
        normalize: bool = True,
        client: Client = LOCAL,
    ) -> Embeddings:
        """Embed texts, or tokens of the embedding model.

        Args:
            inputs: The texts or token lists.
            field: Name of the request's field, for error messages.
            truncate: Side at which long texts are truncated. None: reject them.
            normalize: Whether to scale vectors to length 1.
            client: Origin of the request.

        Raises:
            NotOffered: The server has no embedding model.
            BadRequest: An input is empty, too long, or holds tokens of another vocabulary.
            GenerationFailed: The computation failed.
        """
        record = current()
        record.operation = "embeddings"
        _ = self.model  # raises Loading while models are loading
        if self._retrieval is None:
            raise NotOffered(
                "there is no embedding model; start the server with KNOWLEDGE=on or EMBEDDING_MODEL"
            )
        embedder = self._retrieval.embedder
        check_model(client, embedder.name)
        record.model = embedder.name
        with record.phase("embed"):
            made = await embed(embedder, inputs, field=field, truncate=truncate, normalize=normalize)
        record.n_input = made.n_tokens
        self.rates.spend(client, made.n_tokens)
        return made

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        field: str = "documents",
        truncate: bool = True,
        client: Client = LOCAL,
    ) -> Ranking:
        """Rank documents by their relevance to a query.

        Args:
            query: The query.
            documents: The documents, at least one.
            field: Name of the documents in the request, for error messages.
            truncate: Whether to drop the ends of long texts. If not, they are rejected.
            client: Origin of the request.

        Raises:
            NotOffered: The server has no reranker.
            TooLong: A text is too long.
            GenerationFailed: The computation failed.
        """
        record, settings = current(), self.settings
        record.operation = "rerank"
        _ = self.model  # raises Loading while models are loading
        if self._reranker is not None:
            check_model(client, self._reranker.name)
            ranking = await rank(self._reranker, query, documents, field=field, truncate=truncate)
        elif self._retrieval is not None and settings.rerank_with_embeddings == "on":
            embedder = self._retrieval.embedder
            check_model(client, embedder.name)
            prefixes = settings.embedding_query_prefix, settings.embedding_passage_prefix
            ranking = await rank_by_cosine(
                embedder, query, documents, prefixes=prefixes, field=field, truncate=truncate
            )
        else:
            raise NotOffered(
                "there is no reranker; start the server with RERANK_MODEL, or with an embedding model and "
                "RERANK_WITH_EMBEDDINGS=on"
            )
        record.model, record.n_input = ranking.model, ranking.n_tokens
        self.rates.spend(client, ranking.n_tokens)
        return ranking

    async def tokens(self, prompt: Prompt, client: Client = LOCAL) -> list[int]:
        """Tokenize a prompt of a client, with its context and passages.

        Raises:
            ServiceError: The prompt cannot be tokenized.
        """
        model = self.model
        self.check_permission(client, prompt)
        prompt = await self._with_passages(prompt, model)
        return await self.threads.run(prompt.n_characters, model.preparation.tokens, prompt)

    async def generate(
        self,
        prompt: Prompt,
        overrides: Mapping[str, Any],
        *,
        constraint: Constraint | None = None,
        n: int = 1,
        place: Place | None = None,
    ) -> list[Generation]:
        """Start ``n`` answers to one prompt. It is prefilled once.

        Args:
            prompt: The conversation or text.
            overrides: Fields of SamplingParams that the request sets.
            constraint: A grammar of the answers.
            n: Number of answers; each has the previous one's seed plus 1, if a seed is set.
            place: Of the request. It gets one place per answer.

        Raises:
            ServiceError: The request is rejected.
        """
        requested_at, record = time.perf_counter(), current()
        self._describe(prompt, record)
        model = self.model
        record.model = model.name
        most = self.settings.max_concurrent_requests
        if n > most:
            raise BadRequest(f"{n} answers exceed MAX_CONCURRENT_REQUESTS ({most})", field="n")
        client = LOCAL if place is None else place.client
        self.check_permission(client, prompt)
        if place is not None:
            place.reserve(n)
        prompt = await self._with_passages(prompt, model)
        constraint = effective(prompt, model.preparation.context_of(prompt), constraint)
        is_constrained = constraint is not None or (
            isinstance(prompt, ChatPrompt) and prompt.tools is not None
        )
        with record.phase("prepare"):
            prepare = partial(model.preparation.prepare, prompt, overrides, constraint)
            if is_constrained:
                prepared = await self.threads.compile(prepare)
            else:
                prepared = await self.threads.run(prompt.n_characters, prepare)
        if place is not None:
            place.prepared(len(prepared.tokens))
        if prepared.choices is None:
            generations = model.submit(prepared, n, requested_at, client)
        else:
            generations = await choose(model, prepared, n, requested_at, client)
        self.rates.spend(client, len(prepared.tokens))
        for generation in generations:
            generation.on_tokens = partial(self.rates.spend, client)
        return generations

    def check_permission(self, client: Client, prompt: Prompt) -> None:
        """Check that a client may use the model and the context of a prompt.

        Raises:
            Forbidden: Its key does not allow one of them.
        """
        check_model(client, self.model.name)
        check_prompt(client, prompt, self.settings.context_type)

    async def _with_passages(self, prompt: Prompt, model: Model) -> Prompt:
        """Add passages from the knowledge base, if the prompt or its context requests them."""
        if not isinstance(prompt, ChatPrompt):
            return prompt
        context = model.preparation.context_of(prompt)
        by_default = context is not None and context.knowledge
        if self.knowledge is None:
            return await with_found(prompt, None, self._reranker, by_default=by_default)
        with current().phase("retrieval") as facts:
            found = await with_found(prompt, self.knowledge, self._reranker, by_default=by_default)
            facts["passages"] = len(found.passages)
        return found

    def _describe(self, prompt: Prompt, record: RequestRecord) -> None:
        """Record the prompt's kind and context, and its text if that is logged."""
        if isinstance(prompt, TextPrompt):
            record.operation = "text_completion"
        else:
            record.operation = "chat"
            context = self.settings.context_type if prompt.context is None else prompt.context
            record.context = context if context in self.contexts else None
        if record.logs_content:
            record.prompt = prompt.shown
