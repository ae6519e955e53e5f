"""One request's way: context, chat template, tokens, engine, text."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.chat.prompt import PromptTokenizer
from app.config.contexts import Context, ContextsError
from app.config.settings import Settings, SettingsError
from app.engine.answer import EngineError, QueueFull, RequestTooLong
from app.engine.embedder import Embedder
from app.engine.engine import Engine
from app.engine.fair_lock import FairLock
from app.engine.llama import Model, Vocab
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
from app.service.preparation import Preparation, TokenLimits
from app.service.prompts import ChatPrompt, Constraint, Prompt
from app.service.retrieval import Retrieval, passages_for
from app.service.setup import engine_options, fingerprint, make_tokenizer, memory_plan
from app.telemetry.metrics import Metrics
from app.weights.tokenizer import TokenizerRepo

if TYPE_CHECKING:
    from app.knowledge.knowledge import Knowledge

logger = logging.getLogger("tokenstream.service")

# Rendering and tokenizing run beside the event loop: a long document takes milliseconds.
_PREPARING_THREADS = 2
_LONG_TEXT = 50_000  # characters: more than a millisecond or two


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers.

    Attributes:
        name: What it is called.
        fingerprint: Changes with the model, the library and the code that samples.
        created: When its file was made, in seconds since 1970.
        description: Architecture, size and format.
        limits: The most tokens of a request.
        n_ctx: Tokens of KV memory in all.
        tokenizer: Writes its prompts.
        vocab: Its vocabulary.
        engine: Computes.
        preparation: What comes before that.
    """

    name: str
    fingerprint: str
    created: int
    description: str
    limits: TokenLimits
    n_ctx: int
    tokenizer: PromptTokenizer
    vocab: Vocab
    engine: Engine
    preparation: Preparation


class Service:
    """A model with its contexts, ready to answer once it is loaded."""

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
        self._tokenizer: PromptTokenizer | None = None
        self._loaded: LoadedModel | None = None
        self._retrieval: Retrieval | None = None
        self._n_embedding = 0  # requests for vectors that are not answered yet
        self._threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
        # What takes long has a thread of its own, so that nobody else's start waits for it.
        self._long_texts = ThreadPoolExecutor(1, thread_name_prefix="prepare-long")
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="prepare-grammar")

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self._loaded is not None

    @property
    def loaded(self) -> LoadedModel:
        """The model.

        Raises:
            Loading: It is not there yet.
        """
        if self._loaded is None:
            raise Loading("the model is still loading; GET /ready answers 200 when it is there")
        return self._loaded

    @property
    def model_name(self) -> str:
        """What the model is called; empty until it is loaded."""
        return self._loaded.name if self._loaded else ""

    @property
    def n_unfinished(self) -> int:
        """How many requests run or wait."""
        return self._loaded.engine.n_unfinished if self._loaded else 0

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
        settings = self.settings
        turns = FairLock()
        if embedding_model is not None:  # first, so that the plan sees what memory it leaves
            self._retrieval = await asyncio.to_thread(
                Retrieval, settings, embedding_model, self.metrics, turns
            )
        plan = await asyncio.to_thread(memory_plan, settings, path)
        logger.info("%s", plan)
        model = await asyncio.to_thread(
            Model, path, gpu_layers=settings.model_gpu_layers, main_gpu=settings.main_gpu
        )
        tokenizer = self._tokenizer = await asyncio.to_thread(make_tokenizer, settings, model, tokenizer_repo)
        options = await asyncio.to_thread(engine_options, settings, plan, model)
        engine = await asyncio.to_thread(
            Engine, model, options, self.metrics, turns if self._retrieval else None
        )
        engine.start()
        self._model = model
        _log_model(model, engine)
        try:
            limits = TokenLimits.of(settings, engine.n_ctx_sequence)
            preparation = Preparation(settings, self.contexts, model.vocab, tokenizer, limits)
            await self._warm(engine, preparation, limits, self.contexts if warm is None else warm)
            if self._retrieval is not None:  # last: what is measured before it needs the cores for itself
                await self._retrieval.index()
            loaded = LoadedModel(
                name=path.stem,
                fingerprint=await asyncio.to_thread(fingerprint, path, options.kv),
                created=await asyncio.to_thread(lambda: int(path.stat().st_mtime)),
                description=model.description,
                limits=limits,
                n_ctx=plan.n_ctx,
                tokenizer=tokenizer,
                vocab=model.vocab,
                engine=engine,
                preparation=preparation,
            )
        except BaseException:
            # Not self._loaded yet: its thread must have ended before close() frees the model.
            await engine.close()
            raise
        self._loaded = loaded

    async def _warm(
        self, engine: Engine, preparation: Preparation, limits: TokenLimits, names: Collection[str]
    ) -> None:
        """Prefill what all requests of a context begin with, where that can be kept."""
        started = time.perf_counter()
        is_kept = self.settings.prefix_cache_mb != 0
        n_tokens = n_computed = 0
        for name in names:
            prefix = await asyncio.get_running_loop().run_in_executor(
                self._threads, preparation.common_prefix, self.contexts[name]
            )
            if len(prefix) >= limits.input:
                raise ContextsError(
                    f"{self.settings.contexts_file}: context {name!r} has {len(prefix)} tokens, as many as "
                    f"a prompt may have ({limits.input}) or more; raise N_CTX, or MAX_INPUT_LENGTH where it "
                    "is set, or shorten the context"
                )
            if prefix and is_kept:
                n_tokens += len(prefix)
                n_computed += await engine.warm(prefix)
        if not is_kept:
            logger.info("contexts are not prefilled at start: PREFIX_CACHE_MB=0 keeps nothing")
            return
        logger.info(
            "%d contexts of %d tokens are warm after %.1f s: %d prefilled, the others were known",
            len(names),
            n_tokens,
            time.perf_counter() - started,
            n_computed,
        )

    async def close(self) -> None:
        """Stop the engine and free the model."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await loaded.engine.close()
        if self._model is not None:
            self._model.close()
        if self._retrieval is not None:
            await asyncio.to_thread(self._retrieval.close)
        for threads in (self._threads, self._long_texts, self._grammars):
            threads.shutdown(cancel_futures=True)
        if self._tokenizer is not None:
            self._tokenizer.template.close()

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
        loaded = self.loaded  # what loads may still bring an embedding model
        if self._retrieval is None:
            raise NotOffered(
                f"{loaded.name} makes no embeddings; start the server with KNOWLEDGE=on or EMBEDDING_MODEL"
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
        loaded, loop = self.loaded, asyncio.get_running_loop()
        prompt = await self._with_passages(prompt)
        return await loop.run_in_executor(self._thread_for(prompt), loaded.preparation.tokens, prompt)

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
        loaded = self.loaded
        most = self.settings.max_concurrent_requests
        if n > most:
            raise BadRequest(f"{n} answers are more than may run and wait ({most})", field="n")
        prompt = await self._with_passages(prompt)
        is_constrained = constraint is not None or (
            isinstance(prompt, ChatPrompt) and prompt.tools is not None
        )
        prepared = await asyncio.get_running_loop().run_in_executor(
            self._grammars if is_constrained else self._thread_for(prompt),
            loaded.preparation.prepare,
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
                answer = loaded.engine.submit(prepared.tokens, params)
                generations.append(Generation(answer, self.metrics, requested_at, prepared.passages))
        except (RequestTooLong, QueueFull, EngineError) as error:
            for generation in generations:
                generation.close()
            raise _in_terms_of_the_service(error) from error
        return generations


def _log_model(model: Model, engine: Engine) -> None:
    if engine.n_ctx_sequence > model.n_ctx_train > 0:
        logger.warning(
            "a request may have %d tokens (N_CTX sets it), but the model was trained for %d: "
            "long ones may be answered badly",
            engine.n_ctx_sequence,
            model.n_ctx_train,
        )
    logger.info("model %s (%s), %.0f MB", model.path.name, model.description, model.n_bytes / 1e6)


def _in_terms_of_the_service(error: Exception) -> ServiceError:
    if isinstance(error, RequestTooLong):
        return TooLong(str(error), field="max_tokens")
    if isinstance(error, QueueFull):
        return Overloaded(f"the server is busy: {error}; try again later")
    return GenerationFailed(str(error))
