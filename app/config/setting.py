"""Definition of one setting."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def setting(default: Any, doc: str, *, unit: str = "", shown: str = "", also: str = "", **limits: Any) -> Any:
    """Define a setting.

    Args:
        default: A value, or a function that computes it.
        doc: Purpose of the setting.
        unit: Unit of the value.
        shown: Description of a computed default.
        also: A second variable for the setting.
        limits: Arguments of pydantic's Field.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return Field(
        **given,
        description=doc,
        json_schema_extra={"unit": unit, "shown": shown, "also": also},
        **limits,
    )
