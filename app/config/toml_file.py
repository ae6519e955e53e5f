"""Reads the TOML files of users."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class TomlError(Exception):
    """A file has no valid TOML. The message has the reason, without content of the file."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file.

    Raises:
        TomlError: It cannot be read, or it is invalid.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TomlError(f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TomlError(f"is not valid TOML: {error}") from None
    except RecursionError:
        raise TomlError("is not valid TOML: it is nested too deeply") from None
    return content
