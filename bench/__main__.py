"""``python -m bench``: the same loads on this server and its peers, with the same model.

The peers are llama-server with the same library, and OpenVINO GenAI after ``make bench OPENVINO=on``.
Each measurement starts a new server process, one at a time. The order of servers rotates between rounds. The
output compares medians over the rounds. Ratios are more reliable than absolute figures.
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
from bench.goals import OPENVINO, PEER, PEER_FLASH_OFF, PIP_PEER
from bench.load import Scale
from bench.native import BUILD_ERRORS
from bench.peer import pip_peer, same_peer
from bench.random_model import random_model
from bench.servers import OPENVINO_PYTHON
from bench.suite import WORKLOADS, Suite

VARIANTS = tuple(dict.fromkeys(name for workload in WORKLOADS.values() for name in workload.variants))

# By --model: share of the requests, and excluded workloads. A model of random weights copies no text.
_SHARES = {"default": 1.0, "1b": 0.5}
_LEFT_OUT = {"1b": {"copy"}}


def main() -> int:
    """Run the selected workloads and return the exit status."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the cleanup of servers
    try:
        suite = _suite(options)
        names = [name for name in options.workloads if name not in _LEFT_OUT.get(options.model, ())]
        suite.run(names, options.variants, 1 if options.quick else options.rounds)
    except (BenchError, ModelError, *BUILD_ERRORS) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no results were stored", file=sys.stderr)
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
    """Build the peers, find or write the model.

    Raises:
        BenchError, ModelError, one of BUILD_ERRORS: The model or a peer is not available.
    """
    if OPENVINO in options.variants and not OPENVINO_PYTHON.exists():
        raise BenchError(f"{OPENVINO_PYTHON} does not exist; run: make bench OPENVINO=on")
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
    default = resolve_model(Settings.model_construct())  # ignores the environment
    return default if name == "default" else random_model(default)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="default",
        help="default, 1b (random weights in the shape of Llama-3.2-1B), or the path of a GGUF file",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (3)")
    installed = [name for name in VARIANTS if name != OPENVINO or OPENVINO_PYTHON.exists()]
    for option, known, usual in (
        ("--workloads", WORKLOADS, [*WORKLOADS]),
        ("--variants", VARIANTS, installed),
    ):
        listed = f"one or more of {', '.join(known)} (default: all that are installed)"
        parser.add_argument(option, type=_one_of(known), default=usual, metavar="NAME,NAME", help=listed)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round with a quarter of the requests, results not stored",
    )
    parser.add_argument("--json", type=Path, help="file for the results instead of bench/results")
    return parser.parse_args()


def _one_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Parser of comma-separated names. ``unique`` also selects all names that start with ``unique-``."""

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
