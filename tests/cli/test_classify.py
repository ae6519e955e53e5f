"""``tokenstream classify``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SETTINGS, clean_environment

pytestmark = pytest.mark.slow  # each command loads the model


def classify(*arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "classify", *arguments],
        cwd=ROOT,
        env=clean_environment(**SETTINGS),
        input=lines,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_each_text_has_a_line_with_its_class() -> None:
    finished = classify("What a wonderful day!", "I hate it.", "--context", "classifier")
    assert finished.returncode == 0, finished.stderr
    rows = [line.split("\t") for line in finished.stdout.splitlines()]
    assert [(label, text) for label, _, text in rows] == [
        ("good", "What a wonderful day!"),
        ("bad", "I hate it."),
    ]
    assert all(1 / 3 < float(probability) <= 1 for _, probability, _ in rows)


def test_lines_of_standard_input_are_texts() -> None:
    texts = [f"The invoice {number} is wrong." for number in range(70)]  # more than a batch
    finished = classify("--choices", "billing, technical", "--json", lines="\n".join([*texts, "", ""]))
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [each["text"] for each in found] == texts
    for each in found:
        assert each["probabilities"].keys() == {"billing", "technical"}
        assert each["label"] == max(each["probabilities"], key=each["probabilities"].__getitem__)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("x", "--choices", "one"), 2, "choices"),
        (("x", "--choices", "a,b", "--context", "sql"), 2, "choices: cannot be combined with context"),
        (("x", "--context", "sql"), 1, "context 'sql' has no choices; contexts with choices: classifier"),
    ],
)
def test_errors_are_reported_without_output(arguments: tuple[str, ...], status: int, message: str) -> None:
    finished = classify(*arguments)
    assert finished.returncode == status, finished.stderr
    assert message in finished.stderr
    assert (finished.stdout, "Traceback" in finished.stderr) == ("", False)
