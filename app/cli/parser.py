"""Arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.config import flags

_ALL_SETTINGS = "All settings of `tokenstream serve --help` are flags of this command too."


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="tokenstream", description="Serve a GGUF model on plain CPUs.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_serve(commands)
    _add_answers(commands)
    _add_setup(commands)
    _add_models(commands)
    for command in dict.fromkeys(commands.choices.values()):
        if command is not commands.choices["serve"]:
            command.epilog = _ALL_SETTINGS
            flags.add_settings(command, shown=False)
    return top


def _add_serve(commands: Any) -> None:
    serve = _command(
        commands,
        "serve",
        "serve over HTTP",
        "Serve over HTTP until SIGTERM or SIGINT.\n\n"
        "Exit status: 0 after a signal, 1 error at start, 2 wrong setting, 3 failed engine or embedding "
        "model.\nEach flag is also a variable of the environment and of a file .env: --n-ctx is N_CTX.",
    )
    serve.usage = "tokenstream serve [--SETTING VALUE …]"
    flags.add_settings(serve, shown=True)


def _add_answers(commands: Any) -> None:
    generate = _command(commands, "generate", "stream one answer to the terminal")
    generate.add_argument("--prompt", required=True, help="the question")
    _add_sampling(generate)
    _add_sampling(_command(commands, "chat", "hold a conversation in the terminal"))
    classify = _command(
        commands,
        "classify",
        "print the classes of texts",
        "Print the class of each text. Without texts, each line of standard input is one.",
    )
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="a text to classify")
    classify.add_argument("--context", help="name of a context with choices (default: CONTEXT_TYPE)")
    classify.add_argument("--choices", help="names separated by commas, instead of a context")
    _add_json(classify)
    detect = _command(
        commands,
        "detect-watermark",
        "test whether a text carries a watermark",
        "Test whether a text was generated with `watermark`. The model and WATERMARK_GAMMA must be those of "
        "the generating server.",
    )
    detect.add_argument("file", nargs="?", type=Path, help="file of the text (default: standard input)")


def _add_setup(commands: Any) -> None:
    install = _command(
        commands,
        "install",
        "compile llama.cpp for this CPU and install the default model",
        "Compile llama.cpp for this CPU, and install it and the default model in this environment.\n"
        "It needs a C++ compiler and takes some minutes; the result is cached. KNOWLEDGE=on and\n"
        "OTLP_ENDPOINT install the packages that they need. LLAMA_BUILD_FLAGS has CMake definitions.",
    )
    install.add_argument("--rebuild", action="store_true", help="compile even if a build is cached")
    check = _command(
        commands,
        "doctor",
        "check machine, library, model and settings",
        "Check machine, library, model and settings. Each line has a remedy, if one is needed.\n\n"
        "Exit status: 0 without failures, 1 with failures; warnings do not count.",
    )
    _add_json(check)


def _add_models(commands: Any) -> None:
    _add_json(_command(commands, "models", "list the models that have names", aliases=("list",)))
    quantize = _command(
        commands,
        "quantize",
        "convert the model to another number format",
        "Convert the model to the number format of --quantize, and print the path of the file. `serve` with\n"
        "the same settings uses it.",
    )
    quantize.add_argument("--output", type=Path, help="file to write (default: a folder in MODELS_DIR)")
    tune = _command(
        commands,
        "tune",
        "find faster settings for the model on this machine",
        "Compare settings by short measurements, and keep faster ones for later starts in TUNED_FILE.\n"
        "Settings that are set are not changed. Run no other program at the same time.",
    )
    tune.add_argument(
        "--minutes",
        type=_minutes,
        default=4.0,
        metavar="MINUTES",
        help="time after which no other candidate is tried (4)",
    )
    tune.add_argument("--plot", type=Path, metavar="FILE", help="SVG to write; needs matplotlib")
    pull = _command(commands, "pull", "download models by name")
    remove = _command(commands, "rm", "delete downloaded models by name")
    for command in (pull, remove):
        command.add_argument("names", nargs="+", metavar="NAME", help="a name that `models` lists")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 1440:
        raise argparse.ArgumentTypeError(f"{text}: should be a number of minutes, at most 1440")
    return minutes


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _command(
    commands: Any, name: str, summary: str, description: str = "", aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=flags.HelpFormatter,
        allow_abbrev=False,  # a misspelled flag is an error
    )
    return command


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--context", help="name of the context (default: CONTEXT_TYPE)")
    command.add_argument("--sample-len", "-n", type=int, help="maximum tokens of an answer")
    command.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    command.add_argument("--top-p", type=float, help="nucleus sampling: probability mass")
    command.add_argument("--seed", type=int, help="seed of the sampler")
    command.add_argument("--repeat-penalty", type=float, help="repetition penalty; 1 is off")
    command.add_argument(
        "--repeat-last-n", type=int, help="number of last tokens in which repetition is penalized"
    )


def request_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `_add_sampling` as fields of a request."""
    return {
        "context": options.context,
        "max_tokens": options.sample_len,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "repetition_penalty": options.repeat_penalty,
        "repeat_last_n": options.repeat_last_n,
    }
