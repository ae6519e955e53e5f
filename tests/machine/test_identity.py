"""Identity of models and of the native library."""

from __future__ import annotations

from pathlib import Path

from app.machine.identity import model_files


def test_the_files_of_a_split_model_are_all_its_parts(tmp_path: Path) -> None:
    names = [f"big-Q4_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    for name in [*names, "big-Q4_0-00001-of-00002.gguf", "other.gguf"]:
        (tmp_path / name).touch()
    assert [part.name for part in model_files(tmp_path / names[0])] == names
