"""Log lines in both formats."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from app.telemetry import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(form: Literal["console", "json"]) -> str:
    """A line of a library, a line of a request, and a traceback."""
    stream = io.StringIO()
    logs.configure("info", form, stream)
    logging.getLogger("library").warning("disk %s", "full")
    structlog.get_logger("ours").info("request", status=200, text="two\nlines")
    try:
        raise ValueError("forced")
    except ValueError:
        logging.getLogger("library").exception("failed")
    logging.getLogger("library").debug("omitted")
    return stream.getvalue()


def test_text_has_level_logger_message_and_fields() -> None:
    first, second, third, *traceback = logged("console").splitlines()
    assert first == "WARNING library: disk full"
    assert second == r"INFO ours: request status=200 text='two\nlines'"
    assert third == "ERROR library: failed"
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "ValueError: forced"


def test_json_has_an_object_per_line() -> None:
    first, second, third = map(json.loads, logged("json").splitlines())
    assert (first["event"], first["level"], first["logger"]) == ("disk full", "warning", "library")
    assert (second["event"], second["status"], second["text"]) == ("request", 200, "two\nlines")
    assert third["exception"].endswith("ValueError: forced")
    assert all(line["timestamp"].endswith("Z") for line in (first, second, third))
