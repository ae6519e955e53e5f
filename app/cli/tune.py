"""``tokenstream tune``: finds faster settings for a model on this machine, for later starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.ratio_plot import Series, draw_ratios
from app.config.errors import UserError
from app.config.settings import Settings
from app.fit import tuned_file
from app.fit.memory_plan import MemoryPlan, MemoryPlanError
from app.fit.tuned_file import Conditions
from app.fit.tuning import Choice, Search, Tuning, Values, described
from app.machine.cores import cpu_quota, physical_cores, usable_cpus
from app.machine.memory import available_memory
from app.measure.comparison import Comparison
from app.measure.measurer import Measurer, Trial, TrialFailed
from app.measure.mix import Mix, Rates
from app.service.model.files import readable_load_errors
from app.service.model.parts import memory_plan
from app.service.model.tuned import place_of
from app.weights.auto_format import Converted, kept_formats
from app.weights.errors import ModelError
from app.weights.model import model_name, resolve_model, source_model

_COLORS = ("#1b6e8a", "#e0a030", "#7a9e3a", "#a0506a")
# MATMUL=ggml and FLASH_ATTENTION=off compute in an order that depends on the batch (docs/engine.md).
_VARYING = ({"matmul": "ggml"}, {"flash_attention": "off"})

MIX = Mix()


class TuneError(UserError):
    """The model cannot be measured with its default settings."""


def tune(settings: Settings, minutes: float, plot: Path | None) -> None:
    """Search for faster settings, print a table, and write TUNED_FILE.

    Args:
        settings: The model. Settings that are set are not changed.
        minutes: Time after which no other candidate is tried.
        plot: SVG to write.

    Raises:
        UserError: The model cannot be found or measured, or a file cannot be written.
    """
    if settings.model_gpu_layers:
        raise TuneError("MODEL_GPU_LAYERS is set: tune compares settings of the CPU only")
    conditions = Conditions.of(source_model(settings), settings.quantize)
    place = place_of(settings)
    tuned_file.read(place, conditions)  # an invalid file is reported before the measurement
    path = resolve_model(settings)
    end = time.monotonic() + 60 * minutes
    with Measurer(MIX) as measurer, _Candidates(settings, path, measurer) as candidates:
        try:
            _tell("measuring the default")
            trial = Trial.of(settings, path)
            measurer.fit(trial)
            print(f"{path.name}, {trial.n_threads} threads: {measurer.mix}")
            search = Search(candidates.rates, is_late=lambda: time.monotonic() > end, on_progress=_tell)
            tuning = search.run(candidates.choices())
        except TrialFailed as error:
            raise TuneError(f"{path.name} cannot be measured with its settings: {error}") from error
        candidates.keep(tuning.values.get("quantize"))
    _tell("")
    print_table(tuning)
    gain = tuning.final.factor if tuning.final else 1.0
    tuned_file.write(place, conditions, tuning.values, gain)
    print(_summary(tuning, place, minutes))
    if plot is not None:
        draw(tuning, plot)


class _Candidates:
    """Values to try, and their measurement."""

    def __init__(self, settings: Settings, path: Path, measurer: Measurer) -> None:
        self._settings = settings
        self._path = path
        self._measurer = measurer
        self._converted: dict[str, Converted] = {}
        self._available = available_memory()  # before models are loaded
        self._default_plan = self._plan({})
        self._has_room: dict[str, str] = {}  # reason against a candidate; empty: none
        measurer.mix = replace(
            measurer.mix, n_parallel=min(measurer.mix.n_parallel, self._default_plan.max_sequences)
        )

    def __enter__(self) -> _Candidates:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(None)

    def choices(self) -> Iterator[Choice]:
        """Settings that are not set, with values other than the default."""
        is_packed = self._default_plan.kv_options.type == "q8_0"
        tried: dict[str, Callable[[], Iterator[Any]]] = {
            "model_threads": self._threads,
            "kv_type": lambda: iter(["f16"] if is_packed else []),
            "flash_attention": lambda: iter(["off"]),
            "matmul": lambda: iter(["ggml"]),
            "quantize": self._formats,
        }
        for setting, values in tried.items():
            if setting not in self._settings.model_fields_set:
                yield Choice(setting, values())

    def _threads(self) -> Iterator[int]:
        cores, logical, quota = physical_cores(), len(usable_cpus()), cpu_quota()
        most = logical if quota is None else min(logical, int(quota))
        yield from dict.fromkeys(n for n in (cores - 1, cores // 2, most) if 0 < n != cores)

    def _formats(self) -> Iterator[str]:
        """Formats that lose no more than the file has lost; converted while they are read."""
        _tell("number formats")
        trial, folder = Trial.of(self._settings, self._path), self._settings.models_dir
        try:
            for converted in kept_formats(self._measurer, trial, folder, model_name(self._path)):
                self._converted[converted.file_type] = converted
                yield converted.file_type
        except ModelError as error:  # no disk space, or no format of llama.cpp
            _tell("")
            print(f"other number formats are left out: {error}")

    def rates(self, values: Values) -> Rates:
        """Measure values.

        Raises:
            TrialFailed: They cannot be measured, or need so much memory that requests have less room.
        """
        if reason := self._shortage(values):
            raise TrialFailed(reason)
        path = self._converted[values["quantize"]].path if "quantize" in values else self._path
        settings = self._settings.model_copy(update=dict(values))
        return self._measurer.rates(Trial.of(settings, path))

    def _shortage(self, values: Values) -> str:
        key = described(values)
        if key not in self._has_room:
            try:
                plan = self._plan(values)
            except (MemoryPlanError, ModelError) as error:
                self._has_room[key] = str(error)
            else:
                default = self._default_plan
                shrinks = plan.n_ctx < default.n_ctx or plan.max_sequences < default.max_sequences
                self._has_room[key] = "it leaves less memory for requests" if shrinks else ""
        return self._has_room[key]

    def _plan(self, values: Values) -> MemoryPlan:
        path = self._converted[values["quantize"]].path if "quantize" in values else self._path
        with readable_load_errors():
            return memory_plan(self._settings.model_copy(update=dict(values)), path, self._available)

    def keep(self, file_type: str | None) -> None:
        """End the measurements, and delete the files of all other formats that were written for them."""
        self._measurer.close()
        while self._converted:
            name, converted = self._converted.popitem()
            if name != file_type:
                converted.discard()


# --- output


def _tell(message: str) -> None:
    """Show the current measurement: one changing line on a terminal, else a line each."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{message}")
        sys.stderr.flush()
    elif message:
        print(message, file=sys.stderr)


def print_table(tuning: Tuning) -> None:
    """Print the speed of the default, and the ratios of all candidates to the best one before them."""
    loads = list(tuning.default)
    _print_row("", [*loads, "mix", ""])
    _print_row("default, tokens/s", [*(f"{tuning.default[load]:,.0f}" for load in loads), "", ""])
    for row in tuning.rows:
        _print_row(described(row.values), _cells(row.comparison, loads))
    if tuning.final is not None:
        _print_row("all, to the default", _cells(tuning.final, loads))


def _cells(found: Comparison, loads: Sequence[str]) -> list[str]:
    if not found.ratios:
        return [*("" for _ in loads), "", found.reason]
    ratios = [f"{found.ratios[load]:.2f} x" for load in loads]
    return [*ratios, f"{found.factor:.2f} x", "better" if found.is_better else found.reason]


def _print_row(name: str, cells: Sequence[str]) -> None:
    *figures, reason = cells
    print(f"{name:32} {' '.join(f'{figure:>13}' for figure in figures)}  {reason}".rstrip())


def _summary(tuning: Tuning, place: Path, minutes: float) -> str:
    lines = []
    if tuning.final is not None and tuning.values:
        lines.append(f"{described(tuning.values)}: {tuning.final.factor:.2f} times as fast as the default")
        lines.append(f"later starts of this model use it ({place})")
        if any(varying.items() <= tuning.values.items() for varying in _VARYING):
            lines.append("equal requests can then have different answers (docs/engine.md)")
    else:
        lines.append(f"no setting is faster than the default by more than {tuning.noise.margin:.1%} of noise")
    if tuning.noise.margin > 0.05:
        lines.append("other programs disturbed the measurement: end them and run it again")
    if not tuning.is_complete:
        lines.append(f"not all candidates were tried in {minutes:g} minutes: set --minutes")
    return "\n".join(lines)


def draw(tuning: Tuning, path: Path) -> None:
    """Draw the ratios of all candidates by load, if there are any.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    rows = [(described(row.values), row.comparison) for row in tuning.rows if row.comparison.ratios]
    if tuning.final is not None:
        rows.append(("all, to the default", tuning.final))
    if not rows:
        return
    series = [
        Series(load, color, {name: found.ratios[load] for name, found in rows})
        for load, color in zip(tuning.default, _COLORS, strict=False)
    ]
    try:
        draw_ratios(series, "speed in relation to the best settings before (higher is better)", path)
    except OSError as error:
        raise TuneError(f"--plot {path} cannot be written ({error.strerror})") from error
    print(f"{path} is written")
