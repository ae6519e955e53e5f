"""``tokenstream doctor``."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODEL, ROOT, clean_environment, free_port
from tests.weights.hub_server import closed_port

pytestmark = pytest.mark.slow  # starts commands


def doctor(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    settings = {"HTTP_ADDRESS": f"127.0.0.1:{free_port()}"} | settings
    return subprocess.run(
        [sys.executable, "-m", "app", "doctor", *arguments],
        cwd=ROOT,
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_sound_machine_has_no_failure() -> None:
    finished = doctor("--json")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    findings = json.loads(finished.stdout)
    checks = [
        "compiler",
        "library",
        "CPU",
        "AMX",
        "memory",
        "model",
        "port",
        "hub",
        "disk",
        "index",
        "contexts",
    ]
    of_machine = {"huge pages", "governor", "cores", "NUMA"}
    assert {*checks, *of_machine, "settings", "tuned settings", "memory plan"} == {
        each["check"] for each in findings
    }
    assert all(bool(each["remedy"]) <= (each["status"] != "ok") for each in findings)


def test_each_problem_is_a_line_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "contexts.toml").write_text("[contexts.a]\nprompt = 3\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finished = doctor(
            *("--model", "qwen3-1.7b", "--http-address", address, "--knowledge", "on"),
            HF_ENDPOINT=closed_port(),
            MODELS_DIR=str(tmp_path / "models"),
            CONTEXTS_FILE=str(tmp_path / "contexts.toml"),
            DATA_PATH=str(tmp_path / "nowhere"),
            CXX="no-such-compiler",
        )
    assert finished.returncode == 1, finished.stderr
    lines = finished.stdout.splitlines()
    expected = {
        "WARNING  compiler: ": "no-such-compiler",
        "WARNING  model: ": "Qwen/Qwen3-1.7B-GGUF is not on this disk yet",
        "FAILURE  hub: ": "cannot be reached (Connection refused): check the network",
        "FAILURE  contexts: ": "contexts.a.prompt",
        "FAILURE  port: ": "Address already in use; stop the process that uses it",
        "FAILURE  index: ": "nowhere: no such folder; create it",
    }
    for begin, text in expected.items():
        assert any(line.startswith(begin) and text in line for line in lines), (begin, lines)


def test_each_of_several_models_is_checked(tmp_path: Path) -> None:
    (tmp_path / "contexts.toml").write_text('[contexts.a]\nprompt = "A."\nmodel = "phi-2"\n')
    finished = doctor(
        MODELS=f"smollm2,gone={tmp_path}/gone.gguf,qwen3-0.6b,same={MODEL}",
        MODELS_PINNED="same",
        MODELS_MEMORY="600",
        MODELS_DIR=str(tmp_path / "models"),
        HF_ENDPOINT=closed_port(),
        N_CTX="2048",
        PREFIX_CACHE_MB="0",
        CONTEXTS_FILE=str(tmp_path / "contexts.toml"),
        CONTEXT_TYPE="a",
    )
    assert finished.returncode == 1, finished.stderr
    lines = finished.stdout.splitlines()
    expected = {
        "ok       model smollm2: ": str(MODEL),
        "FAILURE  model: MODELS, gone: ": "gone.gguf: no such file",
        "WARNING  model qwen3-0.6b: ": "is not on this disk yet: its first request downloads it",
        "FAILURE  hub qwen3-0.6b: ": "cannot be reached",
        "ok       memory plan same: ": "weights",
        "ok       memory plan smollm2: ": "weights",
        "WARNING  memory plan qwen3-0.6b: ": "serve fewer or smaller models",
        "ok       memory of MODELS: ": "they do not fit at the same time",
    }
    for begin, text in expected.items():
        assert any(line.startswith(begin) and text in line for line in lines), (begin, lines)


def test_names_in_contexts_are_checked(tmp_path: Path) -> None:
    (tmp_path / "contexts.toml").write_text('[contexts.a]\nprompt = "A."\nadapter = "sql"\n')
    finished = doctor(CONTEXTS_FILE=str(tmp_path / "contexts.toml"), CONTEXT_TYPE="a")
    assert finished.returncode == 1
    assert "context 'a': adapter: 'sql' does not exist" in finished.stdout


def test_a_library_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    finished = doctor(LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert finished.returncode == 1
    assert "FAILURE  library: llama.cpp is not compiled for this CPU yet" in finished.stdout
    assert "ok       port: " in finished.stdout  # the other checks run
