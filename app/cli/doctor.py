"""``tokenstream doctor``: checks of machine, library, model and settings, each with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from app.config.errors import UserError
from app.config.settings import Settings
from app.fit import builds
from app.fit.machine_checks import Finding, check_machine, failure, ok, warning
from app.machine.folders import cache_folder
from app.machine.identity import cpu, manifest
from app.machine.installation import ROOT

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
        yield from _guarded("model", lambda: _check_model(settings))
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


def _check_model(settings: Settings) -> Iterator[Finding]:
    from app.fit.tuning import described
    from app.service.files import readable_load_errors
    from app.service.model_parts import memory_plan
    from app.service.tuned import tuned_values
    from app.weights.adapters import adapters_of, check_architecture
    from app.weights.errors import readable_size
    from app.weights.model import model_here

    path = model_here(settings)
    if path is None:
        yield from _check_hub(settings)
        return
    yield ok("model", f"{path} ({readable_size(path.stat().st_size)})")
    if adapters := adapters_of(settings):
        check_architecture(adapters, path)
        yield ok("adapters", ", ".join(f"{name} ({one.path})" for name, one in adapters.items()))
    tuned = tuned_values(settings)
    yield ok("tuned settings", described(tuned) if tuned else "none; `tokenstream tune` finds faster ones")
    with readable_load_errors():
        plan = memory_plan(settings.model_copy(update=dict(tuned)), path)
        yield ok("memory plan", str(plan).removeprefix("memory: "))
    yield ok("hub", "not needed: the model is on this disk")


def _check_hub(settings: Settings) -> Iterator[Finding]:
    from app.weights.errors import HubError
    from app.weights.model import repository_of

    repository = repository_of(settings)
    yield warning("model", f"{repository.name} is not on this disk yet", "the next start downloads it")
    try:
        n_files = len(repository.files())
    except HubError as error:
        yield failure("hub", str(error))
        return
    reason = repository.failure
    yield failure("hub", str(reason)) if reason else ok("hub", f"{repository.name} has {n_files} files")


def _check_contexts(settings: Settings) -> Iterator[Finding]:
    from app.config.contexts import load_contexts

    contexts = load_contexts(settings.contexts_file)
    detail = f"{', '.join(contexts)} in {settings.contexts_file}"
    if settings.context_type not in contexts:
        yield failure("contexts", f"CONTEXT_TYPE={settings.context_type} is not one of {detail}")
    else:
        yield ok("contexts", detail)


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
    from app.service import retrieval

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
