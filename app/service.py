"""One request's way: context, chat template, tokens, engine, text."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.chat_template import Message, TemplateRefusal, choose_template
from app.contexts import Context, ContextsError
from app.engine import preflight
from app.engine.answer import Answer, EngineError, QueueFull, RequestTooLong
from app.engine.engine import Engine, EngineOptions
from app.engine.kv_choice import choose_kv
from app.engine.llama import KVOptions, Model
from app.engine.memory_plan import MemoryPlan, make_plan
from app.engine.prefix_tree import n_shared_tokens
from app.engine.sampling import SamplingParams
from app.engine.sequence import FinishReason
from app.engine.state_files import StateFiles
from app.prompt import PromptTokenizer
from app.settings import Settings, SettingsError, physical_cores
from app.telemetry.metrics import Metrics
from app.tokenizer_repo import TokenizerRepo, check_vocabulary

logger = logging.getLogger("tokenstream.service")

# Rendering and tokenizing run beside the event loop: a long document takes milliseconds.
_PREPARING_THREADS = 2


class ServiceError(Exception):
    """A request that cannot be answered. ``field`` names what in it is at fault, where something is."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Loading(ServiceError):
    """The model is not loaded yet."""


class UnknownContext(ServiceError):
    """The request names a context that is not defined."""


class BadRequest(ServiceError):
    """A value of the request does not fit this model or its limits."""


class Overloaded(ServiceError):
    """Too many requests wait."""


class GenerationFailed(ServiceError):
    """The engine could not complete the answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request asks: messages, and the context that becomes their system turn (None: the default)."""

    messages: tuple[Message, ...]
    context: str | None = None


class Generation:
    """An answer on its way: iterate for its text, ``close`` to leave it; then the figures are final."""

    def __init__(self, answer: Answer, metrics: Metrics, requested_at: float) -> None:
        self._answer = answer
        self._metrics = metrics
        self._requested_at = requested_at
        self._first_token_at: float | None = None
        self._last_token_at = requested_at
        self.n_prompt = answer.n_prompt
        self.n_cached = 0
        self.n_generated = 0
        self.finish_reason: FinishReason | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield text as it becomes certain, never an empty one.

        Raises:
            GenerationFailed: The engine gave the answer up.
        """
        try:
            async for output in self._answer:
                self._note(output.finish_reason)
                if output.text:
                    yield output.text
        except EngineError as error:
            raise GenerationFailed(str(error)) from error

    def _note(self, finish_reason: FinishReason | None) -> None:
        self._last_token_at = time.perf_counter()
        self.n_generated += 1
        if self._first_token_at is None:
            self.n_cached = self._answer.n_cached
            self._first_token_at = self._last_token_at
            self._metrics.on_first_token(self.time_to_first_token)
        if finish_reason is not None:
            self.finish_reason = finish_reason
            self._metrics.on_answer(self._last_token_at - self._requested_at)

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to its first token; 0 before that."""
        return self._first_token_at - self._requested_at if self._first_token_at is not None else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first by the seconds that they took; 0 when there are none."""
        if self._first_token_at is None or self.n_generated < 2:
            return 0.0
        return (self.n_generated - 1) / max(self._last_token_at - self._first_token_at, 1e-9)

    def close(self) -> None:
        """Free what the answer holds, if it is not finished."""
        if self.finish_reason is None:
            self._answer.cancel()


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
        self.model_name = ""
        self._model: Model | None = None
        self._engine: Engine | None = None
        self._tokenizer: PromptTokenizer | None = None
        self._threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self._engine is not None

    @property
    def n_unfinished(self) -> int:
        """How many requests run or wait."""
        return self._engine.n_unfinished if self._engine else 0

    async def load(
        self, path: Path, tokenizer_repo: TokenizerRepo | None, *, warm: Collection[str] | None = None
    ) -> None:
        """Load the model, start the engine, prefill the contexts named in ``warm`` (None: all).

        Raises:
            ModelLoadError: llama.cpp cannot load the model, or memory is short.
            ModelError: The tokenizer's vocabulary is not the model's.
        """
        settings = self.settings
        plan = await asyncio.to_thread(_memory_plan, settings, path)
        logger.info("%s", plan)
        model = await asyncio.to_thread(
            Model, path, gpu_layers=settings.model_gpu_layers, main_gpu=settings.main_gpu
        )
        self._tokenizer = await asyncio.to_thread(_make_tokenizer, model, tokenizer_repo)
        options = await asyncio.to_thread(_engine_options, settings, plan, model)
        engine = await asyncio.to_thread(Engine, model, options, self.metrics)
        engine.start()
        self._model = model
        if engine.n_ctx_sequence > model.n_ctx_train > 0:
            logger.warning(
                "a request may have %d tokens (N_CTX sets it), but the model was trained for %d: "
                "long ones may be answered badly",
                engine.n_ctx_sequence,
                model.n_ctx_train,
            )
        logger.info("model %s (%s), %.0f MB", path.name, model.description, model.n_bytes / 1e6)
        try:
            await self._warm(engine, self._tokenizer, self.contexts if warm is None else warm)
        except BaseException:
            # Not self._engine yet: its thread must have ended before close() frees the model.
            await engine.close()
            raise
        self.model_name, self._engine = path.stem, engine

    async def _warm(self, engine: Engine, tokenizer: PromptTokenizer, names: Collection[str]) -> None:
        """Prefill what all requests of a context begin with."""
        started = time.perf_counter()
        n_tokens = n_computed = 0
        for name in names:
            context = self.contexts[name]
            prefix = await asyncio.get_running_loop().run_in_executor(
                self._threads, _common_prefix, context, tokenizer
            )
            if len(prefix) >= engine.n_ctx_sequence:
                raise ContextsError(
                    f"{self.settings.contexts_file}: context {name!r} has {len(prefix)} tokens, more "
                    f"than a request may have ({engine.n_ctx_sequence}); raise N_CTX or shorten it"
                )
            if prefix:
                n_tokens += len(prefix)
                n_computed += await engine.warm(prefix)
        logger.info(
            "%d contexts of %d tokens are warm after %.1f s: %d prefilled, the others were known",
            len(names),
            n_tokens,
            time.perf_counter() - started,
            n_computed,
        )

    async def close(self) -> None:
        """Stop the engine and free the model."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
        if self._model is not None:
            self._model.close()
        self._threads.shutdown(cancel_futures=True)
        if self._tokenizer is not None:
            self._tokenizer.template.close()

    async def generate(self, prompt: Prompt, overrides: Mapping[str, Any]) -> Generation:
        """Start an answer. ``overrides`` are the SamplingParams fields that the request sets itself.

        Raises:
            ServiceError: The request cannot be answered; its subclasses say why.
        """
        requested_at = time.perf_counter()
        engine, tokenizer = self._engine, self._tokenizer
        if engine is None or tokenizer is None:
            raise Loading("the model is still loading; GET /ready answers 200 when it is there")
        name = self.settings.context_type if prompt.context is None else prompt.context
        if name not in self.contexts:
            known = ", ".join(self.contexts)
            raise UnknownContext(f"context {name!r} is not defined; known are: {known}", field="context")
        context = self.contexts[name]
        messages = _in_context(context, prompt.messages)
        loop = asyncio.get_running_loop()
        try:
            tokens = await loop.run_in_executor(self._threads, tokenizer.tokens, messages)
        except TemplateRefusal as refusal:
            raise BadRequest(f"the model's chat template refuses the messages: {refusal}") from refusal
        params = self._params(context, overrides, len(tokens), engine)
        params = replace(params, stop=(*params.stop, *tokenizer.template.stop))
        try:
            answer = engine.submit(tokens, params)
        except RequestTooLong as error:
            raise BadRequest(str(error), field="max_tokens") from error
        except QueueFull as error:
            raise Overloaded(f"the server is busy: {error}; try again later") from error
        except EngineError as error:
            raise GenerationFailed(str(error)) from error
        return Generation(answer, self.metrics, requested_at)

    def _params(
        self, context: Context, overrides: Mapping[str, Any], n_prompt: int, engine: Engine
    ) -> SamplingParams:
        """The request's own values before the context's before the settings'."""
        room = engine.n_ctx_sequence - n_prompt
        if room < 1:
            raise BadRequest(
                f"the request has {n_prompt} tokens with its context; the limit is {engine.n_ctx_sequence}, "
                "answer included (N_CTX sets it)",
                field="query",
            )
        for token in overrides.get("logit_bias", {}):
            if token >= engine.vocab.n_tokens:
                raise BadRequest(
                    f"token {token} is not in the vocabulary of {engine.vocab.n_tokens}", field="logit_bias"
                )
        settings = self.settings
        merged: dict[str, Any] = {
            "max_tokens": settings.model_max_token,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "seed": settings.seed,
            "repetition_penalty": settings.repeat_penalty,
            "repeat_last_n": settings.repeat_last_n,
        } | context.sampling()
        # A default is only a wish: it gives way to a long prompt. What the request names does not.
        merged["max_tokens"] = min(merged["max_tokens"], room)
        return SamplingParams(**(merged | dict(overrides)))


def _in_context(context: Context, messages: Sequence[Message]) -> list[Message]:
    """The messages behind the context's turns; a system turn of their own replaces those."""
    if any(message.role == "system" for message in messages):
        return list(messages)
    turns = [Message("system", context.prompt)] if context.prompt else []
    for example in context.examples:
        turns += [Message("user", example.query), Message("assistant", example.answer)]
    return [*turns, *messages]


def _common_prefix(context: Context, tokenizer: PromptTokenizer) -> list[int]:
    """The tokens that every prompt of a context begins with."""
    # Questions that begin with nothing in common: a letter, a digit, a bracket.
    prompts = [tokenizer.tokens(_in_context(context, [Message("user", q)])) for q in ("Why", "7", "(b)")]
    return prompts[0][: min(n_shared_tokens(prompts[0], other) for other in prompts[1:])]


def _memory_plan(settings: Settings, path: Path) -> MemoryPlan:
    return make_plan(
        path,
        n_ctx=settings.n_ctx,
        max_sequences=settings.max_sequences,
        prefix_mb=settings.prefix_cache_mb,
        kv=_kv_as_set(settings),
        gpu_layers=settings.model_gpu_layers,
        n_threads=settings.model_threads or physical_cores(),
    )


def _kv_as_set(settings: Settings) -> KVOptions:
    flash = None if settings.flash_attention == "auto" else settings.flash_attention == "on"
    return KVOptions("shared" if settings.kv_layout == "shared" else "split", flash, settings.kv_type)


def _engine_options(settings: Settings, plan: MemoryPlan, model: Model) -> EngineOptions:
    n_threads = settings.model_threads or physical_cores()
    kv, reason = _kv_as_set(settings), "as set, or llama.cpp's choice, with a GPU"
    if settings.model_gpu_layers == 0:
        facts = [preflight.identity(model.path), n_threads, plan.max_sequences, kv.type]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        kv, reason = choose_kv(
            model,
            kv,
            layout=None if settings.kv_layout == "auto" else kv.layout,
            n_sequences=plan.max_sequences,
            n_threads=n_threads,
            remember=preflight.cache_folder() / "kv_choice" / f"{name}.json",
        )
    logger.info("KV memory: %s", reason)
    return EngineOptions(
        n_ctx=plan.n_ctx,
        max_sequences=plan.max_sequences,
        n_threads=n_threads,
        max_waiting=settings.max_waiting,
        kv=kv,
        prefix_bytes=plan.prefix_budget,
        itl_budget=settings.itl_budget_ms and settings.itl_budget_ms / 1000,
        speculation=settings.speculation == "on",
        states=_state_files(settings, model.path, kv, plan.max_sequences),
    )


def _state_files(settings: Settings, path: Path, kv: KVOptions, n_sequences: int) -> StateFiles:
    folder = settings.cache_dir or preflight.cache_folder() / "contexts"
    # Of all this llama.cpp itself checks a part only, and takes what it does not check.
    kv_key = f"{kv.layout} {kv.type} flash_attention={kv.flash_attention} n_sequences={n_sequences}"
    key = {"model and library": preflight.identity(path), "kv": kv_key}
    return StateFiles(folder, key, max_bytes=2_000_000_000)


def _make_tokenizer(model: Model, repo: TokenizerRepo | None) -> PromptTokenizer:
    vocab = model.vocab
    source = model.chat_template
    special = {"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)}
    if repo is not None:
        check_vocabulary(repo, vocab.n_tokens, vocab.text, vocab.is_unused)
        source = repo.chat_template or source
        own = {name: getattr(repo, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        special.update({name: text for name, text in own.items() if text is not None})
    known = vocab.control_tokens | vocab.added_tokens
    return PromptTokenizer(vocab, choose_template(source, special_tokens=special, vocabulary=known))
