"""Speed of an engine and loss of a model, measured in child processes, and the comparison of two of them."""
