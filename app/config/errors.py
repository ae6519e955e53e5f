"""The root of all errors that are shown to the user at the terminal."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """An error with a message for the user at the terminal. It ends the command without a traceback.

    Attributes:
        exit_status: Status of the process: 1; 2 for a wrong setting or argument; 3 for a failed engine.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        """Join the cause and, where one is known, the remedy into one message."""
        super().__init__(f"{message}; {remedy}" if remedy else message)
