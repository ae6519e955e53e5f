"""The engine: tokens in, tokens out. It knows nothing of HTTP, prompts or JSON."""
