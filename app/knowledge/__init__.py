"""The knowledge base: from the user's files to the passages for a question."""
