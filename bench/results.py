"""Files of results: all figures with date, commit, machine and build flags."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from app.machine.installation import ROOT
from bench.goals import Results
from bench.load import Rounds, medians_by_variant
from bench.native import cpu
from bench.suite import Suite

FOLDER = ROOT / "bench" / "results"


def record(suite: Suite, path: Path) -> None:
    """Update the file of one model. Workloads that were not run keep their stored results."""
    flags = {peer.name: list(peer.flags) for peer in suite.peers.values()}
    run = {"flags": flags, "share": suite.scale.share}
    record_rounds(suite.rounds, path, suite.n_threads, {"model": suite.model.name}, run)


def record_rounds(
    rounds: Rounds, path: Path, n_threads: int, head: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
    """Update a file of results.

    Args:
        rounds: Measured figures. Stored results of other workloads are kept.
        path: The file.
        n_threads: Number of compute threads.
        head: Fields of the file.
        details: Fields of the run.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"workloads": {}}
    run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(n_threads),
        **details,
    }
    medians = medians_by_variant(rounds)
    measured = {
        workload: {"run": run, "medians": medians[workload], "rounds": variants}
        for workload, variants in rounds.items()
    }
    contents = {**head, "workloads": {**kept["workloads"], **measured}}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(_rounded(contents), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> Results:
    """Read the medians from the file of one model."""
    workloads = json.loads(path.read_text(encoding="utf-8"))["workloads"]
    return {name: entry["medians"] for name, entry in workloads.items()}


def _commit() -> str:
    """The measured commit, with a plus if the working tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _machine(n_threads: int) -> dict[str, Any]:
    return {"cpu": cpu.model(), "threads": n_threads, "system": platform.platform()}


def _rounded(value: Any) -> Any:
    """Round every figure to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
