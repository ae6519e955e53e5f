"""A model's name to checked files on this disk."""
