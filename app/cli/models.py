"""``tokenstream models``, ``pull``, ``rm`` and ``quantize``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.config import settings as settings_table
from app.config.errors import UserError
from app.config.named_models import NamedModel, load_named_models, named_model
from app.config.settings import Settings
from app.engine.llama.gguf import read_header
from app.fit.speed import expected_speed, memory_bandwidth, memory_of, recorded_speed
from app.machine.cores import physical_cores
from app.machine.memory import available_memory
from app.weights.errors import readable_size
from app.weights.model import (
    bundled_model,
    model_here,
    model_name,
    parts_of,
    repository_of,
    resolve_model,
    source_model,
)
from app.weights.quantized import delete_quantized, write_quantized

_LEGEND = """\
fits: whether memory suffices, 1.2 x size + 0.3 GB ({memory} available).
tokens/s of one stream: bandwidth / size, an upper bound ({bandwidth}/s measured with {threads} threads);
without ~: measured by an earlier run."""


class NotPresent(UserError):
    """The files of a model are not on this disk."""


def list_models(settings: Settings, *, as_json: bool) -> None:
    """Print the models of MODELS_FILE with size, presence, and expected speed on this machine.

    Raises:
        UserError: MODELS_FILE is invalid.
    """
    models = load_named_models(settings.models_file)
    n_threads = settings.model_threads or physical_cores()
    memory, bandwidth = available_memory(), memory_bandwidth(n_threads)
    rows = [_row(settings, name, model, n_threads, memory, bandwidth) for name, model in models.items()]
    if as_json:
        facts = {"available_memory": memory, "memory_bandwidth": round(bandwidth), "models": rows}
        print(json.dumps(facts, indent=2))
        return
    print(f"{'name':16} {'size':>8}  present  fits  tokens/s")
    for row in rows:
        speed = f"{'' if row['is_measured'] else '~'}{row['tokens_per_second']:.0f}"
        present, fits = ("yes" if row[key] else "no" for key in ("is_present", "fits"))
        print(f"{row['name']:16} {readable_size(row['bytes']):>8}  {present:7}  {fits:4}  {speed:>8}")
    figures = {"memory": readable_size(memory), "bandwidth": readable_size(int(bandwidth))}
    print(_LEGEND.format(**figures, threads=n_threads))


def _row(
    settings: Settings, name: str, model: NamedModel, n_threads: int, memory: int, bandwidth: float
) -> Mapping[str, Any]:
    path = _path_of(settings, name, model)
    size = sum(part.stat().st_size for part in parts_of(path)) if path else int(model.gigabytes * 1e9)
    measured = recorded_speed(path, n_threads) if path else None
    return {
        "name": name,
        "repository": model.repository,
        "file": model.file,
        "bytes": size,
        "context": model.context,
        "is_present": path is not None,
        "fits": memory_of(size) <= memory,
        "tokens_per_second": round(measured or expected_speed(size, bandwidth), 1),
        "is_measured": measured is not None,
    }


def _path_of(settings: Settings, name: str, model: NamedModel) -> Path | None:
    """The file of a model on this disk; for a split model, the first part. None if it is not there."""
    return bundled_model() if model.package else model_here(settings_table.with_model(settings, name))


def quantize(settings: Settings, output: Path | None) -> None:
    """Convert the model to the format of QUANTIZE, and print the path of the file.

    Args:
        settings: The model and the format.
        output: The file to write. None: the place where `serve` finds it.

    Raises:
        UserError: QUANTIZE is not set, or the model cannot be found or converted.
    """
    if settings.quantize is None:
        raise settings_table.SettingsError("QUANTIZE is not set: name a format, such as --quantize q8_0")
    if output is None:
        print(resolve_model(settings))
        return
    if settings.quantize == "auto":
        raise settings_table.SettingsError("QUANTIZE=auto: should be a format, if --output names a file")
    if output.exists():
        raise settings_table.SettingsError(f"--output {output}: the file exists; name another one")
    source = source_model(settings)
    n_threads = settings.model_threads or physical_cores()
    write_quantized(
        source,
        output,
        settings.quantize,
        n_threads=n_threads,
        header=read_header(source),
        elsewhere="let --output name",
    )
    print(output)


def pull(settings: Settings, names: Sequence[str]) -> None:
    """Download models, and print their paths.

    Raises:
        UserError: A name is unknown, or a model cannot be downloaded.
    """
    for name in names:
        print(resolve_model(settings_table.with_model(settings, name, variable="NAME")))


def remove(settings: Settings, names: Sequence[str]) -> None:
    """Delete the downloaded files of models, and those that QUANTIZE has written of them.

    Raises:
        UserError: A name is unknown, its files are not on this disk, or cannot be deleted.
    """
    found = []
    for name in dict.fromkeys(names):
        model = named_model(name, settings.models_file, variable="NAME")
        if model.package:
            raise NotPresent(f"{name} is a Python package, not a download")
        path = _path_of(settings, name, model)
        if path is None:
            raise NotPresent(f"{name} is not in MODELS_DIR={settings.models_dir}")
        found.append((name, path))
    for name, path in found:
        repository = repository_of(settings_table.with_model(settings, name))
        files = [part for part in repository.files_here() if repository.path_here(part) in parts_of(path)]
        freed = delete_quantized(path, settings.models_dir, model_name(path))
        freed += repository.delete(files)
        print(f"{name}: {readable_size(freed)} freed")
