"""The `text-generation` client. It needs an older huggingface_hub, so it has its own environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("text_generation_script.py")


@pytest.fixture(scope="module")
def answers(server_url: str) -> dict[str, Any]:
    """The answers to the client."""
    target = f"{sys.prefix}/.text-generation"
    subprocess.run(["make", "--silent", f"VENV={sys.prefix}", target], cwd=ROOT, check=True, timeout=110)
    finished = subprocess.run(
        [f"{sys.prefix}/text-generation/bin/python", SCRIPT, server_url],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    answers: dict[str, Any] = json.loads(finished.stdout)
    return answers


def test_answers_have_text_logprobs_and_top_tokens(answers: dict[str, Any]) -> None:
    assert "Paris" in answers["text"]
    assert answers["finish_reason"] == "length"
    assert answers["prefill"][0] is None
    assert all(logprob < 0 for logprob in answers["prefill"][1:])
    assert answers["n_top_tokens"] == [2] * 12
    assert answers["async_text"] == answers["text"]


def test_streams_equal_whole_answers(answers: dict[str, Any]) -> None:
    assert answers["streamed"] == answers["last"] == answers["async_streamed"] == answers["text"]
    assert answers["n_generated"] == 12


def test_best_of_seed_and_grammar_take_effect(answers: dict[str, Any]) -> None:
    assert answers["n_best_of"] == 1
    assert answers["seed"] is not None
    assert answers["constrained"].isdecimal()
    assert len(answers["constrained"]) == 4


def test_chat_has_an_answer(answers: dict[str, Any]) -> None:
    assert answers["chat"]


def test_a_prompt_over_the_limit_is_a_validation_error(answers: dict[str, Any]) -> None:
    assert answers["error_message"].startswith(
        "Input validation error: `inputs` tokens + `max_new_tokens` must be"
    )
