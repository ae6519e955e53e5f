"""Log lines about the progress of long operations."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from app.engine.llama import Model
from app.machine import progress
from tests.conftest import MODEL


def test_lines_come_every_few_seconds_with_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter((100, 101, 106, 107, 120, 130))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    one = progress.Progress(logging.getLogger("test"), "downloading it", done=0.5)  # resumed
    for done in (0.6, 0.7, 0.72, 0.9, 1):
        one.report(done)
    assert caplog.messages == [
        "downloading it: 70 %, about 9 s left",
        "downloading it: 90 %, about 5 s left",
    ]


def test_the_load_of_a_model_reports_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    Model(MODEL).close()
    lines = [message for message in caplog.messages if message.startswith(f"loading {MODEL.name}: ")]
    assert len(lines) > 1
