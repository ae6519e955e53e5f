"""``tokenstream generate``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import MODEL, ROOT, SETTINGS, clean_environment

pytestmark = pytest.mark.slow  # each command loads the model


def generate(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "generate", *arguments],
        cwd=ROOT,
        env=clean_environment(**SETTINGS | settings),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_answer_is_on_stdout_and_its_speed_on_stderr() -> None:
    finished = generate("--prompt", "Where is located Paris ?", "-n", "12")
    assert finished.returncode == 0, finished.stderr
    assert "Paris" in finished.stdout
    assert finished.stdout.endswith("\n")
    assert re.search(r"^12 tokens at \d+\.\d tokens per second", finished.stderr, re.MULTILINE)


def test_arguments_change_the_answer() -> None:
    common = ("--prompt", "Tell me about the moon.", "--sample-len", "16")
    hot = ("--temperature", "1.5", "--top-p", "0.9", "--seed", "7", "--repeat-penalty", "1.0")
    first, again, greedy = generate(*common, *hot), generate(*common, *hot), generate(*common)
    assert first.stdout == again.stdout != greedy.stdout
    sql = generate("--prompt", "List all users", "--context", "sql", "--model", str(MODEL))
    assert "SELECT" in sql.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--prompt", "x", "--temperature", "-1"), 2, "temperature: should be greater than or equal to 0"),
        (("--prompt", ""), 2, "query: string should have at least 1 character"),
        (("--prompt", "x", "-n", "none"), 2, "argument --sample-len/-n: invalid int value"),
        (
            ("--prompt", "x", "--context", "cooking"),
            1,
            "context 'cooking' is not defined; defined are",
        ),
        (("--prompt", "x", "--model", "nowhere.gguf"), 1, "nowhere.gguf"),
        (("--prompt", "word " * 5000), 1, "the limit is 2048"),
    ],
)
def test_errors_are_reported_without_output(arguments: tuple[str, ...], status: int, message: str) -> None:
    finished = generate(*arguments, N_CTX="2048", MAX_SEQUENCES="1")
    assert finished.returncode == status, finished.stderr
    assert message in finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr


def test_a_closed_output_leaves_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "generate", "--prompt", "Tell me a long story."],
        cwd=ROOT,
        env=clean_environment(**SETTINGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.wait(60)
    process.stderr.close()
    assert "Traceback" not in errors
