"""Reference of all settings, for ``serve --help`` and docs/settings.md.

python -m app.config.reference > docs/settings.md
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from app.config.settings import Settings

_PAGE_HEAD = """\
# Settings

<!-- Generated: .venv/bin/python -m app.config.reference > docs/settings.md -->

A setting is an environment variable, a variable of `make run NAME=value`, or a line of a file `.env`. The
environment takes precedence over `.env`. An empty value counts as unset. `python -m app serve --help` prints
this list.

An invalid setting ends the start with exit status 2 and an error message. The message names the variable, its
value and the allowed values.

Two more variables are read from the environment only, not from `.env`: `HF_ENDPOINT` selects another Hugging
Face hub, and `HF_HUB_OFFLINE=1` turns off all requests to the hub.
"""

# Titles of the sections, by their first setting.
_SECTIONS = {
    "model_path": "Model",
    "model_threads": "Engine",
    "context_type": "Generation",
    "knowledge": "Knowledge base",
    "max_best_of": "Limits of the TGI dialect",
    "http_address": "Server",
}


class _Row(NamedTuple):
    section: str
    variable: str
    default: str
    description: str


def _rows() -> Iterator[_Row]:
    section = ""
    for name, field in Settings.model_fields.items():
        section = _SECTIONS.get(name, section)
        extra: dict[str, str] = field.json_schema_extra  # type: ignore[assignment]
        unit = extra["unit"].replace("host:port", "")
        known = {None: "unset", "": "empty"}.get(field.default, f"{field.default} {unit}".strip())
        description = str(field.description)
        if values := _allowed(field.annotation):
            description += f" Values: {', '.join(f'`{value}`' for value in values)}."
        if extra["also"]:
            description += f" Also read from `{extra['also']}`."
        yield _Row(section, name.upper(), extra["shown"] or known, description)


def _allowed(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal or an optional Literal."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return sum((_allowed(part) for part in get_args(annotation)), ())


def for_terminal(width: int = 100) -> str:
    """All settings as wrapped plain text."""
    lines: list[str] = []
    section = ""
    for row in _rows():
        if row.section != section:
            lines += ["", f"{row.section}:"]
            section = row.section
        lines.append(f"  {row.variable} [{row.default}]")
        lines += textwrap.wrap(row.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def for_docs() -> str:
    """The contents of docs/settings.md."""
    lines = [_PAGE_HEAD]
    section = ""
    for row in _rows():
        if row.section != section:
            lines += [*([""] if section else []), f"## {row.section}", ""]
            lines += ["| variable | default | description |", "| --- | --- | --- |"]
            section = row.section
        lines.append(f"| `{row.variable}` | {row.default} | {row.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(for_docs())
