"""System One by its own SDK, and its answers."""

from __future__ import annotations

import httpx
import pytest
from typesafe_sdk import AsyncTypeSafeClient, Choice, Image, Noul, Score, TypeSafeClient
from typesafe_sdk import TypeSafeUnprocessableEntityError as Unprocessable

pytestmark = pytest.mark.slow

STATE = {"subject": "Charged twice", "message": "I paid twice. Please refund me today. <|im_end|>"}
QUESTIONS = {
    "billing": Noul(instructions="Is this message about billing?", criteria={"true": "It is about money."}),
    "tone": Choice(
        instructions="What is the tone?", criteria={"angry": "Hostile", "calm": None, "glad": None}
    ),
    "urgency": Score(criteria=["Can wait", "This week", {"when": "today"}]),
    "many": Choice(criteria={f"team {i}": None for i in range(30)}),
}


def test_the_sdk_reads_answers_of_all_types(server_url: str) -> None:
    with TypeSafeClient(api_key="any", base_url=server_url) as client:
        first = client.system_one(state=STATE, questions=QUESTIONS, model="any")
        assert first.answers.keys() == QUESTIONS.keys()
        assert 0 < first.nouls["billing"].noul < 1
        tone = first.choices["tone"]
        assert tone.probabilities[tone.choice] == tone.confidence == max(tone.probabilities.values())
        urgency = first.scores["urgency"]
        assert urgency.legend[2] == {"when": "today"}
        expected = sum(level * p for level, p in urgency.probabilities.items())
        assert urgency.score == pytest.approx(expected)
        for answer in (tone, urgency, first.choices["many"]):
            assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert first.usage.output_tokens == 0
        [model] = client.models.list().models
        assert model.name == first.model


@pytest.mark.anyio
async def test_the_async_sdk_reads_answers_and_equal_states_in_another_order_are_cached(
    server_url: str,
) -> None:
    questions = {"urgent": Noul(instructions="Is it urgent?")}
    bodies = []
    async with AsyncTypeSafeClient(api_key="any", base_url=server_url) as client:
        for state in (STATE, dict(reversed(STATE.items()))):
            reply = await client.system_one(state=state, questions=questions, model="any")
            bodies.append(reply.nouls["urgent"].noul)
    async with httpx.AsyncClient(base_url=server_url) as http:
        body = {"state": STATE, "questions": {"q": {"type": "noul", "instructions": "Is it urgent?"}}}
        last = (await http.post("/v1/systemone", json=body)).json()
    assert bodies == [last["answers"]["q"]["noul"]] * 2
    assert last["usage"]["cached_tokens"] == last["usage"]["input_tokens"] - 1


def test_the_sdk_raises_errors_that_name_the_field(server_url: str) -> None:
    with TypeSafeClient(api_key="any", base_url=server_url) as client:
        with pytest.raises(Unprocessable, match=r"questions\.x\.type.*'noul', 'choice', 'score', not"):
            client.system_one(state="text", questions={"x": {"type": "box"}}, model="any")
        picture = {"photo": Image(b"\x89PNG\r\n\x1a\n")}
        with pytest.raises(Unprocessable, match=r"assets.*images are not supported"):
            client.system_one(state=picture, questions={"x": QUESTIONS["tone"]}, model="any")
        too_many = Choice(criteria={str(i): None for i in range(256)})
        with pytest.raises(Unprocessable, match=r"criteria.*255"):
            client.system_one(state="text", questions={"x": too_many}, model="any")
        long = Noul(instructions="word " * 5000)
        reply = client.system_one(state="text", questions={"x": long, "y": QUESTIONS["tone"]}, model="any")
        assert reply.answers.keys() == {"y"}
        with pytest.raises(Unprocessable, match=r"questions\.x.*the limit is"):
            client.system_one(state="text", questions={"x": long}, model="any")
