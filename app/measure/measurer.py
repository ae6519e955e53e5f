"""Measures in a child process: a crash, a hang or a lack of memory costs only the measured candidate.

Run as ``python -m app.measure.measurer`` this module is the child. It keeps one model for all measurements.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from app.config.settings import Settings
from app.engine.answer import EngineError
from app.engine.engine import Engine, EngineOptions
from app.engine.llama import DecodeError, KVOptions, Model, ModelLoadError, start_matmul
from app.engine.llama.simulation import SimulatedModel
from app.machine.child_process import ChildError, ChildProcess, serve
from app.machine.cores import physical_cores
from app.machine.identity import model_files
from app.machine.memory import available_memory
from app.measure.loss import mean_loss
from app.measure.mix import Mix, Rates, measure

_START_SECONDS = 120.0
_SLOWEST_DISK = 20e6  # bytes/s
_MOST_MEMORY = 0.2  # share of the available memory for several models at once
_MEASURING_SECONDS = 600.0  # most of one measurement
_LONGEST, _LARGEST_DIVISOR = 12.0, 4  # seconds of a measurement; divisor of the mix


class TrialFailed(Exception):
    """A candidate cannot be measured. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured.

    Attributes:
        model: A GGUF file; for a split model, its first part.
        n_threads: Compute threads.
        matmul: Whether to use the matrix kernels of native/matmul.cpp.
        flash_attention: Whether attention is one fused operation. None: llama.cpp decides.
        kv_type: Number format of the KV cache, or ``auto``.
    """

    model: Path
    n_threads: int
    matmul: bool = True
    flash_attention: bool | None = None
    kv_type: str = "auto"

    @classmethod
    def of(cls, settings: Settings, model: Path) -> Trial:
        """A model with the settings."""
        return cls(
            model,
            n_threads=settings.model_threads or physical_cores(),
            matmul=settings.matmul == "auto",
            flash_attention={"auto": None, "on": True, "off": False}[settings.flash_attention],
            kv_type=settings.kv_type,
        )


class Measurer:
    """Runs measurements, one at a time. Models stay loaded while they need little of the memory."""

    def __init__(self, mix: Mix) -> None:
        self.mix = mix
        self._children: dict[tuple[Path, bool], ChildProcess] = {}  # by model and matmul

    def fit(self, trial: Trial) -> None:
        """Shorten the mix until a measurement takes a few seconds.

        Raises:
            TrialFailed: See `rates`.
        """
        complete = self.mix
        self.mix = complete.shortened(_LARGEST_DIVISOR)
        self.rates(trial)  # reads the file too
        started = time.monotonic()
        self.rates(trial)
        seconds = time.monotonic() - started
        divisor = _LARGEST_DIVISOR
        while divisor > 1 and seconds * 2 <= _LONGEST:
            seconds, divisor = seconds * 2, divisor // 2
        self.mix = complete.shortened(divisor) if divisor > 1 else complete

    def rates(self, trial: Trial) -> Rates:
        """Tokens per second of each load.

        Raises:
            TrialFailed: The process crashed, hung, ran out of memory, or rejected the options.
        """
        options = [trial.n_threads, trial.flash_attention, trial.kv_type]
        rates: Rates = self._request(trial, "rates", *options, list(dataclasses.astuple(self.mix)))
        return rates

    def loss(self, trial: Trial) -> float:
        """Mean loss of the model for the bundled text.

        Raises:
            TrialFailed: See `rates`.
        """
        return float(self._request(trial, "loss", trial.n_threads))

    def close(self) -> None:
        """End the children and free their memory. Another measurement would start a new one."""
        while self._children:
            self._children.popitem()[1].close()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, trial: Trial, *arguments: Any) -> Any:
        child = self._children.get((trial.model, trial.matmul)) or self._start(trial)
        cpu_seconds = _MEASURING_SECONDS * (trial.n_threads + 2)
        try:
            [answer] = child.request(*arguments, seconds=_MEASURING_SECONDS, cpu_seconds=cpu_seconds)
        except ChildError as error:
            raise TrialFailed(f"it {error}") from error
        return answer

    def _start(self, trial: Trial) -> ChildProcess:
        n_bytes = _size(trial.model)
        if n_bytes + sum(_size(model) for model, _ in self._children) > available_memory() * _MOST_MEMORY:
            self.close()
        child = self._children[trial.model, trial.matmul] = ChildProcess(
            "app.measure.measurer",
            [str(trial.model), trial.matmul],
            memory=_address_space(),
            errors=(TrialFailed,),
            start_seconds=_START_SECONDS + n_bytes / _SLOWEST_DISK,
        )
        return child


def _address_space() -> int:
    """The limit of this process, in bytes. Without memory, the kernel ends the child first; see `_start`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 1 << 46 if limit == resource.RLIM_INFINITY else limit


def _size(model: Path) -> int:
    return sum(part.stat().st_size for part in model_files(model) if part.exists())


# --- the child


def _start(path: str, matmul: bool) -> Callable[..., Iterator[Any]]:
    os.environ["GGML_NO_BACKTRACE"] = "1"  # otherwise ggml starts a debugger when it aborts
    with suppress(OSError):  # other systems than Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # without memory, the kernel ends this process
    try:
        start_matmul(enabled=matmul)
        model = Model(Path(path))
    except ModelLoadError as error:
        raise TrialFailed(str(error)) from error

    def handle(what: str, n_threads: int, *options: Any) -> Iterator[Any]:
        try:
            yield mean_loss(model, n_threads) if what == "loss" else _rates(model, n_threads, *options)
        except (ModelLoadError, DecodeError, EngineError) as error:
            raise TrialFailed(str(error)) from error

    return handle


def _rates(model: Model, n_threads: int, flash: bool | None, kv_type: str, sizes: Sequence[int]) -> Rates:
    mix = Mix(*sizes)
    simulated = SimulatedModel(model.path)
    kv = simulated.resolved(KVOptions(flash, kv_type))
    simulated.close()
    options = EngineOptions(
        n_ctx=mix.longest * mix.n_parallel,
        max_sequences=mix.n_parallel,
        n_threads=n_threads,
        kv=kv,
        speculation=False,
    )
    engine = Engine(model, options)
    try:
        return measure(engine, model.vocab, mix)
    finally:
        engine.close()


if __name__ == "__main__":
    serve(_start, errors=(TrialFailed,))
