"""Simulation of many servers behind a load balancer: throughput, TTFT and cost by routing.

    .venv/bin/python -m bench.scaling

A server is simulated by its measured step times (docs/benchmarks.md). Requests have one of many contexts. A
server prefills a context unless it is among the last ones that it used. The routing by affinity is that of
`app.deploy.affinity`.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import simpy

from app.deploy.affinity import by_preference, chosen

ROUTINGS = ("random", "least loaded", "affinity")


@dataclass(frozen=True)
class Machine:
    """Measured speed of one server, and its price.

    Attributes:
        prefill: Prompt tokens per second.
        decode_1, decode_8: Tokens per second of one and of eight sequences together.
        slots: Sequences per step.
        cached_contexts: Contexts whose states fit the prefix cache.
        dollars: Price per hour.
        restart: Seconds from a failure until the server answers again, with an empty cache.
    """

    prefill: float
    decode_1: float
    decode_8: float
    slots: int = 8
    cached_contexts: int = 24
    dollars: float = 0.10
    restart: float = 10.0

    def step(self, n_running: int, n_prefilled: int) -> float:
        """Seconds of a step: linear between decode of 1 and decode of 8, plus its prompt tokens."""
        one, eight = 1 / self.decode_1, 8 / self.decode_8
        decode = one + (eight - one) * (n_running - 1) / 7 if n_running else 0.0
        return decode + n_prefilled / self.prefill


@dataclass(frozen=True)
class Traffic:
    """Requests.

    Attributes:
        rate: Requests per second and server.
        burstiness: Coefficient of variation of the times between arrivals; 1: Poisson.
        n_contexts: Number of contexts, used with Zipf's frequencies.
        context, question, answer: Tokens of a context; of a question; mean tokens of an answer.
        hours_to_failure: Mean time to failure of a server.
    """

    rate: float
    burstiness: float = 1.0
    n_contexts: int = 200
    context: int = 700
    question: int = 60
    answer: int = 100
    hours_to_failure: float = 24.0


@dataclass(eq=False)
class Request:
    """A request in the simulation."""

    context: int
    n_answer: int
    arrived_at: float
    to_prefill: int = 0
    n_generated: int = 0
    first_token_at: float | None = None


@dataclass
class Outcome:
    """Figures of a simulation. Times in seconds."""

    n_servers: int
    routing: str
    tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    hit_rate: float
    n_repeated: int
    dollars_per_million: float


# Prompt tokens of a step: a bound like the one that keeps the inter-token latency of a real server.
_PREFILL_PER_STEP = 128


@dataclass(eq=False)
class Server:
    """A server: a queue, slots and a cache of contexts."""

    name: str
    env: simpy.Environment
    machine: Machine
    traffic: Traffic
    on_lost: Callable[[Request], None]
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    is_up: bool = True
    n_hits: int = 0
    n_lookups: int = 0
    n_tokens: int = 0

    def __post_init__(self) -> None:
        self._wake = self.env.event()
        self.env.process(self._serve())

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    def submit(self, request: Request) -> None:
        self.waiting.append(request)
        if not self._wake.triggered:
            self._wake.succeed()

    def fail(self) -> Iterator[simpy.Event]:
        """Lose all requests and the cache, and restart."""
        lost = [*self.running, *self.waiting]
        self.running, self.is_up = [], False
        self.waiting.clear()
        self.cache.clear()
        for request in lost:
            self.on_lost(request)
        yield self.env.timeout(self.machine.restart)
        self.is_up = True

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.machine.slots:
            request = self.waiting.popleft()
            self.n_lookups += 1
            is_cached = request.context in self.cache
            self.n_hits += is_cached
            request.to_prefill = self.traffic.question + (0 if is_cached else self.traffic.context)
            self.cache[request.context] = None
            self.cache.move_to_end(request.context)
            while len(self.cache) > self.machine.cached_contexts:
                self.cache.popitem(last=False)
            self.running.append(request)

    def _serve(self) -> Iterator[simpy.Event]:
        while True:
            self._admit()
            if not self.running:
                self._wake = self.env.event()
                yield self._wake
                continue
            decoding = [request for request in self.running if not request.to_prefill]
            room = _PREFILL_PER_STEP
            for request in self.running:
                taken = min(room, request.to_prefill)
                request.to_prefill -= taken
                room -= taken
            done = [r for r in self.running if not r.to_prefill]  # decoding, or their last prompt token is in
            yield self.env.timeout(self.machine.step(len(decoding), _PREFILL_PER_STEP - room))
            for request in done:
                request.n_generated += 1
                request.first_token_at = request.first_token_at or self.env.now
            self.n_tokens += len(done)
            self.running = [r for r in self.running if r.n_generated < r.n_answer]


class Simulation:
    """A cluster with a router, a source of requests, and failures."""

    def __init__(self, n_servers: int, routing: str, machine: Machine, traffic: Traffic, seed: int) -> None:
        self.env = simpy.Environment()
        self.requests: list[Request] = []
        self.n_repeated = 0
        self._routing, self._traffic = routing, traffic
        self._random, self._router = random.Random(seed), random.Random(seed + 1)
        self.servers = [Server(f"s{i}", self.env, machine, traffic, self._repeat) for i in range(n_servers)]
        self._by_name = {server.name: server for server in self.servers}
        self._preferences: dict[int, list[str]] = {}
        self.env.process(self._arrive())
        self.env.process(self._break_down())

    def forget_figures(self) -> None:
        """Set the counters of all servers to zero."""
        for server in self.servers:
            server.n_hits = server.n_lookups = server.n_tokens = 0

    def _repeat(self, request: Request) -> None:
        self.n_repeated += 1
        request.n_generated = 0
        self._route(request)

    def _route(self, request: Request) -> None:
        up = [server for server in self.servers if server.is_up] or self.servers
        if self._routing == "random":
            server = self._router.choice(up)
        elif self._routing == "least loaded":
            server = min(self._router.sample(up, min(len(up), 2)), key=lambda one: one.load)
        else:
            server = self._near_prefix(request, up)
        server.submit(request)

    def _near_prefix(self, request: Request, up: list[Server]) -> Server:
        if request.context not in self._preferences:
            self._preferences[request.context] = by_preference(str(request.context), list(self._by_name))
        preferred = self._preferences[request.context]
        home = next((name for name in preferred if self._by_name[name].is_up), up[0].name)
        # The least loaded of a sample: of all would take too long with many servers.
        names = [home, *(server.name for server in self._router.sample(up, min(len(up), 16)))]
        loads = {name: self._by_name[name].load for name in names}
        return self._by_name[chosen(names, loads, slack=4)]

    def _arrive(self) -> Iterator[simpy.Event]:
        traffic, rng = self._traffic, self._random
        frequencies = list(itertools.accumulate(1 / (i + 1) for i in range(traffic.n_contexts)))
        mean = 1 / (traffic.rate * len(self.servers))
        shape = 1 / traffic.burstiness**2
        while True:
            yield self.env.timeout(rng.gammavariate(shape, mean / shape))
            (context,) = rng.choices(range(traffic.n_contexts), cum_weights=frequencies)
            length = 1 + min(int(rng.expovariate(1 / traffic.answer)), 20 * traffic.answer)
            self.requests.append(Request(context, length, self.env.now))
            self._route(self.requests[-1])

    def _break_down(self) -> Iterator[simpy.Event]:
        rate = len(self.servers) / (self._traffic.hours_to_failure * 3600)
        while True:
            yield self.env.timeout(self._random.expovariate(rate))
            server = self._random.choice(self.servers)
            if server.is_up:
                self.env.process(server.fail())


def simulate(
    n_servers: int, routing: str, machine: Machine, traffic: Traffic, n_requests: int = 150, seed: int = 0
) -> Outcome:
    """Simulate. The first half fills the caches; its TTFT and its prefix hits are not counted.

    Args:
        n_servers: Number of servers.
        routing: One of ROUTINGS.
        machine: Speed of each server.
        traffic: Requests.
        n_requests: Requests per server.
        seed: Of arrivals, contexts, lengths and failures.
    """
    seconds = n_requests / traffic.rate
    simulation = Simulation(n_servers, routing, machine, traffic, seed)
    simulation.env.run(until=seconds / 2)
    simulation.forget_figures()
    simulation.env.run(until=seconds)
    return _outcome(
        n_servers, routing, simulation.servers, simulation.requests, simulation.n_repeated, seconds
    )


def capacity(
    n_servers: int, routing: str, machine: Machine, traffic: Traffic, n_requests: int, longest: float
) -> Outcome:
    """The outcome at the highest rate with a TTFT p99 of at most ``longest`` seconds, by bisection."""
    low, high = 0.0, 8 / machine.slots * machine.decode_8 / traffic.answer
    best = None
    for _ in range(6):
        rate = (low + high) / 2
        outcome = simulate(n_servers, routing, machine, replace(traffic, rate=rate), n_requests)
        if outcome.ttft_p99 <= longest:
            low, best = rate, outcome
        else:
            high = rate
    return best or outcome


def _outcome(
    n_servers: int,
    routing: str,
    servers: Sequence[Server],
    requests: Sequence[Request],
    n_repeated: int,
    seconds: float,
) -> Outcome:
    # A request without a token counts with the time that it has waited.
    counted = [r for r in requests if r.arrived_at >= seconds / 2]
    ttft = sorted((r.first_token_at or seconds) - r.arrived_at for r in counted)
    speed = sum(server.n_tokens for server in servers) / (seconds / 2)
    hourly = servers[0].machine.dollars * n_servers
    return Outcome(
        n_servers,
        routing,
        tokens_per_second=speed,
        ttft_p50=ttft[len(ttft) // 2],
        ttft_p99=ttft[len(ttft) * 99 // 100],
        hit_rate=sum(s.n_hits for s in servers) / max(1, sum(s.n_lookups for s in servers)),
        n_repeated=n_repeated,
        dollars_per_million=hourly / (speed * 3600) * 1e6,
    )


# Medians of `make bench-kernels` on 2 cores of a Zen 4, 1B parameters, Q4_K_M. The price is an assumption.
MACHINE = Machine(prefill=266, decode_1=45.4, decode_8=160)
TRAFFIC = Traffic(rate=0.5)


COLUMNS = ("servers", "routing", "tokens/s", "TTFT p50, s", "TTFT p99, s", "prefix hits", "repeated", "$/M")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--rate", type=float, default=TRAFFIC.rate, help="requests per second and server")
    parser.add_argument("--longest-ttft", type=float, help="find the highest rate with this TTFT p99, in s")
    parser.add_argument("--burstiness", type=float, default=1.0)
    parser.add_argument("--dollars", type=float, default=MACHINE.dollars, help="price of a server per hour")
    parser.add_argument("--requests", type=int, default=150, help="requests per server")
    options = parser.parse_args()
    machine = replace(MACHINE, dollars=options.dollars)
    traffic = replace(TRAFFIC, rate=options.rate, burstiness=options.burstiness)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for n_servers, routing in itertools.product(options.servers, ROUTINGS):
        if n_servers == 1 and routing != "affinity":
            continue
        if options.longest_ttft is None:
            one = simulate(n_servers, routing, machine, traffic, options.requests)
        else:
            one = capacity(n_servers, routing, machine, traffic, options.requests, options.longest_ttft)
        cells = (
            f"{n_servers:,}",
            routing,
            f"{one.tokens_per_second:,.0f}",
            f"{one.ttft_p50:.2f}",
            f"{one.ttft_p99:.2f}",
            f"{one.hit_rate:.0%}",
            str(one.n_repeated),
            f"{one.dollars_per_million:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
