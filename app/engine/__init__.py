"""The inference engine: token ids in, token ids and text out. Independent of HTTP, prompts and JSON."""
