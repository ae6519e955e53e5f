"""Messages, chat templates and tools; their conversion to prompt tokens."""
