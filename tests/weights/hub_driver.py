"""Resolves models as the command line does, in forks of one process. The imports are done before the fork.

``--once`` resolves the model that the environment names. Without it, the program reads jobs from stdin, one
JSON object per line, and prints the exit status of each. ``--warm`` imports huggingface_hub before the forks,
so all jobs have the same HF_ENDPOINT.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.config import settings
from app.weights import model as hub
from app.weights import repository
from app.weights.embedding import resolve_embedding_model

ROOT = Path(__file__).resolve().parents[2]


def resolve() -> int:
    """Print the path of the model, or of the embedding model if set. On an error: one line, status 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    try:
        chosen = settings.load()
        find = hub.resolve_model if chosen.embedding_model is None else resolve_embedding_model
        print(find(chosen))
    except hub.ModelError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    print("hub imported" if "huggingface_hub" in sys.modules else "hub not imported", flush=True)
    return 0


def resolve_in_child(environment: Mapping[str, str], folder: str, stdout: str, stderr: str) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for descriptor, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        status = resolve()
    finally:
        os._exit(status)


def command(*options: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *options]


def environment(**variables: str) -> dict[str, str]:
    """The environment without model and hub settings, plus ``variables``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "MODEL", "EMBEDDING"))
    }
    return kept | {"PYTHONPATH": str(ROOT)} | variables


class Driver:
    """A process that forks for each job."""

    def __init__(self, *options: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            command(*options),
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self, folder: Path, variables: Mapping[str, str], output: Path
    ) -> subprocess.CompletedProcess[str]:
        """Resolve in ``folder``. Output is written to files in ``output``."""
        assert self._process.stdin
        assert self._process.stdout
        printed = {name: str(output / name) for name in ("stdout", "stderr")}
        job = {"environment": dict(variables), "folder": str(folder), **printed}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        stdout, stderr = (Path(path).read_text() for path in printed.values())
        return subprocess.CompletedProcess([], status, stdout, stderr)


@dataclass
class Outcome:
    path: Path | None
    error: str
    warnings: list[str]
    hub_imported: bool


Resolve = Callable[..., Outcome]


def outcome_of(status: int, output: str, errors: str, folder: Path) -> Outcome:
    lines: dict[str, list[str]] = {"error:": [], "WARNING": [], "INFO": []}
    for line in errors.splitlines():
        kind, _, text = line.partition(" ")
        assert kind in lines, errors
        lines[kind].append(text)
    assert status == len(lines["error:"]) <= 1, errors
    printed = output.splitlines()
    path = folder / printed[0] if printed else None
    return Outcome(path, "".join(lines["error:"]), lines["WARNING"], "hub imported" in printed)


if __name__ == "__main__":
    if "--once" in sys.argv:
        sys.exit(resolve())
    if "--warm" in sys.argv:
        repository.prepare_library()
        import huggingface_hub.file_download
        import huggingface_hub.hf_api  # noqa: F401
    for line in sys.stdin:
        print(resolve_in_child(**json.loads(line)), flush=True)
