"""The file of results: every figure, and on what, with what and when it was measured."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from app.config.settings import ROOT
from bench.goals import Results
from bench.native import cpu
from bench.suite import Suite

FOLDER = ROOT / "bench" / "results"


def record(suite: Suite, path: Path) -> None:
    """Write what was measured into the file of one model; workloads that were not run stay as they are."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"workloads": {}}
    run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(suite.n_threads),
        "flags": {peer.name: list(peer.flags) for peer in suite.peers.values()},
        "share": suite.scale.share,
    }
    measured = {
        workload: {"run": run, "medians": suite.results[workload], "rounds": variants}
        for workload, variants in suite.rounds.items()
    }
    contents = {"model": suite.model.name, "workloads": {**kept["workloads"], **measured}}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(_rounded(contents), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> Results:
    """The medians in the file of one model."""
    workloads = json.loads(path.read_text(encoding="utf-8"))["workloads"]
    return {name: entry["medians"] for name, entry in workloads.items()}


def _commit() -> str:
    """The commit that was measured; with a plus where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _machine(n_threads: int) -> dict[str, Any]:
    return {"cpu": cpu.model(), "threads": n_threads, "system": platform.platform()}


def _rounded(value: Any) -> Any:
    """The same with every figure cut to four digits: more were not measured."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
