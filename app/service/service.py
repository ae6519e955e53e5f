"""One request's way: context, chat template, tokens, engine, text."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.config.contexts import Context
from app.config.settings import Settings, SettingsError
from app.engine.answer import EngineError, QueueFull, RequestTooLong
from app.engine.embedder import Embedder
from app.engine.fair_lock import FairLock
from app.service.embedding import Embeddings, embed
from app.service.errors import (
    BadRequest,
    GenerationFailed,
    Loading,
    NotOffered,
    Overloaded,
    ServiceError,
    TooLong,
)
from app.service.generation import Generation
from app.service.model import Model
from app.service.prompts import ChatPrompt, Constraint, Prompt
from app.service.retrieval import Retrieval, passages_for
from app.telemetry.metrics import Metrics
from app.weights.tokenizer import TokenizerRepo

if TYPE_CHECKING:
    from app.knowledge.knowledge import Knowledge

logger = logging.getLogger("tokenstream.service")

# Rendering and tokenizing run beside the event loop: a long document takes milliseconds.
_PREPARING_THREADS = 2
_LONG_TEXT = 50_000  # characters: more than a millisecond or two


class Service:
    """A model with its contexts, ready to answer once it is model."""

    def __init__(self, settings: Settings, contexts: Mapping[str, Context], metrics: Metrics) -> None:
        """Check that the default context exists.

        Raises:
            SettingsError: It does not.
        """
        self.settings = settings
        self.contexts = contexts
        self.metrics = metrics
        if settings.context_type not in contexts:
            raise SettingsError(
                f"CONTEXT_TYPE={settings.context_type}: should be one of {', '.join(contexts)}"
                f" (defined in {settings.contexts_file})"
            )
        self._model: Model | None = None
        self._retrieval: Retrieval | None = None
        self._n_embedding = 0  # requests for vectors that are not answered yet
        self._threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
        # What takes long has a thread of its own, so that nobody else's start waits for it.
        self._long_texts = ThreadPoolExecutor(1, thread_name_prefix="prepare-long")
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="prepare-grammar")

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            Loading: It is not there yet.
        """
        if self._model is None:
            raise Loading("the model is still loading; GET /ready answers 200 when it is there")
        return self._model

    @property
    def model_name(self) -> str:
        """What the model is called; empty until it is model."""
        return self._model.name if self._model else ""

    @property
    def n_unfinished(self) -> int:
        """How many requests run or wait."""
        return self._model.engine.n_unfinished if self._model else 0

    @property
    def knowledge(self) -> Knowledge | None:
        """The knowledge base; None where it is off, or not there yet."""
        return self._retrieval.knowledge if self._retrieval else None

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model; None where there is none, or it is not there yet."""
        return self._retrieval.embedder if self._retrieval else None

    @property
    def embedding_name(self) -> str | None:
        """What the embedding model is called; None where there is none."""
        return self._retrieval.embedder.name if self._retrieval else None

    async def load(
        self,
        path: Path,
        tokenizer_repo: TokenizerRepo | None,
        embedding_model: Path | None = None,
        *,
        warm: Collection[str] | None = None,
    ) -> None:
        """Load the models, start the engine, prefill the contexts named in ``warm`` (None: all).

        Raises:
            ModelLoadError: llama.cpp cannot load the model, or memory is short.
            ModelError: The tokenizer's vocabulary is not the model's.
            SettingsError: A limit is set to more than there is room for, or the documents' index cannot be
                opened.
        """
        lock = FairLock()
        if embedding_model is not None:  # before the model: its memory plan counts what is left
            self._retrieval = await asyncio.to_thread(
                Retrieval, self.settings, embedding_model, self.metrics, lock
            )
        model = await Model.load(
            path,
            tokenizer_repo,
            self.settings,
            self.contexts,
            observer=self.metrics,
            lock=lock if self._retrieval else None,
            warm=warm,
        )
        try:
            if self._retrieval is not None:  # after the measurements of the model's load: it uses all cores
                await self._retrieval.index()
        except BaseException:
            await model.close()
            raise
        self._model = model

    async def close(self) -> None:
        """Stop the engine and free the models."""
        model, self._model = self._model, None
        if model is not None:
            await model.close()
        if self._retrieval is not None:
            await asyncio.to_thread(self._retrieval.close)
        for threads in (self._threads, self._long_texts, self._grammars):
            threads.shutdown(cancel_futures=True)

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        field: str = "input",
        truncate: Literal["left", "right"] | None = None,
        normalize: bool = True,
    ) -> Embeddings:
        """Make vectors of texts, or of tokens of the embedding model.

        Args:
            inputs: The texts.
            field: What the request calls them, for complaints.
            truncate: From which side texts are cut that are longer than the model reads; None refuses them.
            normalize: Whether vectors get length 1.

        Raises:
            NotOffered: There is no embedding model.
            BadRequest: One of them is empty, too long, or no text of this model's tokens.
            Overloaded: As many requests for vectors run and wait as may.
            GenerationFailed: The model cannot.
        """
        model = self.model  # what loads may still bring an embedding model
        if self._retrieval is None:
            raise NotOffered(
                f"{model.name} makes no embeddings; start the server with KNOWLEDGE=on or EMBEDDING_MODEL"
            )
        if self._n_embedding >= self.settings.max_concurrent_requests:
            raise Overloaded(
                f"the server is busy: {self._n_embedding} requests for vectors are running or waiting; "
                "try again later"
            )
        self._n_embedding += 1
        try:
            return await embed(
                self._retrieval.embedder, inputs, field=field, truncate=truncate, normalize=normalize
            )
        finally:
            self._n_embedding -= 1

    async def _with_passages(self, prompt: Prompt) -> Prompt:
        """The prompt with what its question finds in the documents, where it is to draw on them."""
        if not isinstance(prompt, ChatPrompt):
            return prompt
        context = self.contexts.get(prompt.context or self.settings.context_type)
        by_default = context is not None and context.knowledge
        passages = await passages_for(prompt, self.knowledge, by_default=by_default)
        return replace(prompt, passages=tuple(passages)) if passages else prompt

    async def tokens(self, prompt: Prompt) -> list[int]:
        """The tokens that the model reads for a prompt.

        Raises:
            ServiceError: It cannot be tokenized.
        """
        model, loop = self.model, asyncio.get_running_loop()
        prompt = await self._with_passages(prompt)
        return await loop.run_in_executor(self._thread_for(prompt), model.preparation.tokens, prompt)

    def _thread_for(self, prompt: Prompt) -> ThreadPoolExecutor:
        return self._long_texts if prompt.n_characters > _LONG_TEXT else self._threads

    async def generate(
        self,
        prompt: Prompt,
        overrides: Mapping[str, Any],
        *,
        constraint: Constraint | None = None,
        n: int = 1,
    ) -> list[Generation]:
        """Start ``n`` answers to one prompt, which is prefilled once.

        Args:
            prompt: What is asked.
            overrides: The fields of SamplingParams that the request sets itself.
            constraint: What the answers have to keep to.
            n: How many; a seed is that of the first, and counts up.

        Raises:
            ServiceError: The request cannot be answered; its subclasses say why.
        """
        requested_at = time.perf_counter()
        model = self.model
        most = self.settings.max_concurrent_requests
        if n > most:
            raise BadRequest(f"{n} answers are more than may run and wait ({most})", field="n")
        prompt = await self._with_passages(prompt)
        is_constrained = constraint is not None or (
            isinstance(prompt, ChatPrompt) and prompt.tools is not None
        )
        prepared = await asyncio.get_running_loop().run_in_executor(
            self._grammars if is_constrained else self._thread_for(prompt),
            model.preparation.prepare,
            prompt,
            overrides,
            constraint,
        )
        params = prepared.params
        generations: list[Generation] = []
        try:
            for index in range(n):
                if index and params.seed is not None:
                    params = replace(params, seed=(params.seed + 1) % 2**32)
                answer = model.engine.submit(prepared.tokens, params)
                generations.append(Generation(answer, self.metrics, requested_at, prepared.passages))
        except (RequestTooLong, QueueFull, EngineError) as error:
            for generation in generations:
                generation.close()
            raise _in_terms_of_the_service(error) from error
        return generations


def _in_terms_of_the_service(error: Exception) -> ServiceError:
    if isinstance(error, RequestTooLong):
        return TooLong(str(error), field="max_tokens")
    if isinstance(error, QueueFull):
        return Overloaded(f"the server is busy: {error}; try again later")
    return GenerationFailed(str(error))
