"""HTTP parts that all dialects share."""
