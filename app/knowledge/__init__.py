"""The knowledge base: indexes documents and finds passages for a question."""
