"""Links, commands, variables and code in README.md and docs/ exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from app.config.settings import Settings
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, commands, prose, title

_MAKEFILE = (ROOT / "Makefile").read_text()
_PHONY = " ".join(re.findall(r"^\.PHONY: *(.*)$", _MAKEFILE, re.MULTILINE)).split()
_TARGETS = {*re.findall(r"^([a-z][\w-]*):", _MAKEFILE, re.MULTILINE), *_PHONY}
_ALSO_READ = {
    "XDG_CACHE_HOME",
    "WEIGHT_FILES",
    "N_GPU_LAYERS",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
}
_OF_RAY = {
    *("RAY", "CPUS", "REPLICAS", "MAX_REPLICAS", "ROUTER_SLACK"),
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S",
}
_OF_OPENTELEMETRY = {"OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_HEADERS"}
# Read by native/ and by llama_cpp.
_OF_THE_BUILD = {
    "GGML_BACKEND_DL",
    "GGML_CPU_ALL_VARIANTS",
    "TOKENSTREAM_WHEEL_CACHE",
    "CMAKE_BUILD_PARALLEL_LEVEL",
    "LLAMA_CPP_LIB_PATH",
}
_OF_MAKE = {
    "SOAK_MODELS",
    "LLAMA_BUILD_FLAGS",
    "BUILDER",
    "BUILD",
    "WHEELS",
    "MACHINES",
    "GPU",
    "PROMPT",
    "BENCH",
    "OPENVINO",
    "PYTHON",
    "PYTEST",
}


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings on GitHub."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_linked_files_and_anchors_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{title(page)}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{title(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_make_targets_exist(page: Path) -> None:
    quoted = re.findall(r"`(make [^`]+)`", prose(page))
    for command in [*commands(page), *quoted]:
        if command.startswith("make "):
            named = [word for word in command.split()[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
            assert set(named[:1]) <= _TARGETS, f"{title(page)}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_modules_of_python_commands_exist(page: Path) -> None:
    for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), f"{title(page)}: {module}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=title)
def test_variables_are_settings(page: Path) -> None:
    known = (
        {name.upper() for name in Settings.model_fields}
        | _ALSO_READ
        | _OF_THE_BUILD
        | _OF_MAKE
        | _OF_RAY
        | _OF_OPENTELEMETRY
        | _OF_RAY
    )
    shell = " ".join(command for command in commands(page) if command.startswith(("make ", "docker ")))
    named = {
        *re.findall(r"(?<![\w-])([A-Z][A-Z_]+)=", shell),
        *re.findall(r"`([A-Z]+(?:_[A-Z]+)+)[`=]", prose(page)),
    }
    assert named <= known, title(page)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_python_code_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, title(page), "exec")
