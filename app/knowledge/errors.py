"""Errors of the index, in a module without costly imports."""


class StoreError(Exception):
    """The index cannot be opened, read or written. The message has a remedy."""
