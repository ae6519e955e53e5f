"""Tokenstream's own dialect."""
