"""Permissions and token rates of keys."""

from __future__ import annotations

from typing import Any

import pytest

from app.chat.messages import Message
from app.config.keys import Key
from app.engine.client import LOCAL, Client
from app.service import BadRequest, ChatPrompt, Forbidden, Overloaded, TextPrompt, client_of_key
from app.service.clients import TokenRates, check_model, check_prompt, check_upload, with_priority

QUESTION = (Message("user", "Why?"),)


def client(**limits: Any) -> Client:
    return client_of_key("alice", Key(key="secret", **limits))


def test_a_client_without_limits_may_use_everything() -> None:
    for one in (LOCAL, client()):
        check_model(one, "any")
        check_prompt(one, TextPrompt("Once"), "general")
        check_prompt(one, ChatPrompt((Message("system", "x"), *QUESTION), "sql"), "general")
        TokenRates().check(one)


def test_a_request_chooses_a_priority_up_to_that_of_its_key() -> None:
    raised = client(priority=1, max_priority=5)
    assert [with_priority(raised, text).priority for text in ("5", "+0", "-100")] == [5, 0, -100]
    assert with_priority(raised, "5").name == "alice"
    with pytest.raises(Forbidden, match="contexts sql"):
        check_prompt(with_priority(client(contexts=["sql"]), "-1"), TextPrompt("Once"), "general")
    for limited, most in ((raised, 5), (client(priority=1), 1), (client(), 0), (Client("127.0.0.1"), 0)):
        with pytest.raises(Forbidden, match=f"X-Priority: {most + 1} is not allowed; at most {most}"):
            with_priority(limited, str(most + 1))
    for text in ("101", "-101", "high", "1.5", "٣"):
        with pytest.raises(BadRequest, match=f"X-Priority: {text} should be an integer from -100 to 100"):
            with_priority(raised, text)


def test_keys_store_documents_with_a_permission_only() -> None:
    for one in (LOCAL, Client("127.0.0.1"), client(uploads=True)):  # the first two have no key of API_KEYS
        check_upload(one)
    with pytest.raises(Forbidden, match="key alice does not allow uploads; set uploads = true in its table"):
        check_upload(client())


def test_models_are_patterns() -> None:
    limited = client(models=["SmolLM2-*"])
    check_model(limited, "SmolLM2-135M")
    with pytest.raises(Forbidden, match="key alice does not allow model Qwen; allowed: SmolLM2-") as error:
        check_model(limited, "Qwen")
    assert error.value.field == "model"


def test_contexts_can_neither_be_left_nor_replaced() -> None:
    limited = client(contexts=["sql"])
    check_prompt(limited, ChatPrompt(QUESTION, "sql"), "general")
    check_prompt(limited, ChatPrompt(QUESTION), "sql")
    for prompt in (
        ChatPrompt(QUESTION),
        ChatPrompt(QUESTION, "math"),
        ChatPrompt((Message("system", "x"), *QUESTION), "sql"),
        TextPrompt("Once"),
    ):
        with pytest.raises(Forbidden, match="key alice allows the contexts sql"):
            check_prompt(limited, prompt, "general")


def test_the_mean_token_rate_is_the_limit() -> None:
    now = 0.0
    rates, limited = TokenRates(lambda: now), client(tokens_per_minute=600)
    rates.check(limited)
    rates.spend(limited, 590)
    rates.check(limited)
    rates.spend(limited, 110)  # 100 more than the balance: 10 per second
    with pytest.raises(Overloaded, match="key alice has used its 600 tokens per minute") as error:
        rates.check(limited)
    assert error.value.retry_after == 11
    rates.check(LOCAL)
    now = 10.0
    with pytest.raises(Overloaded):
        rates.check(limited)
    now += 1
    rates.check(limited)
    now += 3600
    rates.spend(limited, 601)  # at most one minute's tokens are saved up
    with pytest.raises(Overloaded):
        rates.check(limited)
