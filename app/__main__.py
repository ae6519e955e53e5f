"""The command line: ``tokenstream serve``, ``generate``, ``chat`` and others; also ``python -m app``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from app.cli.parser import parser, request_fields
from app.config import flags
from app.config import settings as settings_table
from app.config.errors import UserError
from app.config.settings import Settings
from app.fit import builds
from app.machine import numa
from app.telemetry import logs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: success. 1: error. 2: wrong setting or argument. 3: the engine or the embedding model failed while
    serving. 128 + n: signal n.
    """
    options = parser().parse_args(arguments)
    # Replaced by the server's handler. Without a handler, a container's first process ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings: Settings | None = None
    try:
        overrides: dict[str, Any] = flags.given_settings(options)
        settings = settings_table.load(**overrides)
        logs.configure(settings.log_level, settings.log_format)
        if options.command not in _WITHOUT_LIBRARY:
            numa.pin(numa.place(settings.model_threads, enabled=settings.numa == "auto"))
            builds.choose(settings.native_build)
        if options.command in _OF_ONE_MODEL or (options.command in _ANSWERING and settings.model is not None):
            settings = _one_model(settings)
        return _COMMANDS[options.command](settings, options)
    except UserError as error:
        if settings is not None and settings.log_format == "json":
            logging.getLogger("tokenstream").critical("%s", error)
        else:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Standard output is closed: prevent Python from flushing to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# Commands are imported after builds.choose(), because they load the native library.


def _one_model(settings: Settings) -> Settings:
    from app.weights.served import one_model

    return one_model(settings)


def _serve(settings: Settings, _options: argparse.Namespace) -> int:
    from app.cli.serve import serve

    return serve(settings)


def _generate(settings: Settings, options: argparse.Namespace) -> int:
    import asyncio

    from app.cli.generate import generate, request_of

    request = request_of({"query": options.prompt, **request_fields(options)})
    asyncio.run(generate(settings, request))
    return 0


def _chat(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.chat import chat

    chat(settings, request_fields(options))
    return 0


def _classify(settings: Settings, options: argparse.Namespace) -> int:
    import asyncio

    from app.cli.classify import classify

    asyncio.run(classify(settings, options.texts, options.context, options.choices, as_json=options.json))
    return 0


def _install(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.install import install

    install(settings, rebuild=options.rebuild)
    return 0


def _doctor(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.doctor import doctor

    return doctor(settings, as_json=options.json)


def _models(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.models import list_models

    list_models(settings, as_json=options.json)
    return 0


def _quantize(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.models import quantize

    quantize(settings, options.output)
    return 0


def _pull(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.models import pull

    pull(settings, options.names)
    return 0


def _tune(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.tune import tune

    tune(settings, options.minutes, options.plot)
    return 0


def _remove(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.models import remove

    remove(settings, options.names)
    return 0


def _detect_watermark(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.detect_watermark import detect_watermark

    detect_watermark(settings, options.file)
    return 0


_COMMANDS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "serve": _serve,
    "generate": _generate,
    "chat": _chat,
    "classify": _classify,
    "install": _install,
    "doctor": _doctor,
    "models": _models,
    "list": _models,
    "quantize": _quantize,
    "tune": _tune,
    "pull": _pull,
    "rm": _remove,
    "detect-watermark": _detect_watermark,
}
_WITHOUT_LIBRARY = frozenset({"install", "doctor"})
# Without --model, these use the first of MODELS, or all of them.
_OF_ONE_MODEL = frozenset({"quantize", "tune", "detect-watermark"})
_ANSWERING = frozenset({"generate", "chat", "classify"})


if __name__ == "__main__":
    sys.exit(main())
