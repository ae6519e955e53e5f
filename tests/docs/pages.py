"""The Markdown pages of the project, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of the page in ``language``."""
    return [code for found, code in _BLOCK.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """The shell commands of the page, continuation lines joined."""
    shell = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line.strip() for line in shell.splitlines() if line.strip()]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _BLOCK.sub("", page.read_text())
