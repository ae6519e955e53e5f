"""Chat templates from strangers: rendered in a sandbox, in a process of their own, with contents traced."""
