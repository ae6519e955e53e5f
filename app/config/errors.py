"""Base class of errors shown at the terminal."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """An error that ends a command with its message, without a traceback.

    Attributes:
        exit_status: Status of the process: 1; 2 for a wrong setting or argument; 3 for a failed engine.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        """Join the cause and the remedy, if any, into one message."""
        super().__init__(f"{message}; {remedy}" if remedy else message)
