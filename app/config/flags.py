"""Every setting as a flag of the command line: ``--n-ctx 8192`` is ``N_CTX=8192``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from app.config import reference

_PREFIX = "setting:"  # of destinations; other arguments may have the name of a setting


def add_settings(parser: argparse.ArgumentParser, *, shown: bool) -> None:
    """Add a flag for each setting, except for names that the parser has.

    Args:
        parser: The parser of a command.
        shown: Whether ``--help`` lists the flags.
    """
    groups: dict[str, Any] = {}
    for row in reference.rows():
        if row.section not in groups:
            groups[row.section] = parser.add_argument_group(row.section)
        description = f"{row.description} [{row.default}]".replace("%", "%%")
        with suppress(argparse.ArgumentError):  # the command has its own flag of this name
            groups[row.section].add_argument(
                flag_of(row.name),
                dest=_PREFIX + row.name,
                metavar=row.unit.upper() or "VALUE",
                help=description if shown else argparse.SUPPRESS,
            )


def given_settings(options: argparse.Namespace) -> dict[str, str]:
    """Values of the flags, by name of the setting. An empty value counts as unset."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in vars(options).items()
        if name.startswith(_PREFIX) and value
    }


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the description of a flag below it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=6, width=100)
