"""Tokenstream serves a quantized GGUF model on plain CPUs."""

__version__ = "0.2.0"
