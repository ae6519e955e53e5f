"""Memory plan, KV choice and start-up checks."""
