"""The command line: ``python -m app serve``, ``generate`` and ``detect-watermark``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.config import reference
from app.config import settings as settings_table
from app.config.errors import UserError
from app.config.settings import Settings
from app.fit import preflight
from app.telemetry import logs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: success. 1: error. 2: wrong setting or argument. 3: the engine or the embedding model failed while
    serving. 128 + n: signal n.
    """
    options = _parser().parse_args(arguments)
    # Replaced by the server's handler. Without a handler, a container's first process ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings: Settings | None = None
    try:
        overrides = {"model_path": options.model} if getattr(options, "model", None) else {}
        settings = settings_table.load(**overrides)
        logs.configure(settings.log_level, settings.log_format)
        preflight.check_library()
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


# Commands are imported after check_library(), because they load the native library.


def _serve(settings: Settings, _options: argparse.Namespace) -> int:
    from app.cli.serve import serve

    return serve(settings)


def _generate(settings: Settings, options: argparse.Namespace) -> int:
    import asyncio

    from app.cli.generate import generate, request_of

    fields: dict[str, Any] = {
        "query": options.prompt,
        "context": options.context,
        "max_tokens": options.sample_len,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "repetition_penalty": options.repeat_penalty,
        "repeat_last_n": options.repeat_last_n,
    }
    asyncio.run(generate(settings, request_of(fields)))
    return 0


def _detect_watermark(settings: Settings, options: argparse.Namespace) -> int:
    from app.cli.detect_watermark import detect_watermark

    detect_watermark(settings, options.file)
    return 0


_COMMANDS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "serve": _serve,
    "generate": _generate,
    "detect-watermark": _detect_watermark,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app", description="Serve a GGUF model on plain CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "serve",
        help="serve over HTTP",
        description="Serve over HTTP until SIGTERM or SIGINT.\n\n"
        "Exit status: 0 after a signal, 1 error at start, 2 wrong setting, 3 failed engine or embedding "
        "model.\n"
        "Settings are read from the environment and from a file .env:",
        epilog=reference.for_terminal(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate = commands.add_parser("generate", help="stream one answer to the terminal")
    generate.add_argument("--prompt", required=True, help="the question")
    generate.add_argument("--context", help="name of the context (default: CONTEXT_TYPE)")
    generate.add_argument("--sample-len", "-n", type=int, help="maximum tokens of the answer")
    generate.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    generate.add_argument("--top-p", type=float, help="nucleus sampling: probability mass")
    generate.add_argument("--seed", type=int, help="seed of the sampler")
    generate.add_argument("--repeat-penalty", type=float, help="repetition penalty; 1 is off")
    generate.add_argument(
        "--repeat-last-n", type=int, help="number of last tokens in which repetition is penalized"
    )
    generate.add_argument("--model", help="a GGUF file (default: the model of serve)")
    detect = commands.add_parser(
        "detect-watermark",
        help="test whether a text carries a watermark",
        description="Test whether a text was generated with `watermark`. The model and WATERMARK_GAMMA must "
        "be those of the generating server.",
    )
    detect.add_argument("file", nargs="?", type=Path, help="file of the text (default: standard input)")
    detect.add_argument("--model", help="a GGUF file (default: the model of serve)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
