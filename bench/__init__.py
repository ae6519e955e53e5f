"""Load, and what it is held against."""
