"""Log lines of all modules and libraries, as text or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Fields of a stdlib log call (`extra`) that are part of its line.
_EXTRA = ("request_id", "trace_id")


def configure(level: str, form: Literal["console", "json"], stream: TextIO | None = None) -> None:
    """Send all log lines of this process to one stream.

    Args:
        level: Name of the minimum level.
        form: ``json``: an object per line. ``console``: level, logger and text, then fields.
        stream: Default: standard error.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        last += [structlog.processors.format_exc_info, _as_text]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=last, foreign_pre_chain=[structlog.stdlib.ExtraAdder(_EXTRA), *shared]
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    if level == "info":  # omit routine lines of libraries
        for name in ("httpx2", "uvicorn", "watchfiles"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _as_text(_logger: WrappedLogger, _method: str, fields: EventDict) -> str:
    """``LEVEL logger: text name=value …``, then the traceback."""
    del fields["timestamp"]  # journald, Docker and Kubernetes add their own
    traceback = fields.pop("exception", None)
    head = f"{fields.pop('level').upper()} {fields.pop('logger')}: {fields.pop('event')}"
    pairs = [f"{name}={_shown(value)}" for name, value in fields.items()]
    return "\n".join(filter(None, (" ".join([head, *pairs]), traceback)))


def _shown(value: Any) -> str:
    """A value as text. Text with spaces or control characters is quoted, so that a line stays a line."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)
