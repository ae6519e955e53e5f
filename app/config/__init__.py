"""Settings, contexts, named models."""
