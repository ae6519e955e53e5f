"""LangChain's ChatOpenAI."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score
from pydantic import BaseModel, SecretStr

pytestmark = pytest.mark.slow


class Mood(BaseModel):
    """The mood of a text."""

    mood: Literal["positive", "negative"]


@pytest.fixture
def chat(server_url: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{server_url}/v1", api_key=SecretStr("none"), model="any", max_completion_tokens=60
    )


def test_invoke_stream_and_batch_return_answers(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("Name a colour.")])
    assert isinstance(answer, AIMessage)
    assert answer.content
    assert answer.usage_metadata
    assert answer.usage_metadata["input_tokens"] > 5
    assert "".join(str(chunk.content) for chunk in chat.stream("Name a colour."))
    assert len(chat.batch(["One?", "Two?"])) == 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_parsed(
    method: Literal["json_schema", "function_calling"], chat: ChatOpenAI
) -> None:
    mood = chat.with_structured_output(Mood, method=method).invoke("How does 'I love it' feel?")
    assert isinstance(mood, Mood)


@pytest.mark.filterwarnings("ignore:The class `OpenAIDecisions` is in beta")
@pytest.mark.anyio
async def test_decisions_have_typed_answers(server_url: str) -> None:
    decisions = OpenAIDecisions(base_url=f"{server_url}/v1", api_key=SecretStr("none"), model="any")
    questions = {
        "urgent": Predicate(instructions="Is this request urgent?"),
        "team": Choice(
            instructions="Which team?", choices={"billing": "Payments.", "technical": None, True: None}
        ),
        "anger": Score(instructions="How angry is it?", levels=["calm", "angry"]),
    }
    conversation = [SystemMessage("Support."), HumanMessage("I was charged twice."), AIMessage("Sorry!")]
    first = decisions.invoke({"input": "I was charged twice.", "questions": questions})
    second = await decisions.ainvoke({"input": conversation, "questions": questions})
    for response in (first, second):
        assert 0 < response.predicates["urgent"].probability < 1
        team, anger = response.choices["team"], response.scores["anger"]
        assert team.probabilities.keys() == {"billing", "technical", True}
        assert team.choice == max(team.probabilities, key=team.probabilities.__getitem__)
        assert anger.legend == {0: "calm", 1: "angry"}
        assert anger.score == pytest.approx(anger.probabilities[1])
        assert response.usage.output_tokens == 0
