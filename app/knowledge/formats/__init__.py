"""The readers of single formats: each a module with ``read(data: bytes) -> list[Block]``."""
