"""Answers with LoRA adapters of the default model, beside answers of the model alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.engine.answer import Output
from app.engine.async_engine import AsyncEngine
from app.engine.cache.state_files import StateFiles
from app.engine.engine import EngineOptions
from app.engine.llama import KVOptions, Model
from app.engine.sampling.params import SamplingParams
from app.engine.scoring import Question
from tests.conftest import MODEL
from tests.engine.conftest import Reports
from tests.engine.engine_calls import assert_equal_up_to_near_ties, chat
from tests.lora_adapters import write_adapter

pytestmark = pytest.mark.anyio

ADAPTERS = ["", "strong", "none", "other"]
TEXT = "Write a short story about a lighthouse keeper and the sea."


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("adapters")
    model = Model(MODEL)
    model.load_adapter("strong", write_adapter(folder / "strong.gguf"), 0.9)
    model.load_adapter("none", write_adapter(folder / "none.gguf", strength=0))
    model.load_adapter("other", write_adapter(folder / "other.gguf", seed=2, is_f16=False))
    yield model
    model.close()


def options(states: StateFiles | None = None) -> EngineOptions:
    return EngineOptions(n_ctx=2048, max_sequences=4, n_threads=1, kv=KVOptions(True, "q8_0"), states=states)


@pytest.fixture
async def engine(adapted: Model, reports: Reports) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(adapted, options(), reports)
    engine.start()
    yield engine
    await engine.close()


async def outputs(engine: AsyncEngine, adapter: str, text: str = TEXT) -> list[Output]:
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=5)
    return [output async for output in engine.submit(chat(engine, text), params, adapter=adapter)]


def tokens(answer: list[Output]) -> list[int]:
    return [output.token for output in answer]


async def test_answers_with_adapters_are_the_same_alone_and_among_others(
    engine: AsyncEngine, reports: Reports
) -> None:
    together = await asyncio.gather(*(outputs(engine, adapter) for adapter in ADAPTERS))
    assert reports.cached_tokens == 0, "an adapter has the prefix of another"
    assert max(report.n_sequences for report in reports.all) == 4, "all run at once"
    base, strong, none, other = map(tokens, together)
    assert none == base
    assert len({tuple(base), tuple(strong), tuple(other)}) == 3
    for adapter, answer in zip(ADAPTERS, together, strict=True):
        # ggml computes the products of adapters: one row rounds differently from several.
        assert_equal_up_to_near_ties(answer, await outputs(engine, adapter))
    assert reports.cached_tokens > 0


async def test_options_are_scored_with_the_adapter(engine: AsyncEngine) -> None:
    prompt, question = chat(engine, TEXT), Question((28,), ((10,), (11, 12)))
    base, strong, none = [
        (await engine.score(prompt, [question], adapter=adapter)).logprobs for adapter in ADAPTERS[:3]
    ]
    assert base == none
    assert np.abs(np.subtract(base, strong)).min() > 0.01


async def test_an_unknown_adapter_is_rejected(engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match=r"'absent' should be one of strong, none, other"):
        await outputs(engine, "absent")


async def test_states_on_disk_are_of_one_adapter_and_scale(adapted: Model, tmp_path: Path) -> None:
    async def warm(identities: dict[str, str], adapter: str) -> int:
        states = StateFiles(tmp_path, {"model": "smollm2"}, max_bytes=1 << 30, adapters=identities)
        engine = AsyncEngine(adapted, options(states))
        engine.start()
        try:
            prefix = chat(engine, TEXT)
            n_computed = await engine.warm(prefix, adapter)
            # The state is used in RAM by prompts of its adapter only.
            params = SamplingParams(temperature=0.0, max_tokens=1)
            for name in ("", "strong", "other"):
                answer = engine.submit([*prefix, 28], params, adapter=name)
                [_ async for _ in answer]
                assert bool(answer.sequence.n_cached) == (name == adapter)
            return n_computed
        finally:
            await engine.close()

    identities = {"strong": "file 1 x 0.9", "other": "file 2 x 1.0"}
    assert await warm(identities, "") > 0
    assert await warm(identities, "") == 0
    assert await warm(identities, "strong") > 0, "the state of the model alone is used"
    assert await warm(identities, "strong") == 0
    assert await warm(identities, "other") > 0
    assert await warm(identities | {"strong": "file 1 x 0.8"}, "strong") > 0, "the scale is not in the key"
    assert await warm(identities, "") == 0
