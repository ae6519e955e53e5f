"""``tokenstream doctor``: checks of machine, library, model and settings, each with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.config.errors import UserError
from app.config.settings import Settings
from app.fit import builds
from app.fit.machine_checks import Finding, check_machine, failure, ok, warning
from app.machine.folders import cache_folder
from app.machine.identity import cpu, manifest
from app.machine.installation import ROOT

if TYPE_CHECKING:
    from app.weights.served import ServedModel

_LEAST_SPACE = 1_000_000_000  # bytes
_MARKS = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}


def doctor(settings: Settings, *, as_json: bool) -> int:
    """Print one line for each check; returns 1 after a failure, else 0."""
    findings: list[Finding] = []
    for found in _findings(settings):
        findings.append(found)
        if not as_json:
            remedy = f": {found.remedy}" if found.remedy else ""
            print(f"{_MARKS[found.status]}  {found.check}: {found.detail}{remedy}", flush=True)
    if as_json:
        print(json.dumps([asdict(found) for found in findings], indent=2))
    return int(any(found.status == "failure" for found in findings))


def _findings(settings: Settings) -> Iterator[Finding]:
    yield _check_compiler()
    library = _check_library(settings)
    yield library
    yield from check_machine(cpu(), manifest(), settings.model_threads, on_one_node=settings.numa == "auto")
    if library.status == "ok":
        # Imported only now: a broken library may crash at import.
        yield from _guarded("model", lambda: _check_models(settings))
        yield from _guarded("settings", lambda: _check_settings(settings))
    yield from _guarded("contexts", lambda: _check_contexts(settings))
    yield from _guarded("port", lambda: _check_port(settings))
    yield from _check_disk(settings)
    yield from _guarded("index", lambda: _check_index(settings))


def _guarded(check: str, run: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from run()
    except UserError as error:
        yield failure(check, str(error))


def _check_compiler() -> Finding:
    command = [sys.executable, str(ROOT / "native" / "build.py"), "compilers"]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode == 0:
        return ok("compiler", ended.stdout.strip().replace("\n", "; "))
    reason = ended.stderr.strip().removeprefix("error: ") or f"status {ended.returncode}"
    return warning("compiler", reason, "the library cannot be compiled again without it")


def _check_library(settings: Settings) -> Finding:
    try:
        builds.choose(settings.native_build)
    except UserError as error:
        return failure("library", str(error))
    facts = manifest()
    return ok("library", f"{facts.get('library', 'llama-cpp-python')} {facts.get('version', '')} loads")


def _check_models(settings: Settings) -> Iterator[Finding]:
    """Check the model, or each one of MODELS, and whether they fit together."""
    from app.weights.errors import ModelError
    from app.weights.served import found_models

    if not settings.models:
        yield from _check_model(settings, "")
        return
    served = []
    for found in found_models(settings):
        if isinstance(found, ModelError):
            yield failure("model", str(found))
            continue
        served.append(found)
        yield from _guarded(
            f"model {found.name}", partial(_check_model, found.settings, f" {found.name}", plans=False)
        )
    if served:
        yield from _check_memory(settings, served)


def _check_memory(settings: Settings, served: Sequence[ServedModel]) -> Iterator[Finding]:
    """Check the memory plan of each model, and whether they fit at the same time."""
    from app.service.model.tuned import with_tuned
    from app.service.models.memory_shares import memory_budget, planned_shares
    from app.weights.errors import readable_size

    budget = memory_budget(settings)
    served = [replace(model, settings=with_tuned(model.settings)) for model in served]
    planned = [*planned_shares(served, settings, budget)]
    for share in planned:
        check = f"memory plan {share.served.name}"
        if share.problem is not None:
            yield failure(check, str(share.problem))
        elif share.plan is not None:
            yield ok(check, str(share.plan).removeprefix("memory: "))
        elif share.expected > share.n_bytes:
            detail = f"needs about {readable_size(share.expected)} of {readable_size(share.n_bytes)}"
            yield warning(check, detail, "serve fewer or smaller models, or raise MODELS_MEMORY")
        else:
            yield ok(check, f"about {readable_size(share.expected)}; exactly after the download")
    total = sum(share.expected for share in planned)
    sizes = f"{readable_size(total)} of {readable_size(budget)}"
    if total <= budget:
        yield ok("memory of MODELS", f"all fit at the same time: {sizes}")
    else:
        detail = f"they do not fit at the same time ({sizes}), so they are unloaded for each other"
        yield ok("memory of MODELS", detail)


def _check_model(settings: Settings, name: str, *, plans: bool = True) -> Iterator[Finding]:
    """Check one model; ``name``: appended to the names of the checks."""
    from app.fit.tuning import described
    from app.service.model.files import readable_load_errors
    from app.service.model.parts import memory_plan
    from app.service.model.tuned import tuned_values
    from app.weights.adapters import adapters_of, check_architecture
    from app.weights.errors import readable_size
    from app.weights.model import model_here

    path = model_here(settings)
    if path is None:
        yield from _check_hub(settings, name)
        return
    yield ok(f"model{name}", f"{path} ({readable_size(path.stat().st_size)})")
    if adapters := adapters_of(settings):
        check_architecture(adapters, path)
        listed = ", ".join(f"{one} ({file.path})" for one, file in adapters.items())
        yield ok(f"adapters{name}", listed)
    tuned = tuned_values(settings)
    detail = described(tuned) if tuned else "none; `tokenstream tune` finds faster ones"
    yield ok(f"tuned settings{name}", detail)
    if plans:
        with readable_load_errors():
            plan = memory_plan(settings.model_copy(update=dict(tuned)), path)
            yield ok("memory plan", str(plan).removeprefix("memory: "))
    yield ok(f"hub{name}", "not needed: the model is on this disk")


def _check_hub(settings: Settings, name: str) -> Iterator[Finding]:
    from app.weights.errors import HubError
    from app.weights.model import repository_of

    repository = repository_of(settings)
    when = "its first request" if name else "the next start"
    yield warning(f"model{name}", f"{repository.name} is not on this disk yet", f"{when} downloads it")
    try:
        n_files = len(repository.files())
    except HubError as error:
        yield failure(f"hub{name}", str(error))
        return
    if reason := repository.failure:
        yield failure(f"hub{name}", str(reason))
    else:
        yield ok(f"hub{name}", f"{repository.name} has {n_files} files")


def _check_contexts(settings: Settings) -> Iterator[Finding]:
    from app.config.contexts import load_contexts

    contexts = load_contexts(settings.contexts_file)
    detail = f"{', '.join(contexts)} in {settings.contexts_file}"
    if settings.context_type not in contexts:
        yield failure("contexts", f"CONTEXT_TYPE={settings.context_type} is not one of {detail}")
    else:
        yield ok("contexts", detail)


def _check_settings(settings: Settings) -> Iterator[Finding]:
    """Check what a start checks before it loads models: names of models and adapters, keys."""
    from app.config.contexts import load_contexts
    from app.service.service import Service
    from app.telemetry.metrics import Metrics
    from app.weights.served import served_models

    try:
        contexts, served = load_contexts(settings.contexts_file), served_models(settings)
    except UserError:
        return  # the other checks report it
    if settings.context_type not in contexts:
        return
    Service(settings, contexts, Metrics("doctor", [model.name for model in served]), served)
    yield ok("settings", "the names in settings, contexts and keys are defined")


def _check_port(settings: Settings) -> Iterator[Finding]:
    from app.cli.listening import listen

    listen("HTTP_ADDRESS", settings.http_address).close()
    yield ok("port", f"{settings.http_address} is free")


def _check_disk(settings: Settings) -> Iterator[Finding]:
    for name, folder in (("MODELS_DIR", settings.models_dir), ("cache", cache_folder())):
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free
        detail = f"{folder} ({name}) has {free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield warning("disk", f"{folder} ({name}) is not writable", "change its owner or the setting")
        elif free < _LEAST_SPACE:
            yield warning("disk", detail, "free some space")
        else:
            yield ok("disk", detail)


def _check_index(settings: Settings) -> Iterator[Finding]:
    from app.service.encoders import retrieval

    if settings.knowledge == "off":
        yield ok("index", "no documents: KNOWLEDGE=off")
        return
    retrieval.check(settings)
    folder: Path = retrieval.knowledge_options(settings).index
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if os.access(there, os.W_OK):
        yield ok("index", f"{folder} of {settings.data_path}")
    else:
        yield failure("index", f"{folder} is not writable", "set KNOWLEDGE_INDEX to another folder")
