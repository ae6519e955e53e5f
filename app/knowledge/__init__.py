"""Documents of the user's own: from files to the passages that answer a question."""
