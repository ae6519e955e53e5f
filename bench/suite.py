"""Workloads with their variants, and the rounds that run them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench import decisions, workloads
from bench.client import BenchError
from bench.goals import BARE, GGML, NO_SPECULATION, OPENVINO, OURS, PEER, PEER_FLASH_OFF, PIP_PEER
from bench.load import Figures, Rounds, Scale, medians_by_variant
from bench.peer import Peer
from bench.process import printed_figures
from bench.prompts import PLAIN, Context, Prompts, Texts
from bench.servers import LlamaServer, OpenVINO, Server, Setup, Tokenstream

_ALL = (OURS, NO_SPECULATION, PEER, PEER_FLASH_OFF, OPENVINO)


@dataclass(frozen=True)
class Workload:
    """A load, its variants, and options of their servers. ``bare``: arguments of ``bench.bare``."""

    run: Callable[[Server, Texts, Scale], Coroutine[Any, Any, Figures]]
    variants: tuple[str, ...] = _ALL
    contexts: Callable[[Prompts], tuple[Context, ...]] = lambda _: (PLAIN,)
    keep_prefixes: bool = True
    bare: Callable[[Path, int], tuple[object, ...]] = lambda model, n_threads: ("decode", model, n_threads)


WORKLOADS = {
    "unique-1": Workload(workloads.unique(1)),
    "unique-4": Workload(workloads.unique(4)),
    "unique-8": Workload(workloads.unique(8), (*_ALL, GGML, PIP_PEER)),
    "unique-16": Workload(workloads.unique(16)),
    "shared": Workload(workloads.shared, (*_ALL, GGML, PIP_PEER)),
    "contexts": Workload(workloads.contexts, (*_ALL, GGML), contexts=workloads.topics),
    "long": Workload(workloads.long),
    "copy": Workload(workloads.copy),
    "chat": Workload(workloads.chat),
    "several": Workload(workloads.several),
    "decode": Workload(workloads.decode, (OURS, BARE)),
    "decide": Workload(
        decisions.decide,
        (OURS, PEER, PEER_FLASH_OFF, BARE),
        bare=lambda model, n_threads: ("prefill", model, n_threads, decisions.PREFILLED),
    ),
    "decide-beside": Workload(workloads.decide_beside, (OURS,)),
    "classify": Workload(decisions.classify, (OURS, PEER, PEER_FLASH_OFF), contexts=decisions.classes),
    "memory": Workload(workloads.memory, (OURS, GGML, PEER, PEER_FLASH_OFF, OPENVINO), keep_prefixes=False),
    "restart": Workload(workloads.restart, (OURS,), contexts=workloads.topics),
    "idle": Workload(workloads.idle, (OURS, PEER)),
}


@dataclass
class Suite:
    """One run of workloads on a model.

    Attributes:
        model: Path of the GGUF file.
        n_threads: Number of compute threads of every server.
        scale: Share of each load.
        peers: Builds of llama-server by name.
        rounds: Figures of each round, by workload and variant.
        failures: Error messages of failed measurements.
    """

    model: Path
    n_threads: int
    scale: Scale
    peers: Mapping[str, Peer]
    rounds: Rounds = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def run(self, names: Iterable[str], variants: Iterable[str], n_rounds: int) -> None:
        """Run each workload on the selected variants that it has, round by round."""
        wanted = set(variants)
        prompts = Prompts(self.model)
        try:
            for number in range(n_rounds):
                for name in names:
                    order = [variant for variant in WORKLOADS[name].variants if variant in wanted]
                    turn = number % len(order) if order else 0
                    for variant in (*order[turn:], *order[:turn]):
                        self._measure(name, variant, number, prompts)
        finally:
            prompts.close()

    def _measure(self, name: str, variant: str, number: int, prompts: Prompts) -> None:
        title = f"round {number + 1}: {name}, {variant}"
        print(title, file=sys.stderr, flush=True)
        try:
            if variant == BARE:
                figures = self._bare(WORKLOADS[name])
            else:
                figures = self._served(WORKLOADS[name], variant, Texts(prompts, f"{name} {number}"), prompts)
        except BenchError as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            self.failures.append(f"{title}: {error}")
            return
        self.rounds.setdefault(name, {}).setdefault(variant, []).append(figures)

    def _bare(self, workload: Workload) -> Figures:
        arguments = map(str, workload.bare(self.model, self.n_threads))
        return printed_figures([sys.executable, "-m", "bench.bare", *arguments])

    def _served(self, workload: Workload, variant: str, texts: Texts, prompts: Prompts) -> Figures:
        """Run a workload on a new server process."""
        with tempfile.TemporaryDirectory(prefix="tokenstream-bench-") as scratch:
            setup = Setup(
                model=self.model,
                prompts=prompts,
                contexts=workload.contexts(prompts),
                scratch=Path(scratch),
                n_threads=self.n_threads,
                keep_prefixes=workload.keep_prefixes,
            )
            server = self._server(variant, setup)
            server.start()
            try:
                figures = uvloop.run(workload.run(server, texts, self.scale))
                server.check()
            finally:
                server.stop()
            return figures

    def _server(self, variant: str, setup: Setup) -> Server:
        if variant == OURS:
            return Tokenstream(setup)
        if variant == NO_SPECULATION:
            return Tokenstream(setup, SPECULATION="off")
        if variant == GGML:
            return Tokenstream(setup, MATMUL="ggml")
        if variant == OPENVINO:
            return OpenVINO(setup)
        peer = self.peers["pip" if variant == PIP_PEER else "same"]
        return LlamaServer(setup, peer.server, *(("-fa", "off") if variant == PEER_FLASH_OFF else ()))

    @property
    def results(self) -> dict[str, dict[str, Figures]]:
        """Medians over the rounds, by workload and variant."""
        return medians_by_variant(self.rounds)
