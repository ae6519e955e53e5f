"""Tokenstream on clusters."""
