"""What can go wrong with the index; in a module that costs nothing to import."""


class StoreError(Exception):
    """The index cannot be opened, read or written; the message says what to do."""
