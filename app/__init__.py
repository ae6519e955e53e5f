"""Tokenstream serves a quantized GGUF model on plain CPUs."""

__version__ = "0.1.0"
