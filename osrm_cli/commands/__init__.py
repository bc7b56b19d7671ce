"""One module a command: read files, compute, write files."""
