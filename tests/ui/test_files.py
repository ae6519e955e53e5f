"""Files of the web page: their size, their references, and the packages of others."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

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


def test_the_page_refers_to_own_files_only() -> None:
    page = (UI / "index.html").read_text()
    referred = re.findall(r'(?:href|src)="([^"]+)"', page)
    for address in referred:
        assert address.startswith(("/ui/", "#")), address
        assert (UI / address.removeprefix("/ui/")).is_file(), address
    modules = {path.name for path in OWN if path.suffix == ".js"} - {"docs.js", "app.js"}
    preloaded = re.findall(r'rel="modulepreload" href="/ui/([^"]+)"', page)
    assert set(preloaded) == modules, "modules load one after the other without it"
    for path in OWN:
        for imported in re.findall(r'(?:from|import\() ?["`]([^"`$]+)["`]', path.read_text()):
            assert (path.parent / imported).is_file(), f"{path.name}: {imported}"


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
