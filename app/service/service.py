"""The operations of all dialects: generate and tokenize; the start and the end of all models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.config.contexts import Context
from app.config.keys import Keys
from app.config.settings import Settings, SettingsError
from app.engine.client import LOCAL
from app.engine.embedder import Embedder
from app.engine.fair_lock import FairLock
from app.machine.progress import Stage
from app.service.admission import Admission, Place
from app.service.clients import TokenRates, check_model, check_prompt
from app.service.contexts import ContextsFile, LiveContexts
from app.service.encoders.encoders import Encoders
from app.service.encoders.retrieval import with_found
from app.service.errors import BadRequest, Loading
from app.service.model.choosing import choose
from app.service.model.files import ModelFiles
from app.service.model.generation import Generation
from app.service.model.model import Model
from app.service.models.entries import Entry
from app.service.models.models import Models
from app.service.models.names import adapter_of
from app.service.preparing.constraints import effective
from app.service.preparing.prompts import ChatPrompt, Constraint, Prompt, TextPrompt
from app.service.threads import PreparingThreads
from app.telemetry.metrics import Metrics
from app.telemetry.request import RequestRecord, current
from app.weights.served import ServedModel, served_models
from app.weights.tokenizer import TokenizerRepo

if TYPE_CHECKING:
    from app.knowledge.knowledge import Knowledge


logger = logging.getLogger("tokenstream.service")


class Service:
    """Models, their contexts, and optionally an embedding model with a knowledge base and a reranker.

    Attributes:
        models: The models by name.
        keys: Keys of API_KEYS.
        rates: Tokens per minute of these keys.
        threads: Threads that prepare prompts.
        admission: Places of all requests except embedding requests.
        embedding_admission: Places of embedding requests.
        stage: Current part of the start, until it is complete.
        failure: Error message of a failed thread: of an engine, the embedding model or the reranker. None
            while all run.
    """

    def __init__(
        self,
        settings: Settings,
        contexts: Mapping[str, Context],
        metrics: Metrics,
        served: Sequence[ServedModel] = (),
    ) -> None:
        """Create a service without loading a model; ``served``: its models. Default: the one of the settings.

        Raises:
            SettingsError: CONTEXT_TYPE is not defined.
            ContextsError: A context names an unknown model.
            KeysError: API_KEYS is invalid.
        """
        self.settings = settings
        self.contexts = LiveContexts(contexts)
        self.metrics = metrics
        if settings.context_type not in contexts:
            raise SettingsError(
                f"CONTEXT_TYPE={settings.context_type}: should be one of {', '.join(contexts)}"
                f" (defined in {settings.contexts_file})"
            )
        served = served or served_models(settings)
        self.models = Models(served, settings, self.contexts, metrics, self._fail)
        self._contexts_file = ContextsFile(settings, self.contexts, self.models)
        self._contexts_file.check_models(contexts)
        places = settings.max_concurrent_requests, settings.max_waiting_tokens
        self.admission, self.embedding_admission = Admission(*places), Admission(*places)
        self.keys = Keys(settings.api_keys.get_secret_value() if settings.api_keys else "", contexts)
        self.rates = TokenRates()
        self.failure: str | None = None
        self.stage = Stage("starting")
        self._on_failure: Callable[[str], None] | None = None
        self._is_started = False
        self._encoders = Encoders(settings, metrics, self.rates, self._fail)
        self.threads = PreparingThreads()

    @property
    def is_ready(self) -> bool:
        """Whether the start is complete, and no thread has failed."""
        return self._is_started and self.failure is None

    def check_started(self) -> None:
        """Check that the start is complete.

        Raises:
            Loading: It is not.
        """
        if not self._is_started:
            raise Loading("the model is still loading; GET /ready responds 200 when it is loaded")

    @property
    def model(self) -> Model:
        """The default model.

        Raises:
            Loading: It is not loaded.
        """
        self.check_started()
        if (model := self.models.default.model) is None:
            raise Loading(f"model {self.model_name} is not loaded; its next request loads it")
        return model

    @property
    def model_name(self) -> str:
        """The default model's name; empty until it is known."""
        return self.models.default.name if self._is_started or self.models.are_several else ""

    @property
    def refused_contexts(self) -> Mapping[str, str]:
        """Contexts that their model rejects, with the reasons."""
        models = (entry.model for entry in self.models.entries)
        return {name: why for model in models if model for name, why in model.refused.items()}

    @property
    def n_unfinished(self) -> int:
        """Number of running and waiting requests."""
        return self.models.n_unfinished

    @property
    def encoders(self) -> Encoders:
        """The embedding model and the reranker.

        Raises:
            Loading: The start is not complete.
        """
        self.check_started()
        return self._encoders

    @property
    def knowledge(self) -> Knowledge | None:
        """The knowledge base; None if it is off or not loaded yet."""
        return self._encoders.knowledge

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model; None if it is off or not loaded yet."""
        return self._encoders.embedder

    @property
    def embedding_name(self) -> str | None:
        """The embedding model's name; None without one."""
        return self.embedder.name if self.embedder else None

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
        """Load the models of the start, start their engines and prefill contexts.

        Args:
            path: GGUF file of the default model; for a split model, its first part.
            tokenizer_repo: Replaces the chat template and special tokens of that file.
            embedding_model: A GGUF file.
            rerank_model: A GGUF file.
            warm: Names of the contexts to prefill; None: all.
            on_failure: Called once, on the event loop, with the error message that ``failure`` gets.

        Raises:
            ModelLoadError: llama.cpp cannot load a model, or memory is insufficient.
            UserError: The settings, the contexts or the tokenizer do not fit a model.
        """
        self._on_failure = on_failure
        lock = FairLock()
        # Before the models, whose memory plans count the remaining memory.
        await self._encoders.load(embedding_model, rerank_model, lock)
        is_shared = self.models.are_several or not self._encoders.are_off
        try:
            files = ModelFiles(path, tokenizer_repo)
            await self.models.start(files, lock=lock if is_shared else None, warm=warm)
            # After the models have measured their kernels, because indexing uses all cores.
            await self._encoders.index()
        except BaseException:
            await self.models.close()
            raise
        self._is_started = True
        self._contexts_file.started()

    def reload_contexts(self) -> None:
        """Read CONTEXTS_FILE again, in the background."""
        self._contexts_file.reload()

    async def compile_constraints(self) -> None:
        """Compile the constraints of the contexts. The first use of one would take a second more."""
        for entry in self.models.entries:
            for name, context in self.models.contexts_of(entry, self.contexts).items():
                if entry.model is None:
                    break
                try:
                    await self.threads.compile(entry.model.preparation.constraints.compile, context)
                except BadRequest as error:
                    logger.error("requests of context %r are rejected: %s", name, error)

    def on_stage(self, stage: Stage) -> None:
        """Record the current part of the start."""
        self.stage = stage

    def _fail(self, message: str) -> None:
        if self.failure is None:
            self.failure = message
            if self._on_failure is not None:
                self._on_failure(message)

    async def close(self) -> None:
        """Stop the engines and free the models. A part that fails does not keep the others open."""
        await self._contexts_file.close()
        self._is_started = False
        async with AsyncExitStack() as parts:
            parts.push_async_callback(self._encoders.close)
            parts.push_async_callback(self.models.close)
            parts.push_async_callback(self.threads.close)  # first: they read the models

    # --- requests

    def entry_of(self, prompt: Prompt) -> Entry:
        """The model that a prompt names, else that of its context, else the default one.

        Raises:
            Loading: The start is not complete.
            UnknownModel: No model has the name.
        """
        self.check_started()
        name = prompt.model
        if name is None and isinstance(prompt, ChatPrompt):
            context = self.settings.context_type if prompt.context is None else prompt.context
            name = self.contexts[context].model if context in self.contexts else None
        return self.models.find(name)

    def adapter_of(self, prompt: Prompt, entry: Entry) -> str:
        """The LoRA adapter that a prompt names, else that of its context; empty: none.

        Raises:
            UnknownModel: The prompt names a model with an unknown adapter.
            BadRequest: The adapter is unknown.
        """
        adapter = prompt.adapter or adapter_of(entry, prompt.model)
        if not adapter and isinstance(prompt, ChatPrompt):
            context = self.settings.context_type if prompt.context is None else prompt.context
            adapter = (self.contexts[context].adapter if context in self.contexts else None) or ""
        if adapter and adapter not in entry.adapters:
            allowed = f"one of {', '.join(entry.adapters)}" if entry.adapters else "absent: LORA is empty"
            raise BadRequest(f"{adapter[:100]!r} should be {allowed}", field="adapter_id")
        return adapter

    async def use(self, entry: Entry, place: Place | None) -> Model:
        """The loaded model of a request. It stays loaded until the request leaves its place.

        Raises:
            Forbidden: The client's key does not allow the model.
            LoadFailed: It cannot be loaded.
        """
        if place is None:
            lease = await self.models.acquire(entry)
            self.models.release(entry, lease)  # unfinished requests keep it loaded too
            return lease.model
        if (model := place.models.get(entry)) is not None:
            return model
        check_model(place.client, entry.name)
        lease = await self.models.acquire(entry)
        place.hold(entry, lease.model, partial(self.models.release, entry, lease))
        return lease.model

    async def tokens(self, prompt: Prompt, place: Place | None = None) -> list[int]:
        """Tokenize a prompt, with its context and passages; ``place``: of the request.

        Raises:
            ServiceError: The prompt cannot be tokenized.
        """
        model = await self.use(self.entry_of(prompt), place)
        check_prompt(LOCAL if place is None else place.client, prompt, self.settings.context_type)
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
        entry = self.entry_of(prompt)
        adapter = self.adapter_of(prompt, entry)
        record.model = entry.name
        most = self.settings.max_concurrent_requests
        if n > most:
            raise BadRequest(f"{n} answers exceed MAX_CONCURRENT_REQUESTS ({most})", field="n")
        client = LOCAL if place is None else place.client
        check_model(client, entry.name)
        check_prompt(client, prompt, self.settings.context_type)
        if place is not None:
            place.reserve(n)
        model = await self.use(entry, place)
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
        prepared = replace(prepared, adapter=adapter)
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

    async def _with_passages(self, prompt: Prompt, model: Model) -> Prompt:
        """Add passages from the knowledge base, if the prompt or its context requests them."""
        if not isinstance(prompt, ChatPrompt):
            return prompt
        context = model.preparation.context_of(prompt)
        by_default = context is not None and context.knowledge
        if self.knowledge is None:
            return await with_found(prompt, None, self._encoders.reranker, by_default=by_default)
        with current().phase("retrieval") as facts:
            found = await with_found(prompt, self.knowledge, self._encoders.reranker, by_default=by_default)
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
