"""``python -m app detect-watermark``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.cli.detect_watermark import verdict
from app.engine.sampling.watermark import Detection
from tests.conftest import MODEL, ROOT, clean_environment
from tests.human_texts import HUMAN_TEXTS

HUMAN_TEXT = HUMAN_TEXTS[0]


def detect(*arguments: str, text: bytes = b"", **settings: str) -> tuple[int, str, str]:
    finished = subprocess.run(
        [sys.executable, "-m", "app", "detect-watermark", *arguments],
        cwd=ROOT,
        env=clean_environment(**settings),
        input=text,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return finished.returncode, finished.stdout.decode(), finished.stderr.decode()


def z_score(printed: str) -> float:
    found = re.search(r"^z-score  (\S+)$", printed, re.MULTILINE)
    assert found, printed
    return float(found[1])


@pytest.fixture(scope="module")
def marked(server_url: str) -> str:
    parameters = {"max_new_tokens": 180, "do_sample": True, "seed": 3, "watermark": True}
    body = {"inputs": "The history of the bicycle begins", "parameters": parameters}
    return str(httpx.post(f"{server_url}/generate", json=body, timeout=60).json()["generated_text"])


def test_a_marked_answer_is_detected(marked: str, tmp_path: Path) -> None:
    file = tmp_path / "answer.txt"
    file.write_text(marked, encoding="utf-8")
    status, printed, errors = detect(str(file))
    assert (status, errors) == (0, "")
    assert z_score(printed) > 4
    assert "verdict  marked: " in printed
    assert re.search(r"^tokens   1\d\d ", printed, re.MULTILINE)
    named = detect(str(file), "--model", "mine", MODELS=f"other=nowhere.gguf,mine={MODEL}")
    assert z_score(named[1]) == z_score(printed)


@pytest.mark.slow
def test_a_human_text_on_standard_input_is_not_marked() -> None:
    status, printed, _ = detect(text=HUMAN_TEXT.encode())
    assert status == 0
    assert z_score(printed) < 3
    assert "by chance 50.0%" in printed
    assert "by chance 25.0%" in detect(text=HUMAN_TEXT.encode(), WATERMARK_GAMMA="0.25")[1]


@pytest.mark.parametrize(
    ("n_tokens", "n_green", "begin"),
    [
        (200, 150, "marked: an unmarked text has this score with probability 8e-13"),
        (200, 100, "not marked"),
        (200, 118, "undecided: an unmarked text"),
        (15, 15, "undecided: the text is too short"),
        (16, 16, "marked"),
    ],
)
def test_the_verdict_follows_from_the_counts(n_tokens: int, n_green: int, begin: str) -> None:
    assert verdict(Detection(n_tokens, n_green, 0.5)).startswith(begin)


@pytest.mark.parametrize(
    ("arguments", "text", "status", "message"),
    [
        ((), b"", 1, "the text should have at least two tokens"),
        ((), b"ab\xff", 1, "standard input is not UTF-8 text: invalid start byte at byte 2"),
        (("nowhere.txt",), b"", 1, "nowhere.txt cannot be read: No such file or directory"),
        (("--model", "nowhere.gguf"), b"x", 1, "nowhere.gguf"),
    ],
    ids=["empty", "bytes", "no file", "no model"],
)
@pytest.mark.slow
def test_errors_are_reported_with_status_1(
    arguments: tuple[str, ...], text: bytes, status: int, message: str
) -> None:
    found = detect(*arguments, text=text)
    assert found[:2] == (status, "")
    assert message in found[2]
    assert "Traceback" not in found[2]


def test_an_invalid_watermark_gamma_is_rejected() -> None:
    status, _, errors = detect(text=b"x", WATERMARK_GAMMA="1.5")
    assert (status, "WATERMARK_GAMMA=1.5" in errors) == (2, True)
