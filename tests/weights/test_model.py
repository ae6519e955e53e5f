"""Model settings: a local file, the default, or a file of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from app.config import settings
from app.machine import installation
from app.weights import model as hub
from tests.weights.hub_driver import Resolve
from tests.weights.hub_server import REPO, TINY, FakeHub, closed_port, split_gguf

# --- local files


def test_the_default_model_is_in_a_package_and_needs_no_hub(resolve: Resolve) -> None:
    outcome = resolve(HF_ENDPOINT=closed_port())
    assert outcome.path
    assert outcome.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert not outcome.hub_imported


def test_the_error_for_the_missing_package_of_the_default_model_has_the_command(monkeypatch) -> None:
    monkeypatch.setattr(installation, "DEFAULT_PACKAGE", "llm_not_installed")
    monkeypatch.setattr(hub, "DEFAULT_PACKAGE", "llm_not_installed")
    with pytest.raises(hub.ModelError, match="llm_not_installed is not installed: run `make install`"):
        hub.resolve_model(settings.load(None))


def local(**overrides: object) -> Path:
    return hub.resolve_model(settings.load(None, **overrides))


def error_of(**overrides: object) -> str:
    with pytest.raises(hub.ModelError) as error:
        local(**overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_model_path_takes_precedence_over_the_repository(tmp_path: Path) -> None:
    write(tmp_path, {"a.gguf": TINY})
    assert local(model_path=tmp_path / "a.gguf", model_repo=REPO) == tmp_path / "a.gguf"


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert error_of(model_path=tmp_path / "a.gguf") == f"MODEL_PATH={tmp_path}/a.gguf: no such file"


def test_the_error_for_a_folder_lists_its_models(tmp_path: Path) -> None:
    write(tmp_path, {"b.gguf": TINY, "notes.txt": b"", **split_gguf("a", 2)})
    expected = f"MODEL_PATH={tmp_path} is a folder; name a GGUF file: a-00001-of-00002.gguf (2 parts), b.gguf"
    assert error_of(model_path=tmp_path) == expected


def test_any_part_of_a_split_model_resolves_to_the_first(tmp_path: Path) -> None:
    write(tmp_path, split_gguf("a", 3))
    assert local(model_path=tmp_path / "a-00003-of-00003.gguf") == tmp_path / "a-00001-of-00003.gguf"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, split_gguf("a", 3))
    (tmp_path / "a-00002-of-00003.gguf").unlink()
    assert "a-00002-of-00003.gguf" in error_of(model_path=tmp_path / "a-00001-of-00003.gguf")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TINY[:-1], "cut off"),
        (TINY[:40], "header is damaged or cut off"),
        (b"<html>Not found</html>", "not a GGUF file"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}', "not a GGUF file"),  # safetensors
        (b"", "not a GGUF file"),
    ],
)
def test_a_damaged_gguf_is_rejected_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, {"a.gguf": content})
    message = error_of(model_path=tmp_path / "a.gguf")
    assert message.startswith(f"MODEL_PATH={tmp_path}/a.gguf: a.gguf cannot be used, it")
    assert reason in message


def test_a_truncated_later_part_is_named(tmp_path: Path) -> None:
    parts = split_gguf("a", 2)
    write(tmp_path, {**parts, "a-00002-of-00002.gguf": parts["a-00002-of-00002.gguf"][:-1]})
    assert "a-00002-of-00002.gguf cannot be used" in error_of(model_path=tmp_path / "a-00001-of-00002.gguf")


def test_model_file_alone_is_a_local_file(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write(models, {"a-Q4_0.gguf": TINY, "a-Q8_0.gguf": TINY})
    assert local(model_file=str(models / "a-Q4_0.gguf"), models_dir=tmp_path) == models / "a-Q4_0.gguf"
    assert local(model_file="a-Q8_0.gguf", models_dir=models) == models / "a-Q8_0.gguf"
    assert local(model_file="*q8*", models_dir=models) == models / "a-Q8_0.gguf"
    assert "matches 2 models" in error_of(model_file="a-*", models_dir=models)
    message = error_of(model_file="c.gguf", models_dir=models)
    assert message.startswith(f"MODEL_FILE=c.gguf is not in MODELS_DIR={models}: set MODEL_REPO")


def test_the_name_of_a_split_model_has_no_part_number() -> None:
    assert hub.model_name(Path("models/a-Q4_0.gguf")) == "a-Q4_0"
    assert hub.model_name(Path("models/a-00001-of-00002.gguf")) == "a"


# --- selection


def test_a_pattern_selects_the_model_that_it_matches(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"Q4/a-Q4_K_M.gguf": TINY, "a-Q8_0.gguf": TINY, "mmproj-a-Q8_0.gguf": TINY})
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="*Q4_K_M*.gguf").path.name == "a-Q4_K_M.gguf"
    assert resolve(MODEL_REPO=REPO, MODEL_FILE="*q8*").path.name == "a-Q8_0.gguf"


def test_a_pattern_that_matches_several_or_none_lists_them(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a-Q4_0.gguf": TINY, "a-Q4_K_M.gguf": TINY, **split_gguf("a-Q8_0", 2)})
    several = resolve(MODEL_REPO=REPO, MODEL_FILE="*Q4*").error
    assert (
        several
        == "MODEL_FILE=*Q4* matches 2 models; set MODEL_FILE to one of them: a-Q4_0.gguf, a-Q4_K_M.gguf"
    )
    none = resolve(MODEL_REPO=REPO, MODEL_FILE="*Q5*").error
    assert none.startswith(f"MODEL_FILE=*Q5* matches nothing in MODEL_REPO={REPO} (revision main)")
    assert none.endswith("a-Q4_0.gguf, a-Q4_K_M.gguf, a-Q8_0-00001-of-00002.gguf (2 parts)")


def test_the_only_model_of_a_repository_is_the_default(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"config.json": b"{}", **split_gguf("a", 2)})
    outcome = resolve(MODEL_REPO=REPO)
    assert outcome.path
    assert outcome.path.name == "a-00001-of-00002.gguf"


def test_several_models_of_a_repository_are_listed(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"a.gguf": TINY, "b.gguf": TINY})
    error = resolve(MODEL_REPO=REPO).error
    assert error.startswith(
        f"MODEL_REPO={REPO} (revision main) contains 2 models; set MODEL_FILE to one of them"
    )
    assert error.endswith("a.gguf, b.gguf")


def test_a_repository_without_gguf_files_is_rejected(resolve: Resolve, fake_hub: FakeHub) -> None:
    fake_hub.add(REPO, {"model.safetensors": b"\x08"})
    name = REPO.rpartition("/")[2]
    download, convert = f"hf download {REPO} --local-dir {name}", f"convert_hf_to_gguf.py {name} --outfile"
    command = f"{convert} {name}.gguf`, and set MODEL_PATH to the new file"
    error = resolve(MODEL_REPO=REPO).error
    assert error.startswith(
        f"MODEL_REPO={REPO} (revision main) contains safetensors and no GGUF file: choose"
    )
    assert f"`llama.cpp/env/bin/{download} && " in error
    assert command in error
    error = resolve(MODEL_REPO=REPO, MODEL_FILE="model.safetensors").error
    assert error.startswith(
        "MODEL_FILE=model.safetensors is not a GGUF file; GGUF files there: none; convert"
    )
    assert command in error
    fake_hub.add(REPO, {"model.safetensors": b"\x08"}, revision="v1")
    error = resolve(MODEL_REPO=REPO, MODEL_REVISION="v1").error
    assert f"{download} --revision v1 && " in error
    assert command in error
    assert not fake_hub.gets()


def test_a_local_model_of_another_format_is_rejected_with_the_command_that_converts_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    write(folder, {"model.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{", "config.json": b"{}"})
    command = f"llama.cpp/convert_hf_to_gguf.py '{folder}' --outfile 'my model.gguf'`, and set MODEL_PATH"
    for path in (folder, folder / "model.safetensors"):
        message = error_of(model_path=path)
        assert message.startswith(f"MODEL_PATH={path}")
        assert command in message


@pytest.mark.parametrize("file", ["a-00001-of-00003.gguf", "a-*"])
def test_all_parts_of_a_split_model_are_downloaded(resolve: Resolve, fake_hub: FakeHub, file: str) -> None:
    parts = split_gguf("a", 3)
    fake_hub.add(REPO, parts)
    path = resolve(MODEL_REPO=REPO, MODEL_FILE=file).path
    assert path.name == "a-00001-of-00003.gguf"
    assert {name: path.with_name(name).read_bytes() for name in parts} == parts


@pytest.mark.parametrize("file", ["a-00001-of-00003.gguf", "a-*", ""])
def test_a_part_that_the_repository_lacks_is_named(resolve: Resolve, fake_hub: FakeHub, file: str) -> None:
    parts = split_gguf("a", 3)
    del parts["a-00002-of-00003.gguf"]
    fake_hub.add(REPO, parts)
    error = resolve(MODEL_REPO=REPO, MODEL_FILE=file).error
    assert error.endswith(f"its part a-00002-of-00003.gguf is not in MODEL_REPO={REPO} (revision main)")
