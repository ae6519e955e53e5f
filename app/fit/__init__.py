"""Memory plan, choice of the KV cache, and startup checks."""
