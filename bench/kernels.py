"""``make bench-kernels``: matrix kernels without HTTP, on model files of several types and sizes.

Compares prefill of 512 tokens, decode of one sequence and decode of eight: with the kernels of native/, with
those of ggml in the same library (MATMUL=ggml), and with OpenVINO GenAI. Each measurement is a process of its
own, one at a time. The order rotates between rounds. The output compares medians over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf

from app.config.settings import Settings
from app.machine.cores import physical_cores
from app.machine.installation import ROOT
from app.weights.errors import ModelError
from app.weights.model import resolve_model
from bench import goals, results
from bench.client import BenchError
from bench.goals import GGML, KERNEL_FIGURES, OPENVINO, OURS, Results
from bench.load import Figures, Rounds, medians_by_variant
from bench.process import printed_figures
from bench.quantize import requantized
from bench.random_model import random_model
from bench.servers import OPENVINO_PYTHON

RESULTS = results.FOLDER / "kernels.json"
PAGE = ROOT / "docs" / "benchmarks.md"
VARIANTS = (OURS, GGML, OPENVINO)

_TYPES = ("Q4_K_M", "Q4_0", "Q4_1", "Q8_0")
_BEGIN, _END = "<!-- bench.kernels -->\n", "<!-- end of bench.kernels -->\n"
# Tensor types that OpenVINO GenAI reads from GGUF files.
_OPENVINO_READS = {"F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"}


def _file(size: str, file_type: str) -> Path:
    """The default model (135M) or random weights (1B) in a file type. Writes the file if necessary."""
    source = resolve_model(Settings.model_construct())  # ignores the environment
    if size == "1B":
        source = random_model(source)
    return source if source.name.endswith(f".{file_type}.gguf") else requantized(source, file_type)


FILES: Mapping[str, Callable[[], Path]] = {
    f"{size}-{file_type}": functools.partial(_file, size, file_type)
    for size in ("135M", "1B")
    for file_type in _TYPES
}


def run(files: Mapping[str, Path], n_threads: int, n_rounds: int, n_steps: int) -> tuple[Rounds, list[str]]:
    """Measure all files, round by round. Returns the figures and the messages of failed measurements."""
    rounds: Rounds = {}
    failures = []
    for number in range(n_rounds):
        for name, path in files.items():
            turn = number % len(VARIANTS)
            for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                title = f"round {number + 1}: {name}, {variant}"
                if variant == OPENVINO and (unknown := _unknown_to_openvino(path)):
                    print(f"{title}: left out, OpenVINO reads no {unknown}", file=sys.stderr, flush=True)
                    continue
                print(title, file=sys.stderr, flush=True)
                try:
                    figures = measure(variant, path, n_threads, n_steps)
                except BenchError as error:
                    print(f"  failed: {error}", file=sys.stderr, flush=True)
                    failures.append(f"{title}: {error}")
                else:
                    rounds.setdefault(name, {}).setdefault(variant, []).append(figures)
    return rounds, failures


def measure(variant: str, path: Path, n_threads: int, n_steps: int) -> Figures:
    """Tokens/s of one file in a new process.

    Raises:
        BenchError: The process fails.
    """
    options = (str(path), str(n_threads), str(n_steps))
    if variant == OPENVINO:
        return printed_figures([str(OPENVINO_PYTHON), "-m", "bench.openvino.rates", *options])
    matmul = "ggml" if variant == GGML else "auto"
    return printed_figures([sys.executable, "-m", "bench.rates", *options, matmul])


@functools.cache
def _unknown_to_openvino(path: Path) -> str:
    """Tensor types of the file that OpenVINO GenAI does not read."""
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    return ", ".join(sorted(types - _OPENVINO_READS))


def _found(name: str) -> tuple[str, Path]:
    """Name in the results and path of a file that was named or given as a path."""
    return (name, FILES[name]()) if name in FILES else (Path(name).stem, Path(name))


def table(measured: Results) -> str:
    """All figures and ratios as a Markdown table."""
    lines = [
        "| file | tokens/s | Tokenstream | ggml | OpenVINO | to ggml | to OpenVINO |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file, variants in measured.items():
        for figure, title in KERNEL_FIGURES.items():
            rates = [variants[variant][figure] if variant in variants else None for variant in VARIANTS]
            ratios = [_ratio(rates[0], rate) for rate in rates[1:]]
            lines.append(f"| {' | '.join([file, title, *map(_rate, rates), *ratios])} |")
    return "\n".join(lines)


def _rate(rate: float | None) -> str:
    return "—" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "—" if ours is None or theirs is None else f"{ours / theirs:.2f} ×"


def write_page(measured: Results, page: Path) -> None:
    """Replace the table between the two comments of the page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    page.write_text(f"{before}{begin}{table(measured)}\n{end}{after}", encoding="utf-8")


def main() -> int:
    """Measure the selected files and return the exit status."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the running measurement
    n_threads = physical_cores()
    n_rounds, n_steps = (1, 16) if options.quick else (options.rounds, 64)
    try:
        files = dict(_found(name) for name in options.files)
        rounds, failures = run(files, n_threads, n_rounds, n_steps)
    except (BenchError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no results were stored", file=sys.stderr)
        return 128 + signal.SIGINT
    if not options.quick:
        results.record_rounds(rounds, RESULTS, n_threads, {}, {"steps": n_steps})
        write_page(results.read(RESULTS), PAGE)
    measured = medians_by_variant(rounds)
    print(table(measured), goals.table(measured), sep="\n\n")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--files",
        type=_files,
        default=[*FILES],
        metavar="NAME,NAME",
        help=f"one or more of 135M, 1B, {', '.join(FILES)}, or paths of GGUF files (default: all named ones)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (3)")
    parser.add_argument("--quick", action="store_true", help="one round of few steps, results not stored")
    return parser.parse_args()


def _files(text: str) -> list[str]:
    """Comma-separated names or paths. ``1B`` selects all names that start with ``1B-``."""
    chosen = []
    for part in text.split(","):
        found = [name for name in FILES if part == name or name.startswith(f"{part}-")]
        if not found and not Path(part).is_file():
            names = ", ".join(("135M", "1B", *FILES))
            raise argparse.ArgumentTypeError(f"{part!r}: should be a file or one of {names}")
        chosen += found or [part]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
