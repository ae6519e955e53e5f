"""Errors of the index, without expensive imports."""

from app.config.errors import UserError


class StoreError(UserError):
    """The index cannot be opened, read or written. The message has a remedy."""
