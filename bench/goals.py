"""Goals of the benchmark: one row per goal with the measured figure and its reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.load import Figures

# Names of the variants in the results.
OURS = "tokenstream"
NO_SPECULATION = "tokenstream-nospec"
PEER = "llama-server"
PEER_FLASH_OFF = "llama-server-nofa"
PIP_PEER = "llama-server-pip"
OPENVINO = "openvino"
GGML = "tokenstream-ggml"  # without the matrix kernels of native/
BARE = "bare"

_NAMES = {OPENVINO: "OpenVINO", GGML: "ggml"}

# Figures of the bench of kernels, in tokens/s.
KERNEL_FIGURES = {
    "prefill": "prefill of 512 tokens",
    "rate_of_1": "decode of 1",
    "rate_of_8": "decode of 8",
}

# Medians over the rounds, by workload and variant. In the bench of kernels a workload is a model file.
Results = Mapping[str, Mapping[str, Figures]]


@dataclass(frozen=True)
class Row:
    """A goal with its measured figures.

    Attributes:
        goal: Load and name of the figure.
        ours: Figure of Tokenstream.
        theirs: Reference figure.
        beside: Origin of the reference figure.
        compared: Compared value, usually the ratio of the two.
        unit: Unit of ``compared``.
        wanted: Bound of ``compared``.
        at_least: Whether ``wanted`` is a lower bound.
    """

    goal: str
    ours: float
    theirs: float
    beside: str
    compared: float
    wanted: float
    at_least: bool = True
    unit: str = "×"

    @property
    def is_reached(self) -> bool:
        return self.compared >= self.wanted if self.at_least else self.compared <= self.wanted

    def __str__(self) -> str:
        """The goal as a row of a Markdown table."""
        cells = [
            self.goal,
            _figure(self.ours),
            f"{_figure(self.theirs)} ({self.beside})",
            f"{self.compared:.2f} {self.unit}",
            f"{'≥' if self.at_least else '≤'} {self.wanted:g} {self.unit}",
            "yes" if self.is_reached else "no",
        ]
        return f"| {' | '.join(cells)} |"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def to_peer(
    goal: str, workload: str, figure: str, wanted: float, *, at_least: bool = True
) -> Callable[[Results], Row]:
    """Goal for the ratio to the better figure of llama-server's variants."""

    def row(results: Results) -> Row:
        ours = results[workload][OURS][figure]
        variants = results[workload]
        peers = [variants[PEER][figure]]
        if PEER_FLASH_OFF in variants:  # may be left out
            peers.append(variants[PEER_FLASH_OFF][figure])
        best = max(peers) if at_least else min(peers)
        return Row(goal, ours, best, "llama-server", ours / best, wanted, at_least)

    return row


def to_best(
    goal: str, workload: str, figure: str, wanted: float, *variants: str, at_least: bool = True
) -> Callable[[Results], Row]:
    """Goal for the ratio to the best figure of ``variants``."""

    def row(results: Results) -> Row:
        ours = results[workload][OURS][figure]
        figures = {variant: results[workload][variant][figure] for variant in variants}
        best = max(figures, key=figures.__getitem__) if at_least else min(figures, key=figures.__getitem__)
        return Row(goal, ours, figures[best], _NAMES[best], ours / figures[best], wanted, at_least)

    return row


def _copy(results: Results) -> Row:
    ours, without = (results["copy"][name]["decode_rate"] for name in (OURS, NO_SPECULATION))
    return Row("copy, 1 at once: decode tokens/s", ours, without, "speculation off", ours / without, 1.8)


# The figure of each workload that speculation must not reduce.
_SPEED = {
    **dict.fromkeys((f"unique-{n}" for n in (1, 4, 8, 16)), "tokens_per_second"),
    "shared": "warm_tokens_per_second",
    "contexts": "tokens_per_second",
    "long": "all_tokens_per_second",
    "chat": "tokens_per_second",
    "several": "tokens_per_second",
}


def _least_gain_by_speculation(results: Results) -> Row:
    pairs = [
        (variants[OURS][_SPEED[workload]], variants[NO_SPECULATION][_SPEED[workload]], workload)
        for workload, variants in results.items()
        if workload in _SPEED
    ]
    if not pairs:
        raise KeyError(NO_SPECULATION)
    ours, without, workload = min(pairs, key=lambda pair: pair[0] / pair[1])
    goal = f"least gain by speculation ({workload}): tokens/s"
    return Row(goal, ours, without, "speculation off", ours / without, 0.97)


def _bare(results: Results) -> Row:
    ours, bare = (results["decode"][name]["rate_of_8"] for name in (OURS, BARE))
    return Row("decode of 8, streamed: tokens/s", ours, bare, "bare loop", ours / bare, 0.92)


def _prefill_of_decisions(results: Results) -> Row:
    ours, bare = (results["decide"][name]["prefill"] for name in (OURS, BARE))
    goal = "16 questions, new state: prompt tokens/s"
    return Row(goal, ours, bare, "bare loop", ours / bare, 0.8)


def _decisions_on_a_known_state(results: Results) -> Row:
    figures = results["decide"][OURS]
    again, first = figures["again_per_second"], figures["first_per_second"]
    return Row("16 questions, known state: decisions/s", again, first, "new state", again / first, 1.5)


def _decisions_beside_streams(results: Results) -> Row:
    ours, prompts = (results[name][OURS]["gap_p99"] for name in ("decide-beside", "long"))
    goal = "decisions among 6 streams: inter-token p99 in ms"
    return Row(goal, ours, prompts, "long prompts", ours / prompts, 1.1, at_least=False)


def _memory(results: Results) -> Row:
    ours = results["memory"][OURS]["after_mb"]
    peer = min(results["memory"][name]["after_mb"] for name in (PEER, PEER_FLASH_OFF))
    return Row("resident memory: MB", ours, peer, "llama-server", ours - peer, 80, at_least=False, unit="MB")


def _restart(results: Results) -> Row:
    figures = results["restart"][OURS]
    restarted, warm = figures["restarted_ttft"], figures["warm_ttft"]
    goal = "first request after a restart: TTFT in ms"
    return Row(goal, restarted, warm, "warm", restarted / warm, 1.5, at_least=False)


def _idle(results: Results) -> Row:
    ours, peer = (100 * results["idle"][name]["core_share"] for name in (OURS, PEER))
    return Row("idle: percent of one core", ours, peer, "llama-server", ours, 1, at_least=False, unit="%")


# Over HTTP, with the matrix kernels of native/: to OpenVINO, and to ggml's kernels in the same server.
_SERVED = (
    to_best("distinct prompts, 8 at once: tokens/s", "unique-8", "tokens_per_second", 1.3, OPENVINO),
    to_best("burst on a new prefix: tokens/s", "shared", "cold_tokens_per_second", 1.6, OPENVINO),
    to_best("the same prefix, warm: tokens/s", "shared", "warm_tokens_per_second", 1.5, OPENVINO),
    to_best("six contexts, fresh start: tokens/s", "contexts", "tokens_per_second", 2.0, OPENVINO),
    to_best("chat: TTFT p50 of turns 2 to 5 in ms", "chat", "later_ttft_p50", 0.7, OPENVINO, at_least=False),
    to_best("distinct prompts, 8 at once: tokens/s", "unique-8", "tokens_per_second", 1.6, GGML),
    to_best("burst on a new prefix: tokens/s", "shared", "cold_tokens_per_second", 1.6, GGML),
    to_best("six contexts, fresh start: tokens/s", "contexts", "tokens_per_second", 1.6, GGML),
    to_best("resident memory: MB", "memory", "after_mb", 1.0, GGML, at_least=False),
)


def _kernel(file: str, figure: str, wanted: float, *variants: str) -> Callable[[Results], Row]:
    return to_best(f"{file}, {KERNEL_FIGURES[figure]}: tokens/s", file, figure, wanted, *variants)


def _small_q4_k_m(figure: str, wanted: float) -> Callable[[Results], Row]:
    """Goal for the small Q4_K_M file, which OpenVINO does not read. It is compared with OpenVINO's Q4_1."""

    def row(results: Results) -> Row:
        file = "135M-Q4_K_M"
        ours, theirs = results[file][OURS][figure], results["135M-Q4_1"][OPENVINO][figure]
        goal = f"{file}, {KERNEL_FIGURES[figure]}: tokens/s"
        return Row(goal, ours, theirs, "OpenVINO with Q4_1", ours / theirs, wanted)

    return row


# Without HTTP, by model file.
_KERNELS = (
    *(_kernel(f"135M-{type}", "prefill", 1.3, OPENVINO) for type in ("Q4_1", "Q8_0", "Q4_0")),
    _small_q4_k_m("prefill", 1.3),
    _kernel("135M-Q4_1", "prefill", 6.9, GGML),
    _kernel("135M-Q4_K_M", "prefill", 3.6, GGML),
    _kernel("135M-Q8_0", "prefill", 3.5, GGML),
    _kernel("135M-Q4_0", "prefill", 2.6, GGML),
    *(_kernel(f"135M-{type}", "rate_of_8", 1.5, OPENVINO) for type in ("Q4_1", "Q8_0", "Q4_0")),
    _small_q4_k_m("rate_of_8", 1.5),
    _kernel("135M-Q4_1", "rate_of_1", 1.3, GGML),
    *(_kernel(f"135M-{type}", "rate_of_1", 1.0, GGML) for type in ("Q4_K_M", "Q8_0", "Q4_0")),
    *(_kernel(f"1B-{type}", "prefill", 1.25, GGML, OPENVINO) for type in ("Q4_K_M", "Q4_0", "Q8_0")),
    *(_kernel(f"1B-{type}", "rate_of_8", 2.0, GGML, OPENVINO) for type in ("Q4_K_M", "Q4_0", "Q8_0")),
    *(_kernel(f"1B-{type}", "rate_of_1", 1.2, GGML, OPENVINO) for type in ("Q4_K_M", "Q4_0")),
    _kernel("1B-Q8_0", "rate_of_1", 1.0, GGML, OPENVINO),
)

GOALS: tuple[Callable[[Results], Row], ...] = (
    to_peer("burst on a new prefix: tokens/s", "shared", "cold_tokens_per_second", 2.2),
    to_peer("burst on a new prefix: TTFT p99 in ms", "shared", "cold_ttft_p99", 0.25, at_least=False),
    to_peer("the same prefix, warm: tokens/s", "shared", "warm_tokens_per_second", 1.2),
    to_peer("six contexts, fresh start: tokens/s", "contexts", "tokens_per_second", 2.5),
    to_peer("six contexts, fresh start: TTFT p99 in ms", "contexts", "ttft_p99", 0.2, at_least=False),
    to_peer("distinct prompts, 1 at once: tokens/s", "unique-1", "tokens_per_second", 1.0),
    to_peer("distinct prompts, 8 at once: tokens/s", "unique-8", "tokens_per_second", 1.0),
    to_peer("distinct prompts, 16 at once: tokens/s", "unique-16", "tokens_per_second", 1.0),
    to_peer("long prompts among 6 streams: inter-token p99 in ms", "long", "gap_p99", 0.1, at_least=False),
    to_peer("long prompts: prompt + generated tokens/s", "long", "all_tokens_per_second", 0.95),
    _copy,
    _least_gain_by_speculation,
    to_peer("chat: TTFT p50 of turns 2 to 5 in ms", "chat", "later_ttft_p50", 0.7, at_least=False),
    to_peer("one prompt, 8 answers: tokens/s", "several", "tokens_per_second", 2.0),
    _bare,
    _prefill_of_decisions,
    to_peer("16 questions, new state: decisions/s", "decide", "first_per_second", 3.0),
    _decisions_on_a_known_state,
    _decisions_beside_streams,
    to_peer("texts in a context: classes/s", "classify", "per_second", 4.0),
    _memory,
    _restart,
    _idle,
    *_SERVED,
    *_KERNELS,
)


def rows(results: Results) -> Iterator[Row]:
    """The rows of all goals for which results exist."""
    for goal in GOALS:
        with contextlib.suppress(KeyError):
            yield goal(results)


def table(results: Results) -> str:
    """All rows as a Markdown table."""
    head = (
        "| goal | Tokenstream | reference | ratio | target | reached |\n| --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *map(str, rows(results))])


def figures_table(results: Results) -> str:
    """All figures of all variants as a Markdown table."""
    lines = ["| workload | server | figures |", "| --- | --- | --- |"]
    for workload, variants in results.items():
        for variant, figures in variants.items():
            listed = ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
            lines.append(f"| {workload} | {variant} | {listed} |")
    return "\n".join(lines)
