"""The machine: cores, memory, folders, child processes."""
