"""OpenVINO GenAI as a peer: answers of its server, and rates without a server, of a small model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.client import BenchError, Timing
from bench.goals import GGML, OPENVINO, OURS
from bench.kernels import measure
from bench.prompts import PLAIN, Prompts, Question, Texts
from bench.servers import OpenVINO, Setup
from tests.bench.conftest import needs_openvino

N_THREADS = 2


@pytest.fixture(scope="module")
def openvino(
    small_model: Path, prompts: Prompts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenVINO]:
    scratch = tmp_path_factory.mktemp("openvino")
    server = OpenVINO(Setup(small_model, prompts, (PLAIN,), scratch, N_THREADS))
    server.start()
    yield server
    server.stop()


@needs_openvino
@pytest.mark.slow
def test_answers_have_the_requested_number_of_tokens(openvino: OpenVINO, prompts: Prompts) -> None:
    """Twelve requests share eight slots. `check` compares prompt tokens with those of llama.cpp."""
    texts = Texts(prompts, "openvino")

    async def ask() -> list[Timing]:
        return await asyncio.gather(*(openvino.ask(texts.question(n), 20) for n in range(100, 700, 50)))

    timings = asyncio.run(ask())
    openvino.check()
    assert [timing.generated_tokens for timing in timings] == [20] * 12
    assert all(timing.text for timing in timings)


@needs_openvino
@pytest.mark.slow
def test_each_step_streams_a_piece(openvino: OpenVINO) -> None:
    timing = asyncio.run(openvino.ask(Question.of("Which birds come by in March?"), 60))
    assert len(timing.pieces_at) > 30
    assert len({at for at, _ in timing.received}) > 30


@needs_openvino
@pytest.mark.slow
def test_greedy_answers_to_equal_questions_are_equal(openvino: OpenVINO) -> None:
    question = Question.of("Which birds come by in March?")
    first, second = (asyncio.run(openvino.ask(question, 20)).text for _ in range(2))
    assert first == second


@needs_openvino
@pytest.mark.slow
def test_closed_connections_free_their_slots(openvino: OpenVINO) -> None:
    """Eight long requests fill all slots. The next request is answered only if they end."""

    async def run() -> Timing:
        timings = [Timing() for _ in range(openvino.setup.n_slots)]
        tasks = [
            asyncio.create_task(openvino.ask(Question.of("Geese?"), 1_000_000, timing)) for timing in timings
        ]
        await asyncio.gather(*(timing.answered.wait() for timing in timings))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return await asyncio.wait_for(openvino.ask(Question.of("Swallows?"), 4), 60)

    assert asyncio.run(run()).generated_tokens == 4


@needs_openvino
@pytest.mark.slow
def test_a_file_that_openvino_rejects_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"no GGUF")
    with pytest.raises(BenchError, match=r"bench\.openvino\.rates .*no\.gguf"):
        measure(OPENVINO, path, N_THREADS, 2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [OURS, GGML, pytest.param(OPENVINO, marks=needs_openvino)])
def test_a_measurement_has_three_rates(variant: str, small_model: Path) -> None:
    rates = measure(variant, small_model, N_THREADS, 4)
    assert [*rates] == ["prefill", "rate_of_1", "rate_of_8"]
    assert min(rates.values()) > 0
