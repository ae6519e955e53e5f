"""Benchmarks of the server, the knowledge base and llama-server."""
