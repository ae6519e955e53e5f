"""Streams of the servers, and checks that their figures are comparable."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bench.client import BenchError, Timing
from bench.prompts import PLAIN, Prompts, Question
from bench.servers import LlamaServer, OpenVINO, Request, Server, Setup, Tokenstream


@pytest.fixture
def setup(prompts: Prompts, tmp_path: Path) -> Setup:
    return Setup(Path("model.gguf"), prompts, (PLAIN,), tmp_path, n_threads=2)


OURS = [b"Hel", b"lo ", b"you", b'\n\x1e{"prompt_tokens": 5, ', b'"generated_tokens": 4}']


def events(*data: dict[str, object]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in data)


THEIRS = events(
    {"content": "Hel", "stop": False},
    {"content": "", "stop": False},
    {"content": "lo you", "stop": False},
    {"content": "", "stop": True, "tokens_evaluated": 5, "tokens_predicted": 4},
)


def received(*parts: bytes) -> Timing:
    return Timing(received=[(float(at), part) for at, part in enumerate(parts)])


def test_our_stream_ends_with_token_counts(setup: Setup) -> None:
    timing = received(*OURS)
    Tokenstream(setup).read(timing)
    assert timing.text == "Hello you"
    assert timing.pieces_at == [0, 1, 2]
    assert (timing.prompt_tokens, timing.generated_tokens) == (5, 4)


def test_our_stream_may_be_incomplete(setup: Setup) -> None:
    timing = received(*OURS[:2])
    Tokenstream(setup).read(timing)
    assert (timing.text, timing.pieces_at, timing.generated_tokens) == ("Hello ", [0, 1], 0)


def test_an_error_in_a_stream_is_raised(setup: Setup) -> None:
    with pytest.raises(BenchError, match="out of luck"):
        Tokenstream(setup).read(received(b"Hel", b'\n\x1e{"error": "out of luck"}'))
    with pytest.raises(BenchError, match="out of luck"):
        LlamaServer(setup, Path("x")).read(received(events({"error": "out of luck"})))


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_events_may_be_split_anywhere(setup: Setup, size: int) -> None:
    parts = [THEIRS[begin : begin + size] for begin in range(0, len(THEIRS), size)]
    timing = received(*parts)
    LlamaServer(setup, Path("x")).read(timing)
    first, last = (
        THEIRS.index(end) + len(end) - 1
        for end in (b'"Hel", "stop": false}\n\n', b'you", "stop": false}\n\n')
    )
    assert timing.text == "Hello you"
    assert timing.pieces_at == [first // size, last // size]
    assert (timing.prompt_tokens, timing.generated_tokens) == (5, 4)


def test_both_servers_get_equal_requests(setup: Setup, prompts: Prompts) -> None:
    question = Question.of("Which birds come by in March?")
    prompt = prompts.render(question)
    request = Request(question, prompt, 48, Timing())
    ours, theirs = Tokenstream(setup).fields(request), LlamaServer(setup, Path("x")).fields(request)
    assert (ours["query"], ours["context"]) == ("Which birds come by in March?", "plain")
    assert theirs["prompt"] == prompt
    assert ours["max_tokens"] == theirs["n_predict"] == 48
    assert ours["temperature"] == theirs["temperature"] == 0
    assert ours["repetition_penalty"] == theirs["repeat_penalty"] == 1
    assert ours["ignore_eos"] is theirs["ignore_eos"] is True
    assert OpenVINO(setup).fields(request) == theirs


@pytest.mark.parametrize(
    ("off_prompt", "off_answer", "message"),
    [(0, 0, None), (1, -1, None), (2, 0, "read"), (-2, 0, "read"), (0, 2, "generated"), (0, -2, "generated")],
)
def test_wrong_token_counts_are_errors(
    setup: Setup, off_prompt: int, off_answer: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question.of("Which birds come by in March?")
    n_prompt = setup.prompts.n_tokens(setup.prompts.render(question))
    server: Server = Tokenstream(setup)

    async def exchange(url: str, path: str, fields: object, timing: Timing) -> None:
        figures = {"prompt_tokens": n_prompt + off_prompt, "generated_tokens": 8 + off_answer}
        timing.received += [(0.0, b"Geese"), (1.0, b"\n\x1e" + json.dumps(figures).encode())]

    monkeypatch.setattr("bench.servers.exchange", exchange)
    asyncio.run(server.ask(question, 8))
    if message is None:
        server.check()
    else:
        with pytest.raises(BenchError, match=message):
            server.check()
