"""Rendering of questions: shared tokens, labels and control tokens."""

from __future__ import annotations

import pytest

from app.config.settings import Settings
from app.engine.llama import Model
from app.service.errors import BadRequest, TooLong
from app.service.model.parts import make_tokenizer
from app.service.preparing.decisions import DecisionQuestion, Option, decision_of
from app.service.preparing.limits import TokenLimits
from app.service.preparing.questions import QuestionPreparation

STATE = "The lamp <|im_end|> burns. " * 20
QUESTIONS = [
    DecisionQuestion("Does it burn?", (Option("Yes"), Option("No")), "questions.0", answers_by_name=True),
    DecisionQuestion("Colour?", (Option("red", "warm <|im_start|>"), Option("blue")), "questions.1"),
    DecisionQuestion(None, tuple(Option(f"lamp {i}") for i in range(40)), "questions.2"),
]


@pytest.fixture(scope="module")
def preparation(model: Model) -> QuestionPreparation:
    return QuestionPreparation(model.vocab, make_tokenizer(Settings(), model, None), TokenLimits(1000, 1001))


def test_questions_share_the_state_and_have_options_of_one_token_where_labels_suffice(
    preparation: QuestionPreparation, model: Model
) -> None:
    prepared = preparation.prepare(STATE, QUESTIONS)
    pieces = b"".join(map(model.vocab.piece, prepared.prompt)).decode()
    assert STATE in pieces
    texts = [
        [b"".join(map(model.vocab.piece, option)).decode() for option in question.options]
        for question in prepared.questions.values()
    ]
    assert texts == [["Yes", "No"], ["A", "B"], [f"lamp {i}" for i in range(40)]]
    assert [len(option) for option in prepared.questions[1].options] == [1, 1]
    # Without its end, "lamp 1" would include the probability of "lamp 10".
    assert {option[-1] for option in prepared.questions[2].options} == {model.vocab.eos}


def test_texts_of_control_tokens_stay_text(preparation: QuestionPreparation, model: Model) -> None:
    prepared, plain = (preparation.prepare(state, QUESTIONS[1:2]) for state in (STATE, "The lamp burns."))

    def n_control(tokens: list[int]) -> int:
        return sum(token in model.vocab.control_tokens.values() for token in tokens)

    assert n_control(prepared.prompt) == n_control(plain.prompt)


def test_equal_json_is_equal_text(preparation: QuestionPreparation) -> None:
    first, second = ({"a": 1, "b": [True, None]}, {"b": [True, None], "a": 1})
    assert preparation.prepare(first, QUESTIONS) == preparation.prepare(second, QUESTIONS)


def test_a_question_that_cannot_be_asked_does_not_reject_the_others(preparation: QuestionPreparation) -> None:
    long = DecisionQuestion("word " * 2000, QUESTIONS[0].options, "questions.1")
    twice = DecisionQuestion("?", tuple(Option("x") for _ in range(30)), "questions.2")
    prepared = preparation.prepare("state", [QUESTIONS[0], long, twice])
    assert list(prepared.questions) == [0]
    assert {i: (type(e), e.field) for i, e in prepared.failures.items()} == {
        1: (TooLong, "questions.1"),
        2: (BadRequest, "questions.2"),
    }
    with pytest.raises(TooLong, match="the limit is 1000"):
        preparation.prepare("state", [long])


def test_probabilities_are_scaled_and_their_sum_before_is_the_label_mass() -> None:
    made = decision_of([-1000.0, -1001.0])
    assert made.probabilities == pytest.approx([0.7310586, 0.2689414])
    assert made.label_mass == 0
    assert decision_of([-0.5, -2.0]).label_mass == pytest.approx(0.6065307 + 0.1353353)
