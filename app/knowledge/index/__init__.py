"""The index of passages."""
