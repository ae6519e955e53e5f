"""Several models by name: loaded on demand, within a share of memory."""
