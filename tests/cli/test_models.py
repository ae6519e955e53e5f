"""``tokenstream models``, ``pull`` and ``rm``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MODEL, ROOT, SETTINGS, clean_environment
from tests.weights.hub_server import REPO, serving

pytestmark = pytest.mark.slow  # starts commands and a hub

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a command with two named models, both the default model on a hub on loopback."""
    names = tmp_path / "models.toml"
    names.write_text(
        "".join(
            f'[models.{name}]\nrepository = "{REPO}"\nfile = "{file}"\ngigabytes = 0.1\ncontext = 2048\n'
            for name, file in (("a", "a.gguf"), ("b", "*b*.gguf"))
        )
    )
    with serving() as hub_server:
        hub = hub_server.fresh()
        hub.add(REPO, {"a.gguf": MODEL.read_bytes(), "the-b.gguf": MODEL.read_bytes() + b"b"})
        settings = {"MODELS_FILE": str(names), "MODELS_DIR": str(tmp_path / "models")}
        folders = {"HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        environment = clean_environment(**SETTINGS, **settings, **folders, HF_ENDPOINT=hub.url)

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "app", *arguments]
            return subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
            )

        yield run


def test_a_named_model_is_downloaded_used_and_deleted(run: Run, tmp_path: Path) -> None:
    def listed() -> dict[str, Any]:
        model, _ = json.loads(run("list", "--json").stdout)["models"]
        return model

    before = listed()
    assert (before["is_present"], before["fits"], before["bytes"]) == (False, True, 100_000_000)
    assert before["tokens_per_second"] > 0

    pulled = run("pull", "a")
    assert Path(pulled.stdout.strip()).samefile(next(tmp_path.glob("models/**/snapshots/*/a.gguf")))

    generated = run("generate", "--model", "a", "--prompt", "Where is located Paris ?", "-n", "12")
    assert "Paris" in generated.stdout, generated.stderr

    after = listed()
    assert (after["is_present"], after["is_measured"]) == (True, True)
    assert after["bytes"] == MODEL.stat().st_size

    assert run("rm", "a").stdout == "a: 98.4 MB freed\n"
    assert listed()["is_present"] is False
    again = run("rm", "a")
    assert again.returncode == 1
    assert f"error: a is not in MODELS_DIR={tmp_path}/models" in again.stderr


def test_a_name_is_deleted_with_its_other_formats_and_without_other_files_of_its_repository(
    run: Run, tmp_path: Path
) -> None:
    pulled = run("pull", "a", "b").stdout.splitlines()
    assert [Path(path).name for path in pulled] == ["a.gguf", "the-b.gguf"]
    [written] = run("quantize", "--model", "b", "--quantize", "q4_0").stdout.splitlines()
    size = MODEL.stat().st_size + 1 + Path(written).stat().st_size
    assert run("rm", "b").stdout == f"b: {size / 1e6:.1f} MB freed\n"
    assert not Path(written).exists()
    assert [Path(path).is_file() for path in pulled] == [True, False]
    assert run("rm", "a").returncode == 0
    assert not [*tmp_path.glob("models/models--*")]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_quantize_and_leaves_no_file(tmp_path: Path, number: int, status: int) -> None:
    command = [sys.executable, "-m", "app", "quantize", "--quantize", "q4_k_m"]
    environment = clean_environment(MODELS_DIR=str(tmp_path), MODEL_THREADS="1")
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not [*tmp_path.glob("quantized/*/*.incomplete")]:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
