"""What a service is made of: the memory plan, the engine's options, the tokenizer of prompts."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from importlib.metadata import version
from pathlib import Path

from app.chat.prompt import PromptTokenizer
from app.chat.template.template import choose_template, wrapping_template
from app.config.settings import Settings
from app.engine.cache.state_files import StateFiles
from app.engine.engine import EngineOptions
from app.engine.llama import KVOptions, Model
from app.engine.sampling import grammar, params, samplers
from app.fit import preflight
from app.fit.kv_choice import choose_kv
from app.fit.memory_plan import MemoryPlan, make_plan
from app.machine.cores import physical_cores
from app.machine.folders import cache_folder
from app.weights.tokenizer import TokenizerRepo, check_vocabulary

logger = logging.getLogger("tokenstream.service")


def memory_plan(settings: Settings, path: Path) -> MemoryPlan:
    """What fits into memory.

    Raises:
        MemoryPlanError: What is set does not.
    """
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


def engine_options(settings: Settings, plan: MemoryPlan, model: Model) -> EngineOptions:
    """How the engine is set up; KV memory is measured where nothing is set or known."""
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
            remember=cache_folder() / "kv_choice" / f"{name}.json",
        )
    logger.info("KV memory: %s", reason)
    return EngineOptions(
        n_ctx=plan.n_ctx,
        max_sequences=plan.max_sequences,
        n_threads=n_threads,
        max_requests=settings.max_concurrent_requests,
        kv=kv,
        prefix_bytes=plan.prefix_budget,
        itl_budget=settings.itl_budget_ms and settings.itl_budget_ms / 1000,
        speculation=settings.speculation == "on",
        states=_state_files(settings, model.path, kv, plan.max_sequences),
    )


def _state_files(settings: Settings, path: Path, kv: KVOptions, n_sequences: int) -> StateFiles:
    folder = settings.cache_dir or cache_folder() / "contexts"
    # Of all this llama.cpp itself checks a part only, and takes what it does not check.
    kv_key = f"{kv.layout} {kv.type} flash_attention={kv.flash_attention} n_sequences={n_sequences}"
    key = {"model and library": preflight.identity(path), "kv": kv_key}
    return StateFiles(folder, key, max_bytes=2_000_000_000)


def fingerprint(path: Path, kv: KVOptions) -> str:
    """A short text that changes with what may change an answer: model, library, KV memory, sampling."""
    code = hashlib.sha256()
    for module in (params, samplers, grammar):
        code.update(inspect.getsource(module).encode())
    facts = [preflight.identity(path), str(kv), code.hexdigest(), version("llguidance"), version("numpy")]
    return f"fp_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def make_tokenizer(settings: Settings, model: Model, repo: TokenizerRepo | None) -> PromptTokenizer:
    """The tokenizer of prompts, by the chat template of the settings, the repository or the model.

    Raises:
        ModelError: The repository's vocabulary is not the model's.
    """
    vocab = model.vocab
    source = model.chat_template
    special = {"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)}
    if repo is not None:
        check_vocabulary(repo, vocab.n_tokens, vocab.text, vocab.is_unused)
        source = repo.chat_template or source
        own = {name: getattr(repo, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        special.update({name: text for name, text in own.items() if text is not None})
    wraps = settings.tgichat
    if wraps is not None:
        return PromptTokenizer(vocab, wrapping_template(wraps))
    known = vocab.control_tokens | vocab.added_tokens
    return PromptTokenizer(vocab, choose_template(source, special_tokens=special, vocabulary=known))
