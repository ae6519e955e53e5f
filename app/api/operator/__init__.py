"""Routes for operators and browsers."""
