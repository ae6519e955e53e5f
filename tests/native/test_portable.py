"""Archives of builds."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
import zipfile
from pathlib import Path

import portable
import pytest
from probe import INSTRUCTION_SETS
from steps import BuildError


def write_wheel(path: Path, **libraries: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in libraries.items():
            wheel.writestr(f"llama_cpp/lib/{name}.so", content)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two builds with a common library."""
    wheels = {
        name: (
            write_wheel(tmp_path / f"{name}.whl", llama="common", cpu=f"for {name}", cpu_0=f"for {name}"),
            name,
        )
        for name in ("avx2", "avx512")
    }
    path = tmp_path / "builds.zip"
    portable.write_archive(path, wheels)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_is_installed_with_equal_files_once(archive: Path, tmp_path: Path) -> None:
    installed: list[str] = []
    venv = tmp_path / "venv"
    (venv / portable.FOLDER / "old").mkdir(parents=True)
    names = portable.install_archive(str(archive), venv, lambda wheel: installed.append(wheel.name))
    assert names == ["avx2", "avx512"]
    assert installed == ["avx2.whl"]
    folder = venv / portable.FOLDER
    assert contents(folder) == {
        f"{name}/{file}": text
        for name in names
        for file, text in {
            "llama.so": "common",
            "cpu.so": f"for {name}",
            "cpu_0.so": f"for {name}",
            "native-build.json": name,
        }.items()
    }
    real = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(real) == 5  # common, two of cpu, two manifests
    moved = folder.rename(tmp_path / "moved")
    assert len(contents(moved)) == 8


def test_an_archive_is_installed_from_a_url(archive: Path, tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "venv").mkdir()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert portable.install_archive(f"{url}/builds.zip", tmp_path / "venv", lambda _: None)
        with pytest.raises(BuildError, match="404"):
            portable.install_archive(f"{url}/other.zip", tmp_path / "venv", lambda _: None)
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "message"), [("missing.zip", "No such file"), ("x.whl", "none of the builds")]
)
def test_other_files_are_rejected_and_change_nothing(tmp_path: Path, name: str, message: str) -> None:
    write_wheel(tmp_path / "x.whl", llama="x")
    kept = tmp_path / "venv" / portable.FOLDER / "avx2"
    kept.mkdir(parents=True)
    with pytest.raises(BuildError, match=message):
        portable.install_archive(str(tmp_path / name), tmp_path / "venv", lambda _: None)
    assert kept.exists()
    assert [path.name for path in (tmp_path / "venv").iterdir()] == [portable.FOLDER]


def test_each_build_has_the_sets_of_the_build_before() -> None:
    usable = [set(portable.findings(name).usable) for name in portable.BUILDS]
    assert all(older < newer for older, newer in itertools.pairwise(usable))
    for sets in usable:
        assert all(set(INSTRUCTION_SETS[name].needs) <= sets for name in sets)
