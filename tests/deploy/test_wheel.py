"""The wheel, which installs the command ``tokenstream``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SETTINGS, clean_environment

pytestmark = pytest.mark.slow  # downloads the build backend


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with Tokenstream's wheel. Its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    packages = folder / "packages"
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", packages, wheel], check=True)
    return packages


def run(installed: Path, folder: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=clean_environment(**SETTINGS | settings) | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / "tokenstream")
    finished = run(
        installed, tmp_path, script, "generate", "--prompt", "Where is located Paris ?", "-n", "12"
    )
    assert finished.returncode == 0, finished.stderr
    assert "Paris" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_package_app_is_visible_to_the_command_only(installed: Path, tmp_path: Path) -> None:
    assert "No module named 'app'" in run(installed, tmp_path, "-c", "import app").stderr
    (tmp_path / "app.py").write_text("raise SystemExit('the wrong app')")
    finished = run(installed, tmp_path, "-m", "tokenstream", "serve", "--n-ctx", "lots")
    assert finished.stderr == "error: N_CTX=lots: should be a valid integer\n"


def test_a_missing_library_is_explained(installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    finished = run(installed, tmp_path, "-m", "tokenstream", "serve", LLAMA_CPP_LIB_PATH=str(empty))
    assert finished.returncode == 1
    assert "llama.cpp is not compiled for this CPU yet. Run once: tokenstream install" in finished.stderr
