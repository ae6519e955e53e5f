"""Measurements in child processes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from app.measure.measurer import Measurer, Trial, TrialFailed
from app.measure.mix import Mix
from tests.tiny_models import TinyModel


def test_a_fault_costs_only_the_measurement(tiny_model: TinyModel, tmp_path: Path) -> None:
    with Measurer(Mix(64, 8, 2, 8, 64, 8, 2)) as measurer:
        trial = Trial(tiny_model("sliding-window"), 1)
        rates = measurer.rates(trial)
        assert rates.keys() == {"prefill", "decode 1", "decode 2", "shared prefix"}
        assert min(rates.values()) > 0
        [child] = measurer._children.values()
        process = child.process_id
        assert process is not None
        with pytest.raises(TrialFailed, match="KV cache"):
            measurer.rates(Trial(trial.model, 1, flash_attention=False, kv_type="q4_0"))
        assert child.process_id == process  # a rejection ends no process
        os.kill(process, signal.SIGSTOP)
        # As the kernel does without memory.
        killing = threading.Timer(0.3, os.kill, (process, signal.SIGKILL))
        killing.start()
        with pytest.raises(TrialFailed, match="it ended its process by signal SIGKILL"):
            measurer.rates(trial)
        assert measurer.rates(trial).keys() == rates.keys()
        (tmp_path / "broken.gguf").write_bytes(b"GGUF")
        with pytest.raises(TrialFailed):
            measurer.loss(Trial(tmp_path / "broken.gguf", 1))
        assert 5 < measurer.loss(trial) < 20  # random weights
    assert child.process_id is None


def test_a_slow_model_has_shorter_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = Mix()
    for seconds, expected in ((0.5, complete), (4.0, complete.shortened(2)), (30.0, complete.shortened(4))):
        clock = iter((0.0, seconds))
        monkeypatch.setattr("app.measure.measurer.time.monotonic", lambda clock=clock: next(clock))
        monkeypatch.setattr(Measurer, "rates", lambda *_: {})
        measurer = Measurer(complete)
        measurer.fit(Trial(Path("model.gguf"), 1))
        assert measurer.mix == expected
