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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0 done, 1 impossible, 2 a wrong setting or argument."""
    options = _parser().parse_args(arguments)
    # Until the server handles it: the first process of a container ignores a SIGTERM that nobody handles.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        overrides = {"model_path": options.model} if getattr(options, "model", None) else {}
        settings = settings_table.load(**overrides)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        if settings.log_level == "info":  # others' everyday lines are of no use to an operator
            for name in ("httpx2", "uvicorn", "watchfiles"):
                logging.getLogger(name).setLevel(logging.WARNING)
        preflight.check_library()
        return _COMMANDS[options.command](settings, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read standard output has gone; nothing may be written on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# The commands are imported late: they load the native library, which check_library() tries first.


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
        description="Serve over HTTP. Settings are read from the environment and from a file .env:",
        epilog=reference.for_terminal(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate = commands.add_parser("generate", help="stream one answer to the terminal")
    generate.add_argument("--prompt", required=True, help="what the model is asked")
    generate.add_argument("--context", help="the context to answer in (default: CONTEXT_TYPE)")
    generate.add_argument("--sample-len", "-n", type=int, help="longest answer in tokens")
    generate.add_argument("--temperature", type=float, help="0 is greedy")
    generate.add_argument("--top-p", type=float, help="nucleus sampling")
    generate.add_argument("--seed", type=int, help="seed of the sampler")
    generate.add_argument("--repeat-penalty", type=float, help="1 is off")
    generate.add_argument("--repeat-last-n", type=int, help="how far back a token counts as repeated")
    generate.add_argument("--model", help="a GGUF file (default: as serve chooses it)")
    detect = commands.add_parser(
        "detect-watermark",
        help="tell whether a text was generated with `watermark`",
        description="Tell whether a text was generated with `watermark`, by the vocabulary of the model that "
        "serve chooses and by WATERMARK_GAMMA; both should be those of the server.",
    )
    detect.add_argument("file", nargs="?", type=Path, help="the text (default: standard input)")
    detect.add_argument("--model", help="a GGUF file (default: as serve chooses it)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
