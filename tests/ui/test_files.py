"""Files of the web page: their size, their references, and the packages of others."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

import pytest

from app.api.operator.pages import UI

VENDOR = UI / "vendor"
LOADED = [path for path in UI.rglob("*") if path.suffix in {".html", ".js", ".mjs", ".css", ".svg"}]
OWN = [path for path in LOADED if VENDOR not in path.parents]


def test_the_page_is_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in LOADED) < 200_000


def test_files_of_others_are_those_of_their_packages() -> None:
    packages = json.loads((VENDOR / "packages.json").read_text())
    listed = {
        name: file["sha256"] for package in packages.values() for name, file in package["files"].items()
    }
    present = set(VENDOR.rglob("*.*js"))
    assert {path.relative_to(VENDOR).as_posix() for path in present} == set(listed)
    for path in present:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[path.relative_to(VENDOR).as_posix()]
    for package in packages.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert len((VENDOR / package["licence"]).read_text()) > 500


PAGES = {"index.html": "app.js", "stats.html": "stats.js"}
IMPORT = re.compile(r'(?:from|import\() ?["`]([^"`$]+)["`]')


def imported(module: str) -> set[str]:
    """Names of the modules that a module imports, and of those that they import."""
    found: set[str] = set()
    pending = [module]
    while pending:
        text = (UI / pending.pop()).read_text()
        new = {name.removeprefix("./") for name in IMPORT.findall(text) if "vendor" not in name} - found
        found |= new
        pending += new
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_refers_to_own_files_only_and_preloads_all_modules(page: str) -> None:
    text = (UI / page).read_text()
    for address in re.findall(r'(?:href|src)="([^"]+)"', text):
        if address in ("/", "/stats"):
            continue
        assert address.startswith(("/ui/", "#")), address
        assert (UI / address.removeprefix("/ui/")).is_file(), address
    preloaded = re.findall(r'rel="modulepreload" href="/ui/([^"]+)"', text)
    assert set(preloaded) == imported(PAGES[page]), "modules load one after the other without it"


def test_every_module_is_used_and_imports_own_files() -> None:
    used = {"docs.js", *PAGES.values()}.union(*map(imported, PAGES.values()))
    assert {path.name for path in OWN if path.suffix == ".js"} == used
    for path in OWN:
        for name in IMPORT.findall(path.read_text()):
            assert (path.parent / name).is_file(), f"{path.name}: {name}"


def test_own_files_write_no_html_and_no_inline_styles() -> None:
    for path in OWN:
        if path.name in {"docs.html", "docs.js"}:
            continue
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\bstyle=", path.read_text()
        )
        assert path.suffix != ".html" or not re.search(
            r"\son[a-z]+=|<style|<script(?! type)", path.read_text()
        )
