"""Models by name: search, download and check of their files."""
