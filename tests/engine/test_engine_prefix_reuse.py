"""Answers after a cached prefix equal those after a prefill of the whole prompt.

With the kernels of native/ they are equal. ggml's kernels round batches of other shapes differently, so
logits differ in their last digits. Then two texts may diverge where the logits of both tokens differ by less
than NEAR_TIE.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.cache.state_files import StateFiles
from app.engine.engine import EngineOptions
from app.engine.llama import Batch, Context, Logits, Model, attention_calls, matmul_calls
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import TokenSampler
from tests.engine.conftest import Reports

pytestmark = pytest.mark.anyio

# Maximum difference of the logits of two tokens where texts may diverge.
NEAR_TIE = 0.5

FACTS = " ".join(
    f"The colour of house {n} is {colour}." for n, colour in enumerate(["red", "blue", "green"] * 8)
)

Check = Callable[..., None]
MakeEngine = Callable[..., AbstractAsyncContextManager[AsyncEngine]]


@pytest.fixture
def make_engine(model: Model) -> MakeEngine:
    @asynccontextmanager
    async def make(reports: Reports | None = None, **options: object) -> AsyncIterator[AsyncEngine]:
        defaults = {"n_ctx": 4096, "max_sequences": 4, "n_threads": 1, "speculation": False}
        engine = AsyncEngine(model, EngineOptions(**(defaults | options)), reports)  # type: ignore[arg-type]
        engine.start()
        try:
            yield engine
        finally:
            await engine.close()

    return make


def prompt(engine: AsyncEngine, question: str, facts: str = FACTS) -> list[int]:
    text = (
        f"<|im_start|>system\n{facts}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    return engine.vocab.tokenize(text, parse_special=True)


async def generate(
    engine: AsyncEngine, tokens: list[int], n: int = 24, **params: object
) -> tuple[list[int], int]:
    """The tokens of the answer, and the number of cached prompt tokens."""
    sampling = {"temperature": 0.0, "max_tokens": n, "ignore_eos": True} | params
    answer = engine.submit(tokens, SamplingParams(**sampling))  # type: ignore[arg-type]
    return [output.token async for output in answer], answer.n_cached


def penalize(
    logits: Logits,
    prompt: list[int],
    answer: list[int],
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> None:
    for token in {*[*prompt, *answer][-SamplingParams().repeat_last_n :]}:
        logits[token] *= 1 / repetition_penalty if logits[token] > 0 else repetition_penalty
    for token in {*answer}:
        logits[token] -= presence_penalty + frequency_penalty * answer.count(token)


@pytest.fixture
def assert_equal(model: Model) -> Check:
    """Fail unless two answers are equal; with ggml's kernels, they may diverge at nearly equal logits."""

    def check(tokens: list[int], first: list[int], second: list[int], **params: Any) -> None:
        assert len(first) == len(second)
        at = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)
        if at is None:
            return
        assert attention_calls() is None or not matmul_calls(), f"texts differ at token {at}"
        text = tokens + first[:at]
        context = Context(model, n_ctx=2048, n_sequences=1, n_batch=2048, n_threads=1)
        batch = Batch(2048)
        batch.add(text, 0, 0, n_outputs=1)
        context.decode(batch)
        logits = context.logits[0].copy()
        penalize(logits, tokens, first[:at], **params)
        gap = abs(float(logits[first[at]] - logits[second[at]]))
        best = float(np.max(logits) - max(logits[first[at]], logits[second[at]]))
        context.close()
        assert gap < NEAR_TIE, f"texts differ at token {at}, where the logits differ by {gap}"
        assert best < NEAR_TIE, (
            f"texts differ at token {at}, and the logit of another token is higher by {best}"
        )

    return check


QUESTIONS = ["What colour is house 3?", "Which houses are blue?", "Write a poem about house 7."]


@pytest.mark.parametrize(
    "params",
    [{}, {"repetition_penalty": 1.2}, {"presence_penalty": 1.0, "frequency_penalty": 0.5}],
    ids=["greedy", "repetition", "presence"],
)
@pytest.mark.slow
async def test_answers_are_equal_with_and_without_a_cached_prefix(
    make_engine: MakeEngine,
    assert_equal: Check,
    params: dict[str, object],
) -> None:
    alone = []
    for question in QUESTIONS:
        async with make_engine() as engine:
            tokens, n_cached = await generate(engine, prompt(engine, question), **params)
            assert n_cached == 0
            alone.append(tokens)
    async with make_engine() as engine:
        await generate(engine, prompt(engine, "Hello!"), n=2)
        prompts = [prompt(engine, question) for question in QUESTIONS]
        one_by_one = [await generate(engine, tokens, **params) for tokens in prompts]
        together = await asyncio.gather(*(generate(engine, tokens, **params) for tokens in prompts))
        for tokens, expected, *results in zip(prompts, alone, one_by_one, together, strict=True):
            for result, n_cached in results:
                assert n_cached > 200
                assert_equal(tokens, expected, result, **params)


async def test_logits_are_equal_with_and_without_a_cached_prefix(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled texts cannot be compared: a change in the order of two tokens changes the sample of a seed."""
    recorded = []
    sample = TokenSampler.sample

    def record(sampler: TokenSampler, logits: Logits) -> int:
        recorded.append(logits.copy())
        return sample(sampler, logits)

    monkeypatch.setattr(TokenSampler, "sample", record)
    async with make_engine() as engine:
        tokens = prompt(engine, QUESTIONS[0])
        for n_cached in (0, len(tokens) - 1):
            assert (await generate(engine, tokens, n=1, temperature=1.0))[1] == n_cached
    assert np.abs(recorded[0] - recorded[1]).max() < 1.0
    assert np.corrcoef(recorded[0], recorded[1])[0, 1] > 0.999


async def test_concurrent_requests_prefill_a_shared_prefix_once(
    make_engine: MakeEngine, reports: Reports
) -> None:
    async with make_engine(reports) as engine:
        prompts = [prompt(engine, f"What colour is house {n}?") for n in range(10)]
        await asyncio.gather(*(generate(engine, tokens, n=4) for tokens in prompts))
        n_shared = len(list(itertools.takewhile(lambda t: len(set(t)) == 1, zip(*prompts, strict=False))))
        assert n_shared > 200
        assert reports.prompt_tokens == n_shared + sum(len(tokens) - n_shared for tokens in prompts)
        assert reports.prompt_tokens + reports.cached_tokens == sum(map(len, prompts))


@pytest.mark.slow
async def test_a_conversation_is_cached_after_other_requests_used_its_slot(
    make_engine: MakeEngine, assert_equal: Check
) -> None:
    async with make_engine(max_sequences=1, n_ctx=1024) as engine:
        first = prompt(engine, "Tell me about house 2.")
        answer, _ = await generate(engine, first)
        await generate(
            engine, prompt(engine, "Who are you?", "You are a cook, and nothing else matters to you.")
        )
        following = [*first, *answer, *engine.vocab.tokenize(" And what about house 3?", parse_special=True)]
        cached_answer, n_cached = await generate(engine, following)
        assert n_cached >= len(first) + len(answer) - 1
    async with make_engine(max_sequences=1, n_ctx=1024) as engine:
        uncached_answer, n_cached = await generate(engine, following)
        assert n_cached == 0
    assert_equal(following, uncached_answer, cached_answer)


async def test_without_a_budget_no_state_is_saved(make_engine: MakeEngine) -> None:
    async with make_engine(max_sequences=1, n_ctx=1024, prefix_bytes=0) as engine:
        await generate(engine, prompt(engine, "Hello!"), n=2)
        await generate(engine, prompt(engine, "Hi!", "You are a cook, and nothing else matters to you."), n=2)
        _, n_cached = await generate(engine, prompt(engine, "Hello!"), n=2)
        assert n_cached < 10
        assert engine._core._cache.figures.n_bytes == 0


def flip_a_bit(folder: Path) -> None:
    [path] = folder.glob("*.kv")
    content = bytearray(path.read_bytes())
    content[-5000] ^= 0x10
    path.write_bytes(content)


class TestContexts:
    async def test_a_warm_context_is_not_prefilled_again(
        self, make_engine: MakeEngine, reports: Reports
    ) -> None:
        async with make_engine(reports) as engine:
            context = prompt(engine, "x")[:200]
            assert await engine.warm(context) == 200
            assert await engine.warm(context) <= 1
            _, n_cached = await generate(engine, prompt(engine, "What colour is house 3?"), n=2)
            assert n_cached == 200

    async def test_a_context_is_loaded_after_a_restart(
        self,
        make_engine: MakeEngine,
        assert_equal: Check,
        tmp_path: Path,
    ) -> None:
        answers = []
        for expected in (200, 0):
            states = StateFiles(tmp_path, {"model": "this one"}, max_bytes=1 << 30)
            async with make_engine(states=states) as engine:
                tokens = prompt(engine, "What colour is house 3?")
                assert await engine.warm(tokens[:200]) == expected
                answer, n_cached = await generate(engine, tokens)
                assert n_cached == 200
                answers.append(answer)
        assert_equal(tokens, *answers)

    async def test_a_damaged_file_is_replaced(
        self, make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for damage in (True, False):
            states = StateFiles(tmp_path, {"model": "this one"}, max_bytes=1 << 30)
            async with make_engine(states=states) as engine:
                await engine.warm(prompt(engine, "x")[:200])
            if damage:
                flip_a_bit(tmp_path)
        assert "damaged, its checksum does not match" in caplog.text
        states = StateFiles(tmp_path, {"model": "this one"}, max_bytes=1 << 30)
        async with make_engine(states=states) as engine:
            assert await engine.warm(prompt(engine, "x")[:200]) == 0


class TestSpeculation:
    COPY = "Repeat this exactly, again and again: one two three four five six seven eight nine ten"

    @pytest.mark.slow
    async def test_drafts_reduce_the_number_of_steps_and_keep_the_text(
        self,
        make_engine: MakeEngine,
        assert_equal: Check,
        reports: Reports,
    ) -> None:
        async with make_engine() as engine:
            tokens = prompt(engine, self.COPY)
            without_drafts, _ = await generate(engine, tokens, n=96)
        async with make_engine(reports, speculation=True) as engine:
            with_drafts, _ = await generate(engine, tokens, n=96)
        assert_equal(tokens, without_drafts, with_drafts)
        n_accepted = sum(report.accepted_tokens for report in reports.all)
        n_steps = sum(1 for report in reports.all if report.generated_tokens)
        assert n_steps == 96 - n_accepted
        assert n_steps < 72  # the number of accepted tokens depends on the CPU

    @pytest.mark.slow
    async def test_drafts_keep_sampled_texts(self, make_engine: MakeEngine) -> None:
        """Equal seeds give equal random numbers for equal logits, with and without drafts."""
        results = []
        for speculation in (False, True):
            async with make_engine(speculation=speculation) as engine:
                tokens = prompt(engine, self.COPY)
                params = {"temperature": 0.6, "repetition_penalty": 1.0}
                results.append(
                    [(await generate(engine, tokens, n=32, seed=seed, **params))[0] for seed in range(4)]
                )
        assert sum(a == b for a, b in zip(*results, strict=True)) >= 3

    @pytest.mark.slow
    async def test_an_end_within_a_draft_leaves_memory_consistent(self, make_engine: MakeEngine) -> None:
        async with make_engine(speculation=True) as engine:
            tokens = prompt(engine, self.COPY)
            whole, _ = await generate(engine, tokens, n=60)
            for n in (17, 23, 31, 38):
                part, _ = await generate(engine, tokens, n=n)
                assert len(part) == n
            assert (await generate(engine, tokens, n=60))[0][:12] == whole[:12]
            for resident in engine._core._cache._residents.values():
                assert engine._core._context.sequence_length(resident.slot) == resident.n_computed
