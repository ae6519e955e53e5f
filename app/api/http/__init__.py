"""Common code of all dialects."""
