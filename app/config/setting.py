"""Definition of one setting."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def setting(default: Any, doc: str, *, unit: str = "", shown: str = "", also: str = "", **limits: Any) -> Any:
    """Define a setting. ``also`` names a second variable for it; ``shown`` describes a computed default."""
    return Field(
        default,
        description=doc,
        json_schema_extra={"unit": unit, "shown": shown, "also": also},
        **limits,
    )
