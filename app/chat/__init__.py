"""Messages to prompt tokens."""
