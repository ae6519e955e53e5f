"""The examples of README.md and docs/ run against a server with the sample document."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, running_server
from tests.docs.pages import PAGES, blocks, commands, title

DOCUMENTED_URL = "http://127.0.0.1:3030"

pytestmark = pytest.mark.slow

CURL = [
    pytest.param(command, id=f"{title(page)}-{number}")
    for page in PAGES
    for number, command in enumerate(c for c in commands(page) if c.startswith("curl "))
]
PYTHON = [
    pytest.param(code, id=f"{title(page)}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
    if DOCUMENTED_URL in code
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    paths = {"DATA_PATH": str(ROOT / "data"), "KNOWLEDGE_INDEX": str(folder / "index")}
    with running_server(folder / "log", KNOWLEDGE="on", RERANK_WITH_EMBEDDINGS="on", **paths) as server:
        end = time.monotonic() + 60
        while httpx.get(f"{server.url}/v1/knowledge").json()["counts"]["indexed"] == 0:
            assert time.monotonic() < end, server.output()
            time.sleep(0.05)
        yield server.url


def run_curl(command: str, url: str) -> str:
    assert DOCUMENTED_URL in command
    script = command.replace(DOCUMENTED_URL, url).replace("curl ", "curl --fail-with-body --silent ", 1)
    finished = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, f"{script}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", CURL)
def test_curl_commands_succeed(command: str, url: str) -> None:
    answer = run_curl(command, url)
    assert answer
    if "Wren Bridge" in command and '"knowledge":false' not in command:
        assert "06:25" in answer  # as in README.md


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code: str, url: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code.replace(DOCUMENTED_URL, url))
    finished = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
