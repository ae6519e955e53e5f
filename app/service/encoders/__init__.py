"""Models that return vectors and scores, and the search that uses them."""
