"""HTTP dialects: parse, call the service, encode."""
