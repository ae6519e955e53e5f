"""A mix of loads, and the speed of an engine with each of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.engine.answer import EngineError
from app.engine.detokenizer import Detokenizer
from app.engine.engine import Engine
from app.engine.llama import Vocab
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler
from app.engine.sequence import AnswerSequence

Rates = Mapping[str, float]  # tokens per second by load

_SHORT_PROMPT = 16  # tokens
_WARM_UP = 64  # tokens


@dataclass(frozen=True, slots=True)
class Mix:
    """Sizes of the loads, in tokens.

    Attributes:
        prompt: Prompt of the load ``prefill``.
        alone: Answer of the load ``decode 1``.
        n_parallel: Requests of the other loads.
        parallel: Each of the answers of the load ``decode N``.
        prefix: New common prefix of the load ``shared prefix``.
        question: Each of its questions.
        reply: Each of its answers.
    """

    prompt: int = 512
    alone: int = 48
    n_parallel: int = 8
    parallel: int = 24
    prefix: int = 512
    question: int = 32
    reply: int = 8

    @property
    def longest(self) -> int:
        """Length of the longest request."""
        answer = _SHORT_PROMPT + max(self.alone, self.parallel)
        return max(self.prompt + 1, answer, self.prefix + self.question + self.reply, _WARM_UP)

    def shortened(self, divisor: int) -> Mix:
        """The same loads with fewer tokens, for a slow model."""

        def part(n_tokens: int) -> int:
            return max(2, n_tokens // divisor)

        return Mix(
            max(_WARM_UP, self.prompt // divisor),
            part(self.alone),
            self.n_parallel,
            part(self.parallel),
            max(_WARM_UP, self.prefix // divisor),
            part(self.question),
            part(self.reply),
        )

    def __str__(self) -> str:
        return (
            f"prefill of {self.prompt} tokens; decode of {self.alone} tokens alone, and of {self.parallel} "
            f"in {self.n_parallel} requests at once; {self.n_parallel} requests of {self.question} tokens "
            f"with answers of {self.reply} behind a new common prefix of {self.prefix}"
        )


def measure(engine: Engine, vocab: Vocab, mix: Mix) -> Rates:
    """Run the loads on a new engine, one after another.

    Prompts are random tokens, the same in each call. The order of the loads is fixed.

    Raises:
        EngineError: A request failed.
    """
    loads = _Loads(engine, vocab)
    loads.warm_up(mix.n_parallel)
    prefill = loads.seconds([loads.request(loads.tokens(mix.prompt), 1)])
    decode_alone = loads.decode_rate(1, mix.alone)
    decode_parallel = loads.decode_rate(mix.n_parallel, mix.parallel)
    prefix = loads.tokens(mix.prefix)
    requests = [loads.request(prefix + loads.tokens(mix.question), mix.reply) for _ in range(mix.n_parallel)]
    n_tokens = mix.prefix + mix.n_parallel * (mix.question + mix.reply)
    return {
        "prefill": mix.prompt / prefill,
        "decode 1": decode_alone,
        f"decode {mix.n_parallel}": decode_parallel,
        "shared prefix": n_tokens / loads.seconds(requests),
    }


class _Loads:
    """Requests to one engine."""

    def __init__(self, engine: Engine, vocab: Vocab) -> None:
        self._engine = engine
        self._vocab = vocab
        self._random = random.Random(0)
        control = set(vocab.control_tokens.values()) | vocab.end_of_generation
        self._plain = [token for token in range(vocab.n_tokens) if token not in control]

    def tokens(self, n: int) -> list[int]:
        return self._random.choices(self._plain, k=n)

    def request(self, prompt: list[int], n_tokens: int) -> AnswerSequence:
        params = SamplingParams(max_tokens=n_tokens, temperature=0, ignore_eos=True)
        sampler = make_sampler(params, self._vocab, prompt)
        return AnswerSequence(prompt, params, sampler, Detokenizer(self._vocab))

    def warm_up(self, n_parallel: int) -> None:
        """Read all memory once, and let the engine learn the time of a step."""
        for _ in range(2):
            self.seconds([self.request(self.tokens(_WARM_UP - 2), 2)])
        self.decode_rate(n_parallel, 2)

    def decode_rate(self, n_requests: int, n_tokens: int) -> float:
        """Tokens per second after the first tokens of all answers. Each has ``n_tokens`` more."""
        requests = [self.request(self.tokens(_SHORT_PROMPT), n_tokens + 1) for _ in range(n_requests)]
        self._add(requests)
        self._step_until(lambda: all(request.n_generated for request in requests))
        before = sum(request.n_generated for request in requests)
        started = time.perf_counter()
        self._step_until(lambda: self._engine.is_idle)
        after = sum(request.n_generated for request in requests)
        return (after - before) / (time.perf_counter() - started)

    def seconds(self, requests: Sequence[AnswerSequence]) -> float:
        """Time from the arrival of all requests to their ends."""
        started = time.perf_counter()
        self._add(requests)
        self._step_until(lambda: self._engine.is_idle)
        return time.perf_counter() - started

    def _add(self, requests: Sequence[AnswerSequence]) -> None:
        for request in requests:
            self._engine.add(request)

    def _step_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self._engine.step()
            for _, result in self._engine.take_results()[0]:
                if isinstance(result, EngineError):
                    raise result
