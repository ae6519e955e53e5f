"""Parts of a model by its settings: memory plan, options of the engine, tokenizer, fingerprint."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from app.chat.prompt import PromptTokenizer
from app.chat.template.template import choose_template, wrapping_template
from app.config.settings import Settings
from app.engine import llama, thoughts
from app.engine.cache.state_files import StateFiles
from app.engine.engine import EngineOptions
from app.engine.sampling import grammar, params, samplers, thinking
from app.fit.memory_plan import MemoryPlan, make_plan
from app.machine.cores import physical_cores
from app.machine.folders import cache_folder
from app.machine.identity import identity
from app.weights.adapters import adapters_of, check_architecture
from app.weights.errors import ModelError
from app.weights.tokenizer import TokenizerRepo, check_vocabulary

_MAX_STATE_FILES = 2_000_000_000  # bytes


def memory_plan(settings: Settings, path: Path, available: int | None = None) -> MemoryPlan:
    """Plan the memory of a model with the settings' sizes.

    Args:
        settings: The sizes.
        path: A GGUF file; for a split model, its first part.
        available: Bytes that it may use. None: what this process may use.

    Raises:
        MemoryPlanError: The configured sizes exceed the available memory.
    """
    return make_plan(
        path,
        n_ctx=settings.n_ctx,
        max_sequences=settings.max_sequences,
        prefix_mb=settings.prefix_cache_mb,
        kv=_configured_kv(settings),
        gpu_layers=settings.model_gpu_layers,
        main_gpu=settings.main_gpu,
        n_threads=settings.model_threads or physical_cores(),
        available=available,
        adapter_bytes=sum(adapter.n_bytes for adapter in adapters_of(settings).values()),
    )


def _configured_kv(settings: Settings) -> llama.KVOptions:
    flash = None if settings.flash_attention == "auto" else settings.flash_attention == "on"
    return llama.KVOptions(flash, settings.kv_type)


def engine_options(
    settings: Settings, plan: MemoryPlan, model: llama.Model, streams_elsewhere: Callable[[], bool]
) -> EngineOptions:
    """Options of the engine with the sizes of the plan."""
    kv = plan.kv_options
    return EngineOptions(
        n_ctx=plan.n_ctx,
        max_sequences=plan.max_sequences,
        n_threads=settings.model_threads or physical_cores(),
        kv=kv,
        prefix_bytes=plan.prefix_budget,
        itl_budget=settings.itl_budget_ms and settings.itl_budget_ms / 1000,
        streams_elsewhere=streams_elsewhere,
        speculation=settings.speculation == "on",
        states=_state_files(settings, model.path, kv, plan.max_sequences),
    )


def _state_files(settings: Settings, path: Path, kv: llama.KVOptions, n_sequences: int) -> StateFiles:
    folder = settings.cache_dir or cache_folder() / "contexts"
    # llama.cpp checks only part of this. It would load states of other options.
    kv_key = f"{kv.type} flash_attention={kv.flash_attention} n_sequences={n_sequences}"
    key = {"model and library": identity(path), "kv": kv_key}
    adapters = {name: adapter.identity for name, adapter in adapters_of(settings).items()}
    return StateFiles(folder, key, max_bytes=_MAX_STATE_FILES, adapters=adapters)


def load_adapters(model: llama.Model, settings: Settings) -> None:
    """Load the LoRA adapters of a model.

    Raises:
        ModelError: One does not fit the model.
    """
    adapters = adapters_of(settings)
    check_architecture(adapters, model.path)
    for name, adapter in adapters.items():
        try:
            model.load_adapter(name, adapter.path, adapter.scale)
        except llama.ModelLoadError as error:
            raise ModelError(f"LORA: {name}={adapter.path}: it does not fit the model: {error}") from None


def fingerprint(path: Path, kv: llama.KVOptions, settings: Settings) -> str:
    """Hash of everything that affects an answer: model, adapters, library, KV cache, sampling code."""
    code = hashlib.sha256()
    for module in (params, samplers, thinking, thoughts, grammar):
        code.update(inspect.getsource(module).encode())
    facts = [identity(path), str(kv), code.hexdigest(), version("llguidance"), version("numpy")]
    facts += [f"{name}={adapter.identity}" for name, adapter in adapters_of(settings).items()]
    return f"fp_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def make_tokenizer(settings: Settings, model: llama.Model, repo: TokenizerRepo | None) -> PromptTokenizer:
    """Create the tokenizer, with the chat template of the settings, the repository or the model file.

    Raises:
        ModelError: The repository's vocabulary differs from the model's.
    """
    vocab = model.vocab
    finds_turns = not model.is_truncatable and settings.prefix_cache_mb != 0
    source = model.chat_template
    special = {"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)}
    if repo is not None:
        check_vocabulary(repo, vocab.n_tokens, vocab.text, vocab.is_unused)
        source = repo.chat_template or source
        own = {name: getattr(repo, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        special.update({name: text for name, text in own.items() if text is not None})
    wraps = settings.tgichat
    if wraps is not None:
        return PromptTokenizer(vocab, wrapping_template(wraps), finds_turns=finds_turns)
    known = vocab.control_tokens | vocab.added_tokens
    template = choose_template(source, special_tokens=special, vocabulary=known)
    return PromptTokenizer(vocab, template, finds_turns=finds_turns)
