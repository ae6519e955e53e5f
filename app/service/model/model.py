"""A loaded model: weights, KV cache, tokenizer, engine and warm contexts. A process can have several."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from app.config.contexts import Context
from app.config.settings import Settings
from app.engine import llama
from app.engine.answer import EngineError, QueueFull, RequestTooLong
from app.engine.async_engine import AsyncEngine
from app.engine.client import LOCAL, Client
from app.engine.sampling.params import SamplingParams
from app.engine.scoring import Question, ScoringSequence
from app.fit.memory_plan import MemoryPlan
from app.fit.speed import record_speed
from app.machine.cores import physical_cores
from app.service.errors import GenerationFailed, Overloaded, ServiceError, TooLong
from app.service.model.ahead import PrefillAhead
from app.service.model.files import ModelFiles
from app.service.model.generation import Generation
from app.service.model.parts import engine_options, fingerprint, load_adapters, make_tokenizer
from app.service.model.warming import warm
from app.service.preparing.limits import TokenLimits
from app.service.preparing.preparation import Preparation, Prepared
from app.service.preparing.questions import QuestionPreparation
from app.telemetry.metrics import ModelMetrics
from app.telemetry.request import current

logger = logging.getLogger("tokenstream.service")


@dataclass(frozen=True, slots=True)
class Common:
    """Parts of the process that a model uses.

    Attributes:
        contexts: The contexts by name.
        lock: Held during each step of an engine. None: nothing else computes on the same cores.
        on_failure: Called on the event loop if the engine thread ends with an exception.
        is_busy: Whether a request runs or waits, of any model.
        streams_elsewhere: Whether answers of another model stream.
    """

    contexts: Mapping[str, Context]
    lock: AbstractContextManager[None] | None
    on_failure: Callable[[BaseException], None]
    is_busy: Callable[[], bool]
    streams_elsewhere: Callable[[], bool]


class Model:
    """A loaded model.

    Attributes:
        name: Its name in requests.
        fingerprint: Identifies the model file, the native library and the sampling code.
        created: Modification time of the model file, in seconds since 1970.
        description: Architecture, size and quantization.
        n_bytes: Size of the weights.
        chat_template: The chat template in the model file; may be empty.
        limits: Maximum tokens of a request.
        n_ctx: Size of the KV cache in tokens, all sequences together.
        kv_bytes: Its size in bytes.
        tokenizer: Applies the chat template and tokenizes.
        vocab: The vocabulary.
        engine: Generates tokens.
        preparation: Converts prompts to tokens and sampling parameters.
        questions: Converts questions about a state to tokens.
        refused: Contexts that the model rejects, with the reasons.
    """

    def __init__(
        self,
        name: str,
        files: ModelFiles,
        settings: Settings,
        plan: MemoryPlan,
        common: Common,
        *,
        metrics: ModelMetrics,
    ) -> None:
        """Load the weights and reserve the KV cache; blocking. ``load`` calls this in a thread.

        Raises:
            ModelLoadError: llama.cpp cannot load the model, or memory is insufficient.
            ModelError: The vocabulary of the tokenizer's repository differs from the model's, or an adapter
                does not fit the model.
            SettingsError: A configured token limit exceeds the KV cache.
        """
        path = files.path
        self.name = name
        self._settings = settings
        self._metrics = metrics
        logger.info("%s", plan)
        with ExitStack() as stack:
            self._weights = llama.Model(
                path, gpu_layers=settings.model_gpu_layers, main_gpu=settings.main_gpu
            )
            stack.callback(self._weights.close)
            load_adapters(self._weights, settings)
            self.tokenizer = make_tokenizer(settings, self._weights, files.tokenizer_repo)
            stack.callback(self.tokenizer.template.close)
            options = engine_options(settings, plan, self._weights, common.streams_elsewhere)
            self.engine = AsyncEngine(self._weights, options, metrics, common.lock, common.on_failure)
            # Its thread is not running yet: asyncio.run() does not wait.
            stack.callback(lambda: asyncio.run(self.engine.close()))
            _log_model(self._weights, self.engine)
            self.limits = TokenLimits.of(settings, self.engine.n_ctx_sequence)
            self.fingerprint = fingerprint(path, options.kv, settings)
            self.created = int(path.stat().st_mtime)
            self.description = self._weights.description
            self.n_bytes = self._weights.n_bytes
            self.chat_template = self._weights.chat_template or ""  # the model file's
            self.n_ctx = plan.n_ctx
            self.kv_bytes = plan.kv
            self.vocab = self._weights.vocab
            self.preparation = Preparation(settings, common.contexts, self.vocab, self.tokenizer, self.limits)
            self.questions = QuestionPreparation(self.vocab, self.tokenizer, self.limits)
            self._ahead = (
                PrefillAhead(self.engine, self.preparation, common.is_busy)
                if settings.prefill_ahead == "on"
                else None
            )
            self.refused: dict[str, str] = {}
            stack.pop_all()

    @classmethod
    async def load(
        cls,
        name: str,
        files: ModelFiles,
        settings: Settings,
        plan: MemoryPlan,
        common: Common,
        *,
        metrics: ModelMetrics,
        warmed: Mapping[str, Context],
    ) -> Model:
        """Load a model, start its engine and prefill contexts.

        Args:
            name: Its name in requests.
            files: Its files.
            settings: Sizes, limits and sampling defaults.
            plan: Its memory.
            common: Parts that all models share.
            metrics: Receives a report of every engine step and answer.
            warmed: The contexts to prefill.

        Raises:
            ContextsError: The constraint or a choice of a context is invalid.
            Exception: See the constructor.
        """
        opening = asyncio.ensure_future(
            asyncio.to_thread(cls, name, files, settings, plan, common, metrics=metrics)
        )
        try:
            model = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread cannot be interrupted; free its weights.
            await asyncio.wait([opening])
            if opening.exception() is None:
                await opening.result().close()
            raise
        try:
            model.engine.start()
            metrics.engine.on_start(model.n_ctx, model.kv_bytes)
            await model.warm(warmed)
        except BaseException:
            await model.close()
            raise
        return model

    def submit(
        self, prepared: Prepared, n: int, requested_at: float, client: Client = LOCAL
    ) -> list[Generation]:
        """Start ``n`` answers to one prompt.

        Args:
            prepared: Tokens and sampling parameters.
            n: Number of answers; each has the previous one's seed plus 1, if a seed is set.
            requested_at: Arrival of the request, by ``time.perf_counter``.
            client: Origin of the request.

        Raises:
            ServiceError: The request exceeds the limits, the queue is full, or the engine has failed.
        """
        params, record = prepared.params, current()
        generations: list[Generation] = []
        try:
            for index in range(n):
                if index and params.seed is not None:
                    params = replace(params, seed=(params.seed + 1) % 2**32)
                answer = self.engine.submit(
                    prepared.tokens,
                    params,
                    client,
                    adapter=prepared.adapter,
                    checkpoints=prepared.turn_ends,
                    request_id=record.id,
                )
                generations.append(
                    Generation(
                        answer,
                        self._metrics,
                        requested_at,
                        prepared.passages,
                        prepared.n_waiting,
                        prepared.chosen,
                        model=self,
                        logs_text=record.logs_content,
                    )
                )
        except BaseException as error:
            for generation in generations:
                generation.close()
            if isinstance(error, RequestTooLong | QueueFull | EngineError):
                raise _as_service_error(error) from error
            raise
        if self._ahead is not None and prepared.conversation is not None and n == 1:
            generations[0].on_end = partial(self._ahead.note, prepared.conversation, prepared.adapter)
        record.answers += generations
        record.params = _params_of(params)
        return generations

    async def score(
        self,
        prompt: Sequence[int],
        questions: Sequence[Question],
        client: Client = LOCAL,
        *,
        adapter: str = "",
        checkpoints: Sequence[int] = (),
    ) -> ScoringSequence:
        """Score the options of questions; see ``AsyncEngine.score``.

        Raises:
            ServiceError: The request exceeds the limits, the queue is full, or the engine has failed.
        """
        try:
            return await self.engine.score(
                prompt,
                questions,
                client,
                adapter=adapter,
                checkpoints=checkpoints,
                request_id=current().id,
            )
        except (RequestTooLong, QueueFull, EngineError) as error:
            raise _as_service_error(error) from error

    async def close(self) -> None:
        """End unfinished answers with an error, stop the engine, free the weights."""
        self._metrics.engine.on_end()
        if self._ahead is not None:
            await self._ahead.close()
        await self.engine.close()  # first: its thread reads the weights
        self._record_speed()
        self.tokenizer.template.close()
        self._weights.close()

    def _record_speed(self) -> None:
        """Keep the measured decode speed for `tokenstream models`."""
        if seconds := self.engine.decode_seconds:
            n_threads = self._settings.model_threads or physical_cores()
            try:
                record_speed(self._weights.path, n_threads, 1 / seconds)
            except OSError as error:
                logger.debug("the measured speed is not kept: %s", error)

    async def warm(self, contexts: Mapping[str, Context]) -> None:
        """Prefill contexts, and log those that the model rejects.

        Raises:
            ContextsError: The constraint or a choice of a context is invalid.
        """
        if not contexts:
            return
        refused = await warm(contexts, self.preparation, self.engine, self._settings)
        self.refused |= refused
        for name, reason in refused.items():
            logger.error(
                "%s: context %r is rejected, and so are its requests: %s",
                self._settings.contexts_file,
                name,
                reason,
            )


def _params_of(params: SamplingParams) -> dict[str, Any]:
    """Parameters by their names in the GenAI semantic conventions."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    return {name: value for name in names if (value := getattr(params, name)) is not None}


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, RequestTooLong):
        return TooLong(str(error), field="max_tokens")
    if isinstance(error, QueueFull):
        return Overloaded(f"the server is busy: {error}; try again later")
    return GenerationFailed(str(error))


def _log_model(weights: llama.Model, engine: AsyncEngine) -> None:
    if engine.n_ctx_sequence > weights.n_ctx_train > 0:
        logger.warning(
            "a request may have %d tokens (N_CTX), but the model is trained for %d: "
            "long answers may be worse",
            engine.n_ctx_sequence,
            weights.n_ctx_train,
        )
    logger.info("model %s (%s), %.0f MB", weights.path.name, weights.description, weights.n_bytes / 1e6)
