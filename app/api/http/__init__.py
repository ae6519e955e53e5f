"""Code that all dialects share."""
