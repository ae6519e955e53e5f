"""LlamaIndex's clients of OpenAI's and Ollama's routes. They need an older openai, in its own environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("llama_index_script.py")


@pytest.fixture(scope="module")
def answers(server_url: str) -> dict[str, Any]:
    """The answers to both clients."""
    target = f"{sys.prefix}/.llama-index"
    subprocess.run(["make", "--silent", f"VENV={sys.prefix}", target], cwd=ROOT, check=True, timeout=230)
    finished = subprocess.run(
        [f"{sys.prefix}/llama-index/bin/python", SCRIPT, server_url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    answers: dict[str, Any] = json.loads(finished.stdout)
    return answers


@pytest.mark.parametrize("client", ["openai", "ollama"])
def test_a_stream_is_the_whole_answer_and_can_be_cut(client: str, answers: dict[str, Any]) -> None:
    answer = answers[client]
    assert answer["whole"]
    assert answer["streamed"] == answer["whole"]
    assert answer["whole"].startswith(answer["begun"])


def test_tools_and_objects_match_their_schemas(answers: dict[str, Any]) -> None:
    [[name, arguments]] = answers["openai"]["calls"]
    assert name == "add"
    assert {type(value) for value in arguments.values()} == {int}
    assert arguments.keys() == {"a", "b"}
    assert answers["openai"]["mood"] in ("positive", "negative")


@pytest.mark.parametrize("client", ["openai", "ollama"])
def test_errors_name_the_field(client: str, answers: dict[str, Any]) -> None:
    assert "messages: the request has" in answers[client]["error"]
