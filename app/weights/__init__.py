"""From a model's name to checked files on this disk."""
