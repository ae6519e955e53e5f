"""``python -m bench``: the same loads on this server and on llama-server, over the same library and model.

Servers take turns: one fresh process after another, nothing else running, the order rotated from round to
round. The medians over the rounds are compared, and ratios are what to trust.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from app.config.settings import Settings, load
from app.machine.cores import physical_cores
from app.weights.errors import ModelError
from app.weights.model import resolve_model
from bench import goals, plot, results
from bench.client import BenchError
from bench.goals import PEER, PEER_FLASH_OFF, PIP_PEER
from bench.native import BUILD_ERRORS
from bench.peer import pip_peer, same_peer
from bench.random_model import random_model
from bench.suite import WORKLOADS, Suite
from bench.workloads import Scale

VARIANTS = tuple(dict.fromkeys(name for workload in WORKLOADS.values() for name in workload.variants))

# By --model: the share of the requests, and the workloads that mean nothing. Random weights copy nothing.
_SHARES = {"default": 1.0, "1b": 0.5}
_LEFT_OUT = {"1b": {"copy"}}


def main() -> int:
    """Run what the arguments name; return the exit status."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # no server is left behind
    try:
        suite = _suite(options)
        names = [name for name in options.workloads if name not in _LEFT_OUT.get(options.model, ())]
        suite.run(names, options.variants, 1 if options.quick else options.rounds)
    except (BenchError, ModelError, *BUILD_ERRORS) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 128 + signal.SIGINT
    if options.json:
        results.record(suite, options.json)
    elif not options.quick:
        results.record(suite, results.FOLDER / f"{Path(options.model).stem}.json")
        plot.main()
    print(goals.figures_table(suite.results), goals.table(suite.results), sep="\n\n")
    for failure in suite.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if suite.failures else 0


def _suite(options: argparse.Namespace) -> Suite:
    """The peers built, the model found or written.

    Raises:
        BenchError, ModelError, one of BUILD_ERRORS: Something cannot be had.
    """
    peers = {}
    if {PEER, PEER_FLASH_OFF} & set(options.variants):
        peers["same"] = same_peer()
    if PIP_PEER in options.variants:
        peers["pip"] = pip_peer()
    return Suite(
        model=_model(options.model),
        n_threads=physical_cores(),
        scale=Scale(0.25 if options.quick else _SHARES.get(options.model, 1.0)),
        peers=peers,
    )


def _model(name: str) -> Path:
    if name not in _SHARES:
        return resolve_model(load(model_path=name))
    default = resolve_model(Settings.model_construct())  # the default model, whatever the environment says
    return default if name == "default" else random_model(default)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="default",
        help="default, 1b (random weights in the shape of Llama-3.2-1B), or the path of a GGUF",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often every server has its turn (3)")
    for option, known in (("--workloads", [*WORKLOADS]), ("--variants", [*VARIANTS])):
        listed = f"of {', '.join(known)} (all)"
        parser.add_argument(option, type=_one_of(known), default=known, metavar="NAME,NAME", help=listed)
    parser.add_argument(
        "--quick", action="store_true", help="one round of a quarter of the requests, not kept"
    )
    parser.add_argument("--json", type=Path, help="keep the figures here, not in bench/results")
    return parser.parse_args()


def _one_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Read names between commas; a name stands for all that begin with it and a hyphen, too."""

    def names(text: str) -> list[str]:
        chosen = []
        for part in text.split(","):
            found = [part] if part in known else [name for name in known if name.startswith(f"{part}-")]
            if not found:
                raise argparse.ArgumentTypeError(f"{part!r}: should be one of {', '.join(known)}")
            chosen += found
        return chosen

    return names


if __name__ == "__main__":
    sys.exit(main())
