"""Tokenstream's dialect."""
