"""Prefix cache."""
