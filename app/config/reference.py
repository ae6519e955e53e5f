"""Reference of all settings, for flags of the command line and docs/settings.md.

python -m app.config.reference > docs/settings.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from app.config.settings import Settings

_PAGE_HEAD = """\
# Settings

<!-- Generated: .venv/bin/python -m app.config.reference > docs/settings.md -->

A setting is a flag (`tokenstream serve --n-ctx 8192`), an environment variable (`N_CTX=8192`), a variable of
`make run N_CTX=8192`, or a line of a file `.env`. Flags take precedence over the environment, which takes
precedence over `.env`. An empty value counts as unset. Other users of the machine can read flags: set keys in
the environment. `tokenstream serve --help` prints this list.

An invalid setting ends the start with exit status 2 and an error message. The message names the variable, its
value and the allowed values.

Two more variables are read from the environment only, not from `.env`: `HF_ENDPOINT` selects another Hugging
Face hub, and `HF_HUB_OFFLINE=1` turns off all requests to the hub.
"""

# Titles of the sections, by their first setting.
_SECTIONS = {
    "model": "Model",
    "model_threads": "Engine",
    "context_type": "Generation",
    "knowledge": "Knowledge base",
    "max_best_of": "Limits of the TGI dialect",
    "http_address": "Server",
}


class Row(NamedTuple):
    """One setting.

    Attributes:
        section: Title of its section.
        name: Name of the field.
        unit: Unit of its value; may be empty.
        default: The default, or its description.
        description: Purpose, allowed values, other names.
    """

    section: str
    name: str
    unit: str
    default: str
    description: str


def rows() -> Iterator[Row]:
    """All settings, in order."""
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
        yield Row(section, name, extra["unit"], extra["shown"] or known, description)


def _allowed(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal or an optional Literal."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return sum((_allowed(part) for part in get_args(annotation)), ())


def for_docs() -> str:
    """The contents of docs/settings.md."""
    lines = [_PAGE_HEAD]
    section = ""
    for row in rows():
        if row.section != section:
            lines += [*([""] if section else []), f"## {row.section}", ""]
            lines += ["| variable | default | description |", "| --- | --- | --- |"]
            section = row.section
        lines.append(f"| `{row.name.upper()}` | {row.default} | {row.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(for_docs())
