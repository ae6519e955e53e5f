"""The reference of all settings in --help and in docs/settings.md."""

from __future__ import annotations

import subprocess
import sys

from app.config import reference
from app.config.flags import flag_of
from app.config.settings import Settings
from tests.conftest import ROOT


def test_help_prints_every_setting_as_a_flag() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in Settings.model_fields:
        assert f"  {flag_of(name)} " in printed
    assert "Values: `auto`, `f32`," in printed


def test_settings_md_is_up_to_date() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == reference.for_docs() + "\n", (
        "run: .venv/bin/python -m app.config.reference > docs/settings.md"
    )


def test_the_page_has_one_row_for_each_setting() -> None:
    rows = [line for line in reference.for_docs().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [name.upper() for name in Settings.model_fields]
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)
